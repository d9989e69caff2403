//! The HTTP side: one request per connection, with as little work as possible.
//!
//! Most requests have arrived in full when the connection is accepted, and their responses fit the socket's buffer. These
//! are served immediately, without a task, a timer, or an entry in the poll set. Only slow connections get those. Their
//! number is limited, and the oldest is closed for each further one: a client that opens thousands of silent connections
//! cannot keep others out.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::runtime::Handle;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout_at};

use super::request::{self, MAX_HEADER};
use super::service::{Scratch, Service};
use super::workers::StopFlag;
use crate::util::lock;

/// Pause after a failed `accept`, such as for lack of file descriptors, so that it does not cause a busy loop.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Tasks of the slow connections, oldest first. Some of them may have finished.
#[derive(Default)]
pub(super) struct SlowConnections(Mutex<VecDeque<JoinHandle<()>>>);

impl SlowConnections {
    /// Adds a task, and aborts the oldest if there are too many.
    fn add(&self, task: JoinHandle<()>, service: &Service) {
        let mut tasks = lock(&self.0);
        tasks.push_back(task);
        let limit = service.limits.connections.max(1);
        if tasks.len() > limit {
            tasks.retain(|task| !task.is_finished());
        }
        if tasks.len() > limit
            && let Some(oldest) = tasks.pop_front()
        {
            oldest.abort();
            service.counters.aborted.add();
        }
    }

    /// Waits at most `limit` for all tasks to finish, then aborts the rest.
    pub async fn finish(&self, limit: Duration) {
        let end = Instant::now() + limit;
        let tasks = std::mem::take(&mut *lock(&self.0));
        for mut task in tasks {
            if timeout_at(end, &mut task).await.is_err() {
                task.abort();
            }
        }
    }
}

/// Accepts and serves connections until `stop` is set. Tasks for slow connections run on `runtime`.
pub(super) fn serve(
    listener: &TcpListener,
    stop: &StopFlag,
    service: &Arc<Service>,
    slow: &SlowConnections,
    runtime: &Handle,
) {
    let (mut buffer, mut scratch, mut out) = (vec![0; MAX_HEADER], Scratch::default(), Vec::new());
    while !stop.is_set() {
        match listener.accept() {
            Ok((stream, from)) => {
                // An error concerns only this connection.
                let served = serve_now(&stream, from, service, &mut buffer, &mut scratch, &mut out);
                if let Ok(Some(Unfinished { read, unsent })) = served {
                    slow.add(runtime.spawn(serve_slowly(stream, from, read, unsent, service.clone())), service);
                }
            }
            Err(_) if stop.is_set() => return,
            // `ConnectionAborted`: the client closed the connection before it was accepted.
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted | io::ErrorKind::ConnectionAborted
                ) => {}
            Err(error) => {
                tracing::warn!("cannot accept a connection: {error}");
                std::thread::sleep(ACCEPT_PAUSE);
            }
        }
    }
}

/// A connection that could not be finished immediately: the bytes received and those still to send.
struct Unfinished {
    read: Vec<u8>,
    unsent: Vec<u8>,
}

/// Serves a connection without waiting. Returns what is left to do.
fn serve_now(
    mut stream: &TcpStream,
    from: SocketAddr,
    service: &Service,
    buffer: &mut [u8],
    scratch: &mut Scratch,
    out: &mut Vec<u8>,
) -> io::Result<Option<Unfinished>> {
    stream.set_nonblocking(true)?;
    let len = match stream.read(buffer) {
        Ok(0) => return Ok(None),
        Ok(len) => len,
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
        Err(error) => return Err(error),
    };
    match request::parse(&buffer[..len], from, &service.trusted_proxies) {
        Ok(None) => return Ok(Some(Unfinished { read: buffer[..len].to_vec(), unsent: Vec::new() })),
        Ok(Some(request)) => service.http(Ok(request), scratch, out),
        Err(error) => {
            // The client may still be sending, and the rest must be read: see the end of `complete`.
            service.http(Err(error), scratch, out);
            return Ok(Some(Unfinished { read: Vec::new(), unsent: out.clone() }));
        }
    }
    let sent = match stream.write(out) {
        Ok(sent) => sent,
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
        Err(error) => return Err(error),
    };
    Ok((sent < out.len()).then(|| Unfinished { read: Vec::new(), unsent: out[sent..].to_vec() }))
}

/// Serves a slow connection within its time limit.
async fn serve_slowly(stream: TcpStream, from: SocketAddr, read: Vec<u8>, unsent: Vec<u8>, service: Arc<Service>) {
    let end = Instant::now() + service.limits.connection_time;
    let Ok(stream) = tokio::net::TcpStream::from_std(stream) else { return };
    // An error concerns only this connection.
    if timeout_at(end, complete(stream, from, read, unsent, &service)).await.is_err() {
        service.counters.aborted.add();
    }
}

/// Receives the rest of the request, and sends the response or the rest of it.
async fn complete(
    mut stream: tokio::net::TcpStream,
    from: SocketAddr,
    mut read: Vec<u8>,
    mut unsent: Vec<u8>,
    service: &Service,
) -> io::Result<()> {
    let mut failed = !unsent.is_empty();
    while unsent.is_empty() {
        // The buffer grows with the bytes received, up to the longest header.
        let space = (MAX_HEADER - read.len()).min(1024);
        if (&mut stream).take(space as u64).read_buf(&mut read).await? == 0 {
            return Ok(());
        }
        match request::parse(&read, from, &service.trusted_proxies) {
            Ok(None) => {}
            Ok(Some(request)) => service.http(Ok(request), &mut Scratch::default(), &mut unsent),
            Err(error) => {
                service.http(Err(error), &mut Scratch::default(), &mut unsent);
                failed = true;
            }
        }
    }
    stream.write_all(&unsent).await?;
    if failed {
        stream.shutdown().await?;
        // Closing a socket with unread bytes sends a reset, and the client could lose the response. So read what the
        // client still sends, up to 64 KiB.
        let mut discarded = [0; 1024];
        for _ in 0..64 {
            if stream.read(&mut discarded).await? == 0 {
                break;
            }
        }
    }
    Ok(())
}
