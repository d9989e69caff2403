//! The routes of the API, and their description at `/openapi.json`.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{DefaultBodyLimit, Extension, Path, Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Router, middleware};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use utoipa::{IntoParams, OpenApi};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::body::{bounded, receive};
use super::connections::{Connection, Work};
use super::json::json;
use super::problem::{Fault, Problem};
use super::shared::Shared;
use super::{files, metrics, page};
use crate::control::orders::{
    AddedTorrent, FilesChanged, LimitChanges, NewTorrent, PriorityChange, RemovedTorrent, TorrentChanges,
};
use crate::control::status::{PieceMap, RateLimits, Status, TorrentStatus};
use crate::control::{observe, orders};

/// Longest request body in bytes, except for `.torrent` files. Orders are some hundred bytes; a magnet link with many
/// trackers is some kilobytes.
const MAX_BODY: usize = 64 * 1024;
/// Time limit for a request that is answered from the current state.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// Longest `.torrent` file in a request in bytes, and memory of a listener for all that arrive at a time. A torrent of
/// 800,000 pieces fits. Larger ones can be mounted, but not added.
pub const MAX_UPLOAD: usize = 16 << 20;
/// Time limit for receiving a `.torrent` file. It may have several megabytes and come over a slow link.
const UPLOAD_TIMEOUT: Duration = Duration::from_secs(60);
/// Largest number of cells in a piece map: as many as a wide screen has columns of pixels.
const MAX_CELLS: u32 = 4096;
/// Number of cells in a piece map if the request names none.
const DEFAULT_CELLS: u32 = 256;

#[derive(OpenApi)]
#[openapi(paths(files::get), info(title = "torrentfs", description = "Status and control of a mount"))]
struct Description;

/// Returns the OpenAPI description, as JSON.
pub fn openapi() -> String {
    // Fails only for maps whose keys are not strings, and ours are.
    quick_routes().merge(slow_routes()).split_for_parts().1.to_pretty_json().unwrap_or_default()
}

fn quick_routes() -> OpenApiRouter<Shared> {
    OpenApiRouter::with_openapi(Description::openapi())
        .routes(routes!(status))
        .routes(routes!(set_limits))
        .routes(routes!(torrent, change_torrent, remove))
        .routes(routes!(verify))
        .routes(routes!(pieces))
        .routes(routes!(prioritize))
        .routes(routes!(description))
        .routes(routes!(page::home))
        .routes(routes!(metrics::metrics))
}

/// Routes without a time limit: adding a magnet link waits until its metadata is found.
fn slow_routes() -> OpenApiRouter<Shared> {
    OpenApiRouter::new().routes(routes!(add))
}

/// Returns the router for all requests.
pub(super) fn router(shared: Shared) -> Router {
    let limits = (middleware::from_fn(limit_memory), middleware::from_fn(limit_time));
    let quick = quick_routes().split_for_parts().0.layer(limits.1).layer(limits.0);
    // OpenAPI has no route that matches the rest of a path.
    let files = Router::new()
        .route("/files", get(files::get))
        .route("/files/", get(files::get))
        .route("/files/{*path}", get(files::get));
    quick
        .merge(slow_routes().split_for_parts().0)
        .merge(files)
        .fallback(|| async { Problem::not_found("no such resource; see /openapi.json for the API") })
        .method_not_allowed_fallback(|| async {
            Problem::new(StatusCode::METHOD_NOT_ALLOWED, "method not allowed here; see /openapi.json for the API")
        })
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .with_state(shared)
}

/// Answers with a time-out if the handler takes longer than [`REQUEST_TIMEOUT`].
async fn limit_time(request: axum::extract::Request, next: middleware::Next) -> Response {
    let response = tokio::time::timeout(REQUEST_TIMEOUT, next.run(request)).await;
    response.unwrap_or_else(|_| Problem::timed_out().into_response())
}

/// Takes memory for the response until it is sent.
async fn limit_memory(
    Extension(connection): Extension<Arc<Connection>>,
    request: axum::extract::Request,
    next: middleware::Next,
) -> Response {
    bounded(&connection, next.run(request).await).await
}

/// Parses a JSON body. The content type must say so: a page of another site cannot send that type without a preflight.
fn read<T: DeserializeOwned>(headers: &HeaderMap, body: &[u8]) -> Result<T, Problem> {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    let kind = kind.split(';').next().unwrap_or_default().trim();
    if !kind.eq_ignore_ascii_case("application/json") {
        return Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "the body must be of type application/json"));
    }
    serde_json::from_slice(body).map_err(|error| Problem::bad_request(format!("invalid body: {error}")))
}

/// Get the status of the mount, its torrents and their peers
#[utoipa::path(get, path = "/status", responses((status = 200, body = Status)))]
async fn status(State(shared): State<Shared>) -> Response {
    json(&shared.status().await)
}

/// Change the rate limits and the number of downloads at a time
#[utoipa::path(
    patch, path = "/limits", request_body = LimitChanges,
    responses((status = 200, body = RateLimits), (status = 400, body = Fault))
)]
async fn set_limits(State(shared): State<Shared>, headers: HeaderMap, body: Bytes) -> Result<Response, Problem> {
    let changes = read(&headers, &body)?;
    Ok(json(&orders::set_limits(shared.mount.library.session(), changes)?))
}

