//! The connections of a listener: how many there may be, which of them is closed for a new one, and how much work and
//! memory they may cause.
//!
//! No client can lock the others out, whatever it sends or does not send:
//!
//! - A new connection is always accepted. If there are too many, of all clients or of one, the connection is closed that
//!   has made no progress for the longest time: an idle one, one that sends its request slowly, or one that does not read
//!   its response.
//! - A connection is kept while the server works for it, be it that a file is read or a torrent added, which may take
//!   long. There may be fewer of those than connections, so some are always left for the status and for orders. A request
//!   over the limit is refused at once.
//!
//! Clients are told apart by address. The Unix socket is a listener with limits of its own.

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::http::StatusCode;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep, sleep};

use super::problem::Problem;

/// Most open connections of a listener. One takes some 40 KiB.
const MAX_CONNECTIONS: usize = 128;
/// Most of them from one address, so that others need not compete with it.
const MAX_CONNECTIONS_OF_CLIENT: usize = 96;
/// Time after which a connection is closed whose client accepts no byte of a response. A paused player may resume within
/// it.
const STALL_TIMEOUT: Duration = Duration::from_secs(120);

/// Work that may take long.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Work {
    /// Sending a file, which may wait for peers.
    File,
    /// Adding a torrent, which may wait for its metadata.
    Add,
}

impl Work {
    /// Returns how many of it there may be at a time, of all clients and of one. Players open two or three connections for
    /// a file.
    fn limits(self) -> (usize, usize) {
        match self {
            Self::File => (64, 32),
            Self::Add => (16, 8),
        }
    }

    fn refusal(self) -> &'static str {
        match self {
            Self::File => "too many files are being read over HTTP; close some, or try again later",
            Self::Add => "too many torrents are being added; try again later",
        }
    }
}

/// An address. The 2^64 addresses of an IPv6 network are one client's; all clients of a Unix socket are one.
type Client = Option<IpAddr>;

/// Returns the client with an address.
fn client(addr: IpAddr) -> Client {
    Some(match addr.to_canonical() {
        IpAddr::V6(addr) if !addr.is_loopback() => {
            let [a, b, c, d, ..] = addr.segments();
            [a, b, c, d, 0, 0, 0, 0].into()
        }
        addr => addr,
    })
}

/// What the connections of a listener share.
#[derive(Debug)]
pub(super) struct Listener {
    table: Mutex<Table>,
    /// Notified when a connection is closed or no longer worked for.
    room: Notify,
    started: Instant,
    /// Memory for uploads.
    pub uploads: Memory,
    /// Memory for responses that are made as a whole.
    pub responses: Memory,
}

#[derive(Debug, Default)]
struct Table {
    open: HashMap<u64, Arc<Connection>>,
    next: u64,
    work: HashMap<(Work, Client), usize>,
}

