//! The routes, and their description at `/openapi.json`.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::{Body, Bytes, to_bytes};
use axum::extract::{DefaultBodyLimit, Path, Query, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Router, middleware};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;
use utoipa::{IntoParams, OpenApi, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::orders::{
    self, AddedTorrent, FilesChanged, LimitChanges, NewTorrent, PriorityChange, RemovedTorrent, TorrentChanges,
};
use super::status::{PieceMap, RateLimits, Status, TorrentStatus};
use super::{Mount, Refusal, files, metrics, observe, page};
use crate::metainfo::MAX_TORRENT_LEN;

/// The largest body of a request.
const MAX_BODY: usize = 64 * 1024;
/// How long a request may take that is answered from what is known.
const PATIENCE: Duration = Duration::from_secs(30);
/// Whole .torrent files taken in at a time: each may be large.
const MAX_FILES_AT_ONCE: usize = 2;
/// For a whole .torrent file to come.
const BODY_PATIENCE: Duration = Duration::from_secs(60);
/// Cells of a piece map.
const MAX_CELLS: u32 = 4096;
const USUAL_CELLS: u32 = 256;

/// What handlers share.
#[derive(Clone)]
pub(super) struct Shared {
    pub(super) mount: Arc<Mount>,
    pub(super) since: Instant,
    /// Where it listens over TCP.
    pub(super) http: Option<SocketAddr>,
    /// For whole .torrent files, of which only so many are taken in at a time.
    files: Arc<Semaphore>,
}

impl Shared {
    pub(super) fn new(mount: Mount, http: Option<SocketAddr>) -> Self {
        let files = Arc::new(Semaphore::new(MAX_FILES_AT_ONCE));
        Self { mount: Arc::new(mount), since: Instant::now(), http, files }
    }
}

/// What went wrong.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub(super) struct Fault {
    /// One line for people.
    pub(super) error: String,
}

#[derive(OpenApi)]
#[openapi(
    paths(files::get),
    info(title = "torrentfs", description = "What a mount tells of itself, and the orders it takes")
)]
struct Description;

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        (self.status, json(&Fault { error: self.message })).into_response()
    }
}

/// The description of the API, as JSON.
pub fn openapi() -> String {
    // It fails only where a key is no string, and all are.
    described().merge(described_slow()).split_for_parts().1.to_pretty_json().unwrap_or_default()
}

fn described() -> OpenApiRouter<Shared> {
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

/// What takes as long as it takes: metadata may have to be found first.
fn described_slow() -> OpenApiRouter<Shared> {
    OpenApiRouter::new().routes(routes!(add))
}

/// Everything that is answered.
pub(super) fn router(shared: Shared) -> Router {
    let quick = described().split_for_parts().0.layer(middleware::from_fn(within));
    // The path may be anything, which is no route of a description.
    let files = Router::new()
        .route("/files", get(files::get))
        .route("/files/", get(files::get))
        .route("/files/{*path}", get(files::get));
    quick
        .merge(described_slow().split_for_parts().0)
        .merge(files)
        .fallback(|| async { Refusal::not_found("nothing is here; /openapi.json tells what there is") })
        .method_not_allowed_fallback(|| async {
            Refusal::new(StatusCode::METHOD_NOT_ALLOWED, "not with this method; /openapi.json tells what there is")
        })
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .with_state(shared)
}

/// An answer within a bounded time.
async fn within(request: axum::extract::Request, next: middleware::Next) -> Response {
    let answer = tokio::time::timeout(PATIENCE, next.run(request)).await;
    answer.unwrap_or_else(|_| Refusal::new(StatusCode::REQUEST_TIMEOUT, "it took too long").into_response())
}

fn json<T: Serialize>(value: &T) -> Response {
    // It fails only where a key is no string, and all are.
    let body = serde_json::to_vec(value).unwrap_or_default();
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("application/json")),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
    ];
    (headers, body).into_response()
}

/// A body of JSON, said to be so: a page elsewhere cannot send that without asking first.
fn read<T: DeserializeOwned>(headers: &HeaderMap, body: &[u8]) -> Result<T, Refusal> {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    let kind = kind.split(';').next().unwrap_or_default().trim();
    if !kind.eq_ignore_ascii_case("application/json") {
        return Err(Refusal::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "the body is to be of type application/json"));
    }
    serde_json::from_slice(body).map_err(|error| Refusal::bad(format!("the body makes no sense: {error}")))
}

/// The mount, its torrents and their peers
#[utoipa::path(get, path = "/status", responses((status = 200, body = Status)))]
async fn status(State(Shared { mount, since, http, .. }): State<Shared>) -> Response {
    json(&observe::mount(&mount, since, http).await)
}

/// Change the rate limits
#[utoipa::path(
    patch, path = "/limits", request_body = LimitChanges,
    responses((status = 200, body = RateLimits), (status = 400, body = Fault))
)]
async fn set_limits(State(shared): State<Shared>, headers: HeaderMap, body: Bytes) -> Result<Response, Refusal> {
    let changes = read(&headers, &body)?;
    Ok(json(&orders::limit(shared.mount.library.session(), changes)?))
}

/// One torrent
#[utoipa::path(
    get, path = "/torrents/{info_hash}", params(("info_hash" = String, Path)),
    responses((status = 200, body = TorrentStatus), (status = 404, body = Fault))
)]
async fn torrent(State(shared): State<Shared>, Path(info_hash): Path<String>) -> Result<Response, Refusal> {
    Ok(json(&observe::torrent(&orders::find(&shared.mount, &info_hash)?).await))
}

