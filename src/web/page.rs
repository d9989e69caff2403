//! `/`: the status of the mount as an HTML page without scripts.

use axum::extract::State;
use axum::http::HeaderValue;
use axum::response::Response;

use super::html::{escape, page, size};
use super::shared::Shared;
use crate::control::status::Status;

/// Get the status page
#[utoipa::path(get, path = "/", responses((status = 200, content_type = "text/html")))]
pub(super) async fn home(State(shared): State<Shared>) -> Response {
    let status = shared.status().await;
    let mut response = page(&status.mountpoint, &body(&status));
    response.headers_mut().insert("refresh", HeaderValue::from_static("5"));
    response
}

fn body(status: &Status) -> String {
    let total = &status.total;
    let mut text = format!(
        "<p>Download {}/s, upload {}/s, {} peers, {} waiting reads, {} torrents fetching, {} queued. <a href=\"files/\">Files</a>, <a \
         href=\"status\">status as JSON</a>, <a href=\"metrics\">metrics</a>.</p>\n",
        size(total.download_rate),
        size(total.upload_rate),
        total.peers,
        total.blocked_reads,
        total.fetching,
        total.queued
    );
    text += "<table>\n<tr><th>Torrent<th>State<th>Progress<th>Size<th>Download<th>Upload<th>Peers\n";
    for torrent in &status.torrents {
        let state = serde_json::to_value(torrent.state).unwrap_or_default();
        text += &format!(
            "<tr><td>{}<td>{}<td><progress max=\"{}\" value=\"{}\"></progress><td>{}<td>{}/s<td>{}/s<td>{}\n",
            escape(&torrent.name),
            escape(state.as_str().unwrap_or_default()),
            torrent.size,
            torrent.have,
            size(torrent.size),
            size(torrent.download_rate),
            size(torrent.upload_rate),
            torrent.peers.len()
        );
    }
    text + "</table>\n"
}