impl Listener {
    /// Returns the state of a new listener, with `uploads` and `responses` bytes of memory for these.
    pub fn new(uploads: usize, responses: usize) -> Arc<Self> {
        Arc::new(Self {
            table: Mutex::default(),
            room: Notify::new(),
            started: Instant::now(),
            uploads: Memory::new(uploads),
            responses: Memory::new(responses),
        })
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Admits a connection from an address, `None` on a Unix socket. Closes another one for it if there are too many, and
    /// waits if all of them are worked for.
    pub async fn admit(self: &Arc<Self>, addr: Option<IpAddr>) -> Admitted {
        let client = addr.and_then(client);
        loop {
            let room = self.room.notified();
            if let Some(admitted) = self.try_admit(client) {
                return admitted;
            }
            room.await;
        }
    }

    fn try_admit(self: &Arc<Self>, client: Client) -> Option<Admitted> {
        let mut table = self.table();
        let mut counts: HashMap<Client, usize> = HashMap::new();
        table.open.values().for_each(|connection| *counts.entry(connection.client).or_default() += 1);
        let of_client = counts.get(&client).copied().unwrap_or_default();
        // The client that has most connections gives one up.
        let victim = match client {
            Some(_) if of_client >= MAX_CONNECTIONS_OF_CLIENT => Some(table.idlest(|other| other == client)?),
            _ if table.open.len() >= MAX_CONNECTIONS => {
                let idle = |other: &Client| table.idlest(|one| one == *other).map(|id| (counts[other], id));
                Some(counts.keys().filter_map(idle).max()?.1)
            }
            _ => None,
        };
        if let Some(closed) = victim.and_then(|id| table.open.remove(&id)) {
            closed.closed.notify_one();
        }
        let id = table.next;
        table.next += 1;
        let connection = Arc::new(Connection {
            id,
            client,
            listener: self.clone(),
            progress: AtomicU64::new(self.now()),
            work: AtomicUsize::new(0),
            closed: Notify::new(),
        });
        table.open.insert(id, connection.clone());
        Some(Admitted(connection))
    }

    /// Returns the milliseconds since the listener was started.
    fn now(&self) -> u64 {
        self.started.elapsed().as_millis() as u64
    }
}

impl Table {
    /// Returns the connection that nobody works for and that has made no progress for the longest time.
    fn idlest(&self, of: impl Fn(Client) -> bool) -> Option<u64> {
        let idle = self.open.values().filter(|connection| of(connection.client) && !connection.is_worked_for());
        idle.min_by_key(|connection| (connection.progress.load(Ordering::Relaxed), connection.id)).map(|idle| idle.id)
    }
}

/// A connection. Handlers get it as an extension of the request.
#[derive(Debug)]
pub(super) struct Connection {
    id: u64,
    client: Client,
    pub listener: Arc<Listener>,
    /// Time of the last byte received or sent, in milliseconds since the start of the listener.
    progress: AtomicU64,
    /// Number of things that the server does for it.
    work: AtomicUsize,
    closed: Notify,
}

impl Connection {
    /// Keeps the connection from being closed for another one, while the result exists. For work that takes long only
    /// because of the client, this would be wrong.
    pub fn work(self: &Arc<Self>) -> Working {
        self.work.fetch_add(1, Ordering::Relaxed);
        Working { connection: self.clone(), counted: None }
    }

    /// Begins work that may take long.
    ///
    /// # Errors
    /// If there is too much of it.
    pub fn begin(self: &Arc<Self>, work: Work) -> Result<Working, Problem> {
        let (most, most_of_client) = work.limits();
        let mut table = self.listener.table();
        let all: usize = table.work.iter().filter(|((other, _), _)| *other == work).map(|(_, count)| count).sum();
        let own = table.work.get(&(work, self.client)).copied().unwrap_or_default();
        if all >= most || self.client.is_some() && own >= most_of_client {
            return Err(Problem::new(StatusCode::TOO_MANY_REQUESTS, work.refusal()));
        }
        table.work.insert((work, self.client), own + 1);
        self.work.fetch_add(1, Ordering::Relaxed);
        Ok(Working { connection: self.clone(), counted: Some(work) })
    }

    fn is_worked_for(&self) -> bool {
        self.work.load(Ordering::Relaxed) > 0
    }

    fn progressed(&self) {
        self.progress.store(self.listener.now(), Ordering::Relaxed);
    }
}

/// Work of the server for a connection, until it is dropped.
#[derive(Debug)]
pub(super) struct Working {
    connection: Arc<Connection>,
    counted: Option<Work>,
}

impl Drop for Working {
    fn drop(&mut self) {
        let Connection { client, listener, work, .. } = &*self.connection;
        work.fetch_sub(1, Ordering::Relaxed);
        if let Some(work) = self.counted {
            let mut table = listener.table();
            if let Some(count) = table.work.get_mut(&(work, *client)) {
                *count -= 1;
                if *count == 0 {
                    table.work.remove(&(work, *client));
                }
            }
        }
        // The request is over.
        self.connection.progressed();
        listener.room.notify_one();
    }
}

/// An admitted connection. Dropping it makes room for another.
#[derive(Debug)]
pub(super) struct Admitted(Arc<Connection>);

impl Admitted {
    /// Returns the connection, for handlers.
    pub fn connection(&self) -> Arc<Connection> {
        self.0.clone()
    }

