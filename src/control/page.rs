//! `/`: the state of the mount as a plain page, without a script; and what all pages have in common.

use axum::extract::State;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};

use super::api::Shared;
use super::observe;
use super::status::Status;

/// Nothing is loaded from anywhere, and nobody may frame it.
const POLICY: HeaderValue =
    HeaderValue::from_static("default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'; base-uri 'none'");

const STYLE: &str = "body{font:16px/1.4 sans-serif;margin:2em auto;max-width:60em;padding:0 1em}\
    table{border-collapse:collapse}td,th{padding:.2em .8em .2em 0;text-align:left;vertical-align:top}\
    progress{width:10em}@media(prefers-color-scheme:dark){body{background:#111;color:#ddd}a{color:#8bf}}";

/// The mount, for a browser
#[utoipa::path(get, path = "/", responses((status = 200, content_type = "text/html")))]
pub(super) async fn home(State(Shared { mount, since, http, .. }): State<Shared>) -> Response {
    let status = observe::mount(&mount, since, http).await;
    let mut answer = page(&status.mountpoint, &body(&status));
    answer.headers_mut().insert("refresh", HeaderValue::from_static("5"));
    answer
}

fn body(status: &Status) -> String {
    let total = &status.total;
    let mut text = format!(
        "<p>Down {}/s, up {}/s, {} peers, {} reads wait. <a href=\"files/\">Files</a>, <a href=\"status\">all as \
         JSON</a>, <a href=\"metrics\">metrics</a>.</p>\n",
        size(total.download_rate),
        size(total.upload_rate),
        total.peers,
        total.blocked_reads
    );
    text += "<table>\n<tr><th>torrent<th>state<th>here<th>size<th>down<th>up<th>peers\n";
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

/// For people.
pub(super) fn size(bytes: u64) -> String {
    bytesize::ByteSize(bytes).to_string()
}

/// A whole page; `body` is HTML, the title is not.
pub(super) fn page(title: &str, body: &str) -> Response {
    let title = escape(title);
    let text = format!(
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>{title}</title>\n<meta \
         name=\"viewport\" content=\"width=device-width\"><style>{STYLE}</style></head>\n<body><h1>{title}</h1>\n\
         {body}</body></html>\n"
    );
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8")),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
        (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
        (header::REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
    ];
    (headers, text).into_response()
}

/// Text as HTML shows it, also in an attribute.
pub(super) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped += "&amp;",
            '<' => escaped += "&lt;",
            '>' => escaped += "&gt;",
            '"' => escaped += "&quot;",
            '\'' => escaped += "&#39;",
            c => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_only_text() {
        assert_eq!(escape("<b a=\"x\" b='y'>&"), "&lt;b a=&quot;x&quot; b=&#39;y&#39;&gt;&amp;");
    }
}