/// Pause a torrent or go on with it; fetch it on demand or all of it
#[utoipa::path(
    patch, path = "/torrents/{info_hash}", params(("info_hash" = String, Path)), request_body = TorrentChanges,
    responses((status = 200, body = TorrentStatus), (status = 400, body = Fault), (status = 404, body = Fault))
)]
async fn change_torrent(
    State(shared): State<Shared>,
    Path(info_hash): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, Refusal> {
    let shown = orders::find(&shared.mount, &info_hash)?;
    orders::change(&shown, read(&headers, &body)?).await;
    Ok(json(&observe::torrent(&shown).await))
}

/// Show one more torrent; the body may also be a .torrent file, as application/x-bittorrent
#[utoipa::path(
    post, path = "/torrents", request_body = NewTorrent,
    responses(
        (status = 200, body = AddedTorrent), (status = 400, body = Fault), (status = 409, body = Fault),
        (status = 422, body = Fault)
    )
)]
async fn add(State(shared): State<Shared>, headers: HeaderMap, body: Body) -> Result<Response, Refusal> {
    let whole = tokio::time::timeout(BODY_PATIENCE, async {
        // Never closed. Kept until the file is read.
        let place = shared.files.clone().acquire_owned().await;
        to_bytes(body, MAX_TORRENT_LEN).await.map(|body| (body, place))
    });
    let (body, place) = match whole.await {
        Ok(Ok(taken)) => taken,
        Ok(Err(_)) => return Err(Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, "the body is too long, or broke off")),
        Err(_) => return Err(Refusal::new(StatusCode::REQUEST_TIMEOUT, "it took too long")),
    };
    let source = match headers.get(header::CONTENT_TYPE).map(HeaderValue::as_bytes) {
        Some(b"application/x-bittorrent") => orders::torrent_file(&body)?,
        _ if body.len() > MAX_BODY => return Err(Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, "the body is too long")),
        _ => orders::source(&read::<NewTorrent>(&headers, &body)?)?,
    };
    drop((body, place));
    Ok(json(&orders::add(&shared.mount, &source).await?))
}

/// How a torrent is to be removed.
#[derive(Deserialize, IntoParams)]
struct RemoveQuery {
    /// Delete what is cached of it, too.
    #[serde(default)]
    delete: bool,
}

/// Show a torrent no longer; who has a file of it open reads on
#[utoipa::path(
    delete, path = "/torrents/{info_hash}", params(("info_hash" = String, Path), RemoveQuery),
    responses((status = 200, body = RemovedTorrent), (status = 400, body = Fault), (status = 404, body = Fault))
)]
async fn remove(
    State(shared): State<Shared>,
    Path(info_hash): Path<String>,
    Query(RemoveQuery { delete }): Query<RemoveQuery>,
) -> Result<Response, Refusal> {
    let shown = orders::find(&shared.mount, &info_hash)?;
    Ok(json(&orders::remove(&shared.mount, &shown, delete).await?))
}

/// Hash again what is here of a torrent, in the background
#[utoipa::path(
    post, path = "/torrents/{info_hash}/verify", params(("info_hash" = String, Path)),
    responses((status = 202, body = TorrentStatus), (status = 404, body = Fault))
)]
async fn verify(State(shared): State<Shared>, Path(info_hash): Path<String>) -> Result<Response, Refusal> {
    let shown = orders::find(&shared.mount, &info_hash)?;
    shown.torrent.verify();
    Ok((StatusCode::ACCEPTED, json(&observe::torrent(&shown).await)).into_response())
}

/// How a piece map is to be.
#[derive(Deserialize, IntoParams)]
struct MapQuery {
    /// How many cells at most, 1 to 4096.
    cells: Option<u32>,
}

/// Where the pieces of a torrent are
#[utoipa::path(
    get, path = "/torrents/{info_hash}/pieces", params(("info_hash" = String, Path), MapQuery),
    responses((status = 200, body = PieceMap), (status = 400, body = Fault), (status = 404, body = Fault))
)]
async fn pieces(
    State(shared): State<Shared>,
    Path(info_hash): Path<String>,
    Query(MapQuery { cells }): Query<MapQuery>,
) -> Result<Response, Refusal> {
    let shown = orders::find(&shared.mount, &info_hash)?;
    let cells = cells.unwrap_or(USUAL_CELLS);
    if !(1..=MAX_CELLS).contains(&cells) {
        return Err(Refusal::bad(format!("cells are 1 to {MAX_CELLS}")));
    }
    Ok(json(&observe::pieces(&shown, cells).await))
}

/// Say how much a file, or all in a directory, is wanted
#[utoipa::path(
    patch, path = "/priority", request_body = PriorityChange,
    responses((status = 200, body = FilesChanged), (status = 400, body = Fault), (status = 404, body = Fault))
)]
async fn prioritize(State(shared): State<Shared>, headers: HeaderMap, body: Bytes) -> Result<Response, Refusal> {
    Ok(json(&orders::prioritize(&shared.mount, &read(&headers, &body)?)?))
}

/// This description
#[utoipa::path(get, path = "/openapi.json", responses((status = 200)))]
async fn description() -> Response {
    ([(header::CONTENT_TYPE, "application/json")], openapi()).into_response()
}
