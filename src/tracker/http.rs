//! The HTTP side: one request a connection, and as little as possible for each.
//!
//! Most requests are there in full when the connection is accepted, and their answers fit the socket: they are served on
//! the spot, without a task, a timer, or an entry in the poll set. Only who sends or takes slowly gets those, and of
//! such only so many: the oldest, which had the most time, make room for new ones. So who opens thousands of silent
//! connections keeps nobody else out.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::runtime::Handle;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout_at};

use super::request::{self, MAX_HEAD};
use super::service::{Scratch, Service};
use super::workers::End;

/// Out of descriptors or memory: not again at once.
const PAUSE: Duration = Duration::from_millis(50);

/// Connections that take their time, oldest first; some of them have ended.
#[derive(Default)]
pub(super) struct Slow(Mutex<VecDeque<JoinHandle<()>>>);

impl Slow {
    fn add(&self, task: JoinHandle<()>, service: &Service) {
        let mut tasks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        tasks.push_back(task);
        let most = service.limits.connections.max(1);
        if tasks.len() > most {
            tasks.retain(|task| !task.is_finished());
        }
        if tasks.len() > most
            && let Some(oldest) = tasks.pop_front()
        {
            oldest.abort();
            service.counters.hung_up.add();
        }
    }

    /// Lets them finish, for so long.
    pub async fn finish(&self, limit: Duration) {
        let end = Instant::now() + limit;
        let tasks = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        for mut task in tasks {
            if timeout_at(end, &mut task).await.is_err() {
                task.abort();
            }
        }
    }
}

/// Accepts until the end. Tasks for the slow ones run on `runtime`.
pub(super) fn serve(listener: &TcpListener, end: &End, service: &Arc<Service>, slow: &Slow, runtime: &Handle) {
    let (mut buffer, mut scratch, mut out) = (vec![0; MAX_HEAD], Scratch::default(), Vec::new());
    while !end.is_near() {
        match listener.accept() {
            Ok((stream, from)) => {
                // An error is the other side's.
                let served = at_once(&stream, from, service, &mut buffer, &mut scratch, &mut out);
                if let Ok(Some(Rest { read, unsent })) = served {
                    slow.add(runtime.spawn(slowly(stream, from, read, unsent, service.clone())), service);
                }
            }
            Err(_) if end.is_near() => return,
            // The last: gone again before it was accepted.
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted | io::ErrorKind::ConnectionAborted
                ) => {}
            Err(error) => {
                tracing::warn!("cannot accept a connection: {error}");
                std::thread::sleep(PAUSE);
            }
        }
    }
}

/// What could not be done at once.
struct Rest {
    read: Vec<u8>,
    unsent: Vec<u8>,
}

fn at_once(
    mut stream: &TcpStream,
    from: SocketAddr,
    service: &Service,
    buffer: &mut [u8],
    scratch: &mut Scratch,
    out: &mut Vec<u8>,
) -> io::Result<Option<Rest>> {
    stream.set_nonblocking(true)?;
    let len = match stream.read(buffer) {
        Ok(0) => return Ok(None),
        Ok(len) => len,
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
        Err(error) => return Err(error),
    };
    match request::parse(&buffer[..len], from, &service.trusted) {
        Ok(None) => return Ok(Some(Rest { read: buffer[..len].to_vec(), unsent: Vec::new() })),
        Ok(Some(request)) => service.http(Ok(request), scratch, out),
        Err(refused) => {
            // More of it may come, and must be waited for: see the end of `finish`.
            service.http(Err(refused), scratch, out);
            return Ok(Some(Rest { read: Vec::new(), unsent: out.clone() }));
        }
    }
    let sent = match stream.write(out) {
        Ok(sent) => sent,
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
        Err(error) => return Err(error),
    };
    Ok((sent < out.len()).then(|| Rest { read: Vec::new(), unsent: out[sent..].to_vec() }))
}

/// The rest of a connection, within its time.
async fn slowly(stream: TcpStream, from: SocketAddr, read: Vec<u8>, unsent: Vec<u8>, service: Arc<Service>) {
    let end = Instant::now() + service.limits.connection_time;
    let Ok(stream) = tokio::net::TcpStream::from_std(stream) else { return };
    // An error is the other side's.
    if timeout_at(end, finish(stream, from, read, unsent, &service)).await.is_err() {
        service.counters.hung_up.add();
    }
}

async fn finish(
    mut stream: tokio::net::TcpStream,
    from: SocketAddr,
    mut read: Vec<u8>,
    mut unsent: Vec<u8>,
    service: &Service,
) -> io::Result<()> {
    let mut refused = !unsent.is_empty();
    while unsent.is_empty() {
        // Grows with what comes, up to a whole head.
        let room = (MAX_HEAD - read.len()).min(1024);
        if (&mut stream).take(room as u64).read_buf(&mut read).await? == 0 {
            return Ok(());
        }
        match request::parse(&read, from, &service.trusted) {
            Ok(None) => {}
            Ok(Some(request)) => service.http(Ok(request), &mut Scratch::default(), &mut unsent),
            Err(reason) => {
                service.http(Err(reason), &mut Scratch::default(), &mut unsent);
                refused = true;
            }
        }
    }
    stream.write_all(&unsent).await?;
    if refused {
        stream.shutdown().await?;
        // More of it may come. With unread bytes the close would be a reset, and the answer might be lost with it.
        let mut scrap = [0; 1024];
        for _ in 0..64 {
            if stream.read(&mut scrap).await? == 0 {
                break;
            }
        }
    }
    Ok(())
}