    /// Waits until the connection must be closed for another one.
    pub async fn closed(&self) {
        self.0.closed.notified().await;
    }

    /// Wraps the stream of this connection, to notice progress and stalls.
    pub fn watch<S>(&self, stream: S) -> WatchedStream<S> {
        WatchedStream { stream: Box::pin(stream), connection: self.connection(), stalled: None }
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        let Connection { id, listener, .. } = &*self.0;
        listener.table().open.remove(id);
        listener.room.notify_one();
    }
}

/// A bounded amount of memory, in units of 1 KiB.
#[derive(Clone, Debug)]
pub(super) struct Memory {
    free: Arc<Semaphore>,
    size: usize,
}

/// Memory that is taken, until this is dropped.
pub(super) type Taken = OwnedSemaphorePermit;

impl Memory {
    fn new(bytes: usize) -> Self {
        let size = bytes.div_ceil(1024);
        Self { free: Arc::new(Semaphore::new(size)), size }
    }

    /// Takes memory if enough of it is free. More than there is at all counts as all of it.
    pub fn take(&self, bytes: usize) -> Option<Taken> {
        // Cannot truncate: no memory here has 4 TiB.
        let units = bytes.div_ceil(1024).min(self.size) as u32;
        self.free.clone().try_acquire_many_owned(units).ok()
    }
}

/// A stream that notices progress, and whose writes fail with a time-out if the other end accepts nothing for
/// [`STALL_TIMEOUT`].
pub(super) struct WatchedStream<S> {
    stream: Pin<Box<S>>,
    connection: Arc<Connection>,
    stalled: Option<Pin<Box<Sleep>>>,
}

impl<S> WatchedStream<S> {
    /// Returns a write's result, or an error if writes have been pending for too long.
    fn check<T>(&mut self, cx: &mut Context<'_>, result: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if result.is_ready() {
            if self.stalled.take().is_some() {
                self.connection.progressed();
            }
            return result;
        }
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(sleep(STALL_TIMEOUT)));
        match stalled.as_mut().poll(cx) {
            Poll::Ready(()) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl<S: AsyncRead> AsyncRead for WatchedStream<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        // No limit here: hyper limits the time for headers and the handlers that for bodies. In between, a client that
        // waits for a long response has nothing to send.
        let before = buffer.filled().len();
        let result = self.stream.as_mut().poll_read(cx, buffer);
        if buffer.filled().len() > before {
            self.connection.progressed();
        }
        result
    }
}