/// Get the status of one torrent
#[utoipa::path(
    get, path = "/torrents/{info_hash}", params(("info_hash" = String, Path)),
    responses((status = 200, body = TorrentStatus), (status = 404, body = Fault))
)]
async fn torrent(State(shared): State<Shared>, Path(info_hash): Path<String>) -> Result<Response, Problem> {
    Ok(json(&observe::torrent(&orders::find(&shared.mount, &info_hash)?).await))
}

/// Pause or resume a torrent; switch it between fetching on demand and fetching everything
#[utoipa::path(
    patch, path = "/torrents/{info_hash}", params(("info_hash" = String, Path)), request_body = TorrentChanges,
    responses((status = 200, body = TorrentStatus), (status = 400, body = Fault), (status = 404, body = Fault))
)]
async fn change_torrent(
    State(shared): State<Shared>,
    Path(info_hash): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, Problem> {
    let mounted = orders::find(&shared.mount, &info_hash)?;
    orders::change(&mounted, read(&headers, &body)?).await;
    Ok(json(&observe::torrent(&mounted).await))
}

/// Add a torrent; the body may also be a .torrent file, with the content type application/x-bittorrent
#[utoipa::path(
    post, path = "/torrents", request_body = NewTorrent,
    responses(
        (status = 200, body = AddedTorrent), (status = 400, body = Fault), (status = 409, body = Fault),
        (status = 413, body = Fault), (status = 422, body = Fault), (status = 429, body = Fault)
    )
)]
async fn add(
    State(shared): State<Shared>,
    Extension(connection): Extension<Arc<Connection>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let is_file = headers.get(header::CONTENT_TYPE).is_some_and(|kind| kind == "application/x-bittorrent");
    let memory = &connection.listener.uploads;
    let max = if is_file { MAX_UPLOAD } else { MAX_BODY };
    let upload = tokio::time::timeout(UPLOAD_TIMEOUT, receive(body, max, memory));
    let received = upload.await.map_err(|_| Problem::timed_out())??;
    // From here on the client can delay nothing.
    let _work = connection.begin(Work::Add)?;
    let source = if is_file {
        // The semaphore is never closed.
        let _permit = shared.parsing.acquire().await;
        orders::torrent_file(&received.bytes)?
    } else {
        orders::source(&read::<NewTorrent>(&headers, &received.bytes)?)?
    };
    // The torrent takes as much until it is added.
    let _memory = received.into_memory();
    Ok(json(&orders::add(&shared.mount, &source).await?))
}

/// Options of a removal.
#[derive(Deserialize, IntoParams)]
struct RemoveQuery {
    /// Also delete the torrent's cached pieces.
    #[serde(default)]
    delete: bool,
}

/// Remove a torrent; files of it that are open stay readable until they are closed
#[utoipa::path(
    delete, path = "/torrents/{info_hash}", params(("info_hash" = String, Path), RemoveQuery),
    responses((status = 200, body = RemovedTorrent), (status = 400, body = Fault), (status = 404, body = Fault))
)]
async fn remove(
    State(shared): State<Shared>,
    Path(info_hash): Path<String>,
    Query(RemoveQuery { delete }): Query<RemoveQuery>,
) -> Result<Response, Problem> {
    let mounted = orders::find(&shared.mount, &info_hash)?;
    Ok(json(&orders::remove(&shared.mount, &mounted, delete).await?))
}

/// Start to hash a torrent's pieces again, in the background
#[utoipa::path(
    post, path = "/torrents/{info_hash}/verify", params(("info_hash" = String, Path)),
    responses((status = 202, body = TorrentStatus), (status = 404, body = Fault))
)]
async fn verify(State(shared): State<Shared>, Path(info_hash): Path<String>) -> Result<Response, Problem> {
    let mounted = orders::find(&shared.mount, &info_hash)?;
    mounted.torrent.verify();
    Ok((StatusCode::ACCEPTED, json(&observe::torrent(&mounted).await)).into_response())
}

/// Options of a piece map.
#[derive(Deserialize, IntoParams)]
struct MapQuery {
    /// Maximum number of cells, 1 to 4096.
    cells: Option<u32>,
}

/// Get a map of a torrent's pieces
#[utoipa::path(
    get, path = "/torrents/{info_hash}/pieces", params(("info_hash" = String, Path), MapQuery),
    responses((status = 200, body = PieceMap), (status = 400, body = Fault), (status = 404, body = Fault))
)]
async fn pieces(
    State(shared): State<Shared>,
    Path(info_hash): Path<String>,
    Query(MapQuery { cells }): Query<MapQuery>,
) -> Result<Response, Problem> {
    let mounted = orders::find(&shared.mount, &info_hash)?;
    let cells = cells.unwrap_or(DEFAULT_CELLS);
    if !(1..=MAX_CELLS).contains(&cells) {
        return Err(Problem::bad_request(format!("cells must be 1 to {MAX_CELLS}")));
    }
    Ok(json(&observe::pieces(&mounted, cells).await))
}

/// Set the priority of a file, or of all files in a directory
#[utoipa::path(
    patch, path = "/priority", request_body = PriorityChange,
    responses((status = 200, body = FilesChanged), (status = 400, body = Fault), (status = 404, body = Fault))
)]
async fn prioritize(State(shared): State<Shared>, headers: HeaderMap, body: Bytes) -> Result<Response, Problem> {
    Ok(json(&orders::prioritize(&shared.mount, &read(&headers, &body)?)?))
}

/// Get this description
#[utoipa::path(get, path = "/openapi.json", responses((status = 200)))]
async fn description() -> Response {
    ([(header::CONTENT_TYPE, "application/json")], openapi()).into_response()
}