impl<S: AsyncWrite> AsyncWrite for WatchedStream<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let result = self.stream.as_mut().poll_write(cx, bytes);
        self.check(cx, result)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = self.stream.as_mut().poll_write_vectored(cx, parts);
        self.check(cx, result)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = self.stream.as_mut().poll_flush(cx);
        self.check(cx, result)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = self.stream.as_mut().poll_shutdown(cx);
        self.check(cx, result)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addr(text: &str) -> Option<IpAddr> {
        Some(text.parse().unwrap())
    }

    async fn is_closed(admitted: &Admitted) -> bool {
        tokio::time::timeout(Duration::from_millis(1), admitted.closed()).await.is_ok()
    }

    async fn fill(listener: &Arc<Listener>, from: &str, count: usize) -> Vec<Admitted> {
        let mut open = Vec::new();
        for _ in 0..count {
            open.push(listener.admit(addr(from)).await);
            tokio::time::advance(Duration::from_millis(10)).await;
        }
        open
    }

    #[tokio::test(start_paused = true)]
    async fn the_idlest_connection_of_the_same_client_goes_first() {
        let listener = Listener::new(0, 0);
        let other = listener.admit(addr("10.0.0.2")).await;
        let open = fill(&listener, "10.0.0.1", MAX_CONNECTIONS_OF_CLIENT).await;
        // The first is worked for, and the second has made progress.
        let _work = open[0].connection().work();
        open[1].connection().progressed();
        let _new = listener.admit(addr("10.0.0.1")).await;
        for (n, connection) in open.iter().enumerate().take(4) {
            assert_eq!(is_closed(connection).await, n == 2, "{n}");
        }
        assert!(!is_closed(&other).await);
    }

    #[tokio::test(start_paused = true)]
    async fn a_full_listener_takes_from_the_client_with_most_connections() {
        let listener = Listener::new(0, 0);
        let few = fill(&listener, "10.0.0.2", 40).await;
        let many = fill(&listener, "10.0.0.1", MAX_CONNECTIONS - 40).await;
        let _new = listener.admit(addr("10.0.0.3")).await;
        assert!(is_closed(&many[0]).await);
        for connection in few.iter().chain(&many[1..]) {
            assert!(!is_closed(connection).await);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn files_and_adds_leave_connections_for_others() {
        let listener = Listener::new(0, 0);
        let (mut open, mut work) = (Vec::new(), Vec::new());
        for n in 0..200 {
            let admitted = listener.admit(addr(&format!("10.0.0.{n}"))).await;
            let kind = if n % 2 == 0 { Work::File } else { Work::Add };
            work.extend(admitted.connection().begin(kind));
            open.push(admitted);
        }
        assert_eq!(work.len(), Work::File.limits().0 + Work::Add.limits().0);
        let [a, b] = [listener.admit(addr("10.0.1.1")).await, listener.admit(addr("10.0.1.2")).await];
        let refused = a.connection().begin(Work::File).unwrap_err();
        assert_eq!(refused.status, StatusCode::TOO_MANY_REQUESTS);
        work.clear();
        // One client gets a share.
        let own = std::iter::repeat_with(|| a.connection().begin(Work::File)).take(99).filter(Result::is_ok);
        let own: Vec<_> = own.collect();
        assert_eq!(own.len(), Work::File.limits().1);
        assert!(b.connection().begin(Work::File).is_ok());
        assert!(listener.table().open.len() <= MAX_CONNECTIONS);
        drop((open, work, own, a, b));
        let table = listener.table();
        assert!(table.open.is_empty() && table.work.is_empty(), "{table:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_waits_while_all_others_are_worked_for() {
        let listener = Listener::new(0, 0);
        let mut open = Vec::new();
        for n in 0..MAX_CONNECTIONS {
            open.push(listener.admit(addr(&format!("10.0.0.{n}"))).await);
        }
        let mut work: Vec<_> = open.iter().map(|admitted| admitted.connection().work()).collect();
        let soon = Duration::from_secs(1);
        assert!(tokio::time::timeout(soon, listener.admit(addr("10.0.1.1"))).await.is_err());
        let waiting = tokio::spawn({
            let listener = listener.clone();
            async move { listener.admit(addr("10.0.1.1")).await }
        });
        tokio::time::sleep(soon).await;
        work.remove(5);
        tokio::time::timeout(soon, waiting).await.unwrap().unwrap();
        assert!(is_closed(&open[5]).await);
    }

    #[test]
    fn clients_are_networks() {
        let same = |a: &str, b: &str| client(a.parse().unwrap()) == client(b.parse().unwrap());
        assert!(same("2001:db8::1", "2001:db8::ffff:1") && !same("2001:db8::1", "2001:db8:0:1::1"));
        assert!(same("::ffff:10.0.0.1", "10.0.0.1") && !same("10.0.0.1", "10.0.0.2"));
        assert!(!same("::1", "127.0.0.1"));
    }

    #[test]
    fn memory_is_bounded_in_sum() {
        let memory = Memory::new(10 << 10);
        let all = memory.take(1 << 30).unwrap();
        assert!(memory.take(1).is_none() && memory.take(0).is_some());
        drop(all);
        let (_a, _b) = (memory.take(5 << 10).unwrap(), memory.take(4097).unwrap());
        assert!(memory.take(1).is_none());
    }
}
