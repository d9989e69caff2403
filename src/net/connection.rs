//! The two tasks of a connection: one decodes bytes into messages, one encodes messages into bytes.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep_until, timeout};

use crate::wire::{self, Decoder, Message, Request, WireError};

use super::outbox::{self, Outbox, Queue};
use super::outgoing::{Outgoing, WRITE_LEN};
use super::stream::{ReadHalf, WriteHalf};
use super::{Handshaken, Limits, RateLimit};

/// Initial size of a receive buffer, in bytes: small, so that hundreds of idle peers cost little.
const BUFFER_MIN: usize = 16 * 1024;
/// Size to which the receive buffer of a fast peer grows, in bytes.
const BUFFER_MAX: usize = 128 * 1024;

/// Messages per batch to the driver. A flood of tiny messages then neither grows the inbox nor occupies the driver for
/// long.
const BATCH: usize = 512;

/// Messages other than blocks accepted from one peer per second: enough requests for 300 MB/s.
const MAX_MESSAGE_RATE: u64 = 20_000;

/// Bytes of small messages that are collected before a write.
const WRITE_BATCH: usize = 64 * 1024;

/// Reads shorter than this many bytes come from a peer that may be waiting for an acknowledgement; see `receive`.
const QUICK_ACK_BELOW: usize = BUFFER_MAX / 2;

/// Time without any data after which a peer is considered gone. Keep-alives come every two minutes (BEP 3).
const IDLE_LIMIT: Duration = Duration::from_secs(240);

/// Time after which a peer that accepts no data is considered gone.
const WRITE_LIMIT: Duration = Duration::from_secs(60);

/// Time within which a peer must acknowledge a probe. Several round trips, and several losses on a good line.
const PROBE_LIMIT: Duration = Duration::from_secs(4);

/// An event of a connection.
#[derive(Debug)]
pub enum Incoming {
    /// Received messages, in order.
    Messages(Vec<Message>),
    /// These blocks were written to the socket.
    Sent(Vec<Request>),
    /// This number of extension messages was written to the socket.
    ExtensionsSent(usize),
    /// The connection has ended, for this reason. No event follows.
    Closed(String),
}

/// The driver's handle of a connection. Dropping it closes the connection.
#[derive(Debug)]
pub struct Connection {
    outbox: Outbox,
    probe: Arc<Notify>,
    /// Nothing is read from the peer.
    held: watch::Sender<bool>,
    tasks: Vec<AbortHandle>,
}

impl Connection {
    /// Starts the two tasks. They send their events to `inbox` under `key`.
    pub fn start<K: Copy + Send + 'static>(
        peer: Handshaken,
        pieces: u32,
        limits: Arc<Limits>,
        key: K,
        inbox: mpsc::Sender<(K, Incoming)>,
    ) -> Self {
        let (read, write) = peer.stream.into_split();
        let (outbox, queue) = outbox::channel();
        let decoder = Decoder::new(pieces);
        let probe = Arc::new(Notify::new());
        let (held, may_read) = watch::channel(false);
        let reading = tokio::spawn({
            let (limits, inbox) = (limits.clone(), inbox.clone());
            async move {
                let ended = receive(read, decoder, may_read, &limits, key, &inbox).await;
                let why = ended.map_or_else(|error| error.to_string(), |()| "closed by the peer".into());
                let _ = inbox.send((key, Incoming::Closed(why))).await;
            }
        });
        let probes = probe.clone();
        let writing = tokio::spawn(async move {
            if let Err(error) = transmit(write, queue, &probes, &limits, key, &inbox).await {
                let _ = inbox.send((key, Incoming::Closed(error.to_string()))).await;
            }
        });
        Self { outbox, probe, held, tasks: vec![reading.abort_handle(), writing.abort_handle()] }
    }

    /// Creates a connection without a socket. `spawn` starts a task that receives the messages to the peer and acts as
    /// the peer. The task is aborted when the connection is dropped.
    pub fn without_socket(spawn: impl FnOnce(mpsc::Receiver<Vec<Message>>) -> AbortHandle) -> Self {
        let (outbox, queue) = Outbox::unbounded_by_messages();
        Self { outbox, probe: Arc::default(), held: watch::Sender::new(false), tasks: vec![spawn(queue)] }
    }

    /// Sends a keep-alive. If the peer's machine does not acknowledge it within some seconds, the connection is closed:
    /// it died while we slept.
    pub fn probe(&self) {
        self.probe.notify_one();
    }

    /// Stops reading from the peer, or reads on. What was read before still arrives.
    pub fn hold(&self, hold: bool) {
        self.held.send_replace(hold);
    }

    /// Returns the queue of messages to this peer.
    pub fn outbox(&self) -> &Outbox {
        &self.outbox
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.tasks.iter().for_each(AbortHandle::abort);
    }
}

#[derive(Debug, thiserror::Error)]
enum ReceiveError {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("{0}")]
    Wire(#[from] WireError),
    #[error("no data for {} s", IDLE_LIMIT.as_secs())]
    Idle,
}

async fn receive<K: Copy>(
    mut socket: ReadHalf,
    mut decoder: Decoder,
    mut held: watch::Receiver<bool>,
    limits: &Limits,
    key: K,
    inbox: &mpsc::Sender<(K, Incoming)>,
) -> Result<(), ReceiveError> {
    let (mut buffer, mut want) = (BytesMut::new(), BUFFER_MIN);
    let message_limit = RateLimit::new(MAX_MESSAGE_RATE);
    loop {
        loop {
            if held.wait_for(|held| !held).await.is_err() {
                return Ok(());
            }
            let mut messages = Vec::new();
            while messages.len() < BATCH
                && let Some(message) = decoder.decode(&mut buffer)?
            {
                messages.push(message);
            }
            if messages.is_empty() {
                break;
            }
            let small = messages.iter().filter(|message| !matches!(message, Message::Piece { .. })).count();
            if inbox.send((key, Incoming::Messages(messages))).await.is_err() {
                return Ok(());
            }
            if small > 0 {
                message_limit.take(small).await;
            }
        }
        make_room(&mut buffer, want);
        let room = buffer.capacity() - buffer.len();
        let n = timeout(IDLE_LIMIT, socket.read_buf(&mut buffer)).await.map_err(|_| ReceiveError::Idle)??;
        match n {
            0 => return Ok(()),
            n if n >= room => want = (want * 2).min(BUFFER_MAX),
            n if n < want / 8 => want = (want / 2).max(BUFFER_MIN),
            _ => {}
        }
        // A sender that uses Nagle's algorithm holds back the end of a block until we acknowledge what came before, and
        // the kernel may delay the acknowledgement by up to 40 ms (measured: 25 of 390 ms until a player's first
        // piece). The option is reset after each use. A fast peer keeps the pipe full and does not need it.
        if n < QUICK_ACK_BELOW {
            socket.acknowledge();
        }
        limits.down.take(n).await;
    }
}

/// Makes room to read: up to `want` bytes including those in the buffer, or a little more. Memory that still belongs to
/// blocks at the driver is not reused. (`reserve` would double the buffer instead.)
fn make_room(buffer: &mut BytesMut, want: usize) {
    let more = want.saturating_sub(buffer.len()).max(BUFFER_MIN);
    if !buffer.try_reclaim(more) {
        let mut new = BytesMut::with_capacity(buffer.len() + more);
        new.extend_from_slice(buffer);
        *buffer = new;
    }
}

async fn transmit<K: Copy>(
    mut socket: WriteHalf,
    mut queue: Queue,
    probes: &Notify,
    limits: &Limits,
    key: K,
    inbox: &mpsc::Sender<(K, Incoming)>,
) -> io::Result<()> {
    // Blocks wait here for the upload limit, so that our own requests never wait behind them. The swarm bounds their
    // number.
    let mut blocks: VecDeque<(Request, Bytes)> = VecDeque::new();
    let mut pending = BytesMut::new();
    // While a probe of a TCP connection is under way: when it ends.
    let mut probe_ends = None;
    loop {
        let next_len = blocks.front().map_or(0, |(_, data)| data.len());
        tokio::select! {
            biased;
            batch = queue.recv() => {
                let Some(batch) = batch else { return Ok(()) };
                let mut extensions = sort(batch, &mut pending, &mut blocks);
                while pending.len() < WRITE_BATCH && let Some(batch) = queue.try_recv() {
                    extensions += sort(batch, &mut pending, &mut blocks);
                }
                in_time(socket.write_all(&mut pending)).await?;
                if extensions > 0 {
                    let _ = inbox.send((key, Incoming::ExtensionsSent(extensions))).await;
                }
            }
            () = socket.keep_alive_due() => {
                wire::encode(&Message::KeepAlive, &mut pending);
                in_time(socket.write_all(&mut pending)).await?;
            }
            () = probes.notified() => {
                wire::encode(&Message::KeepAlive, &mut pending);
                socket.limit_acknowledgement(Some(PROBE_LIMIT));
                probe_ends = Some(Instant::now() + PROBE_LIMIT * 2);
                in_time(socket.write_all(&mut pending)).await?;
                let acknowledged = timeout(PROBE_LIMIT, socket.acknowledged()).await;
                acknowledged.map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "the peer does not answer any more"))??;
            }
            () = sleep_until(probe_ends.unwrap_or_else(Instant::now)), if probe_ends.is_some() => {
                socket.limit_acknowledgement(None);
                probe_ends = None;
            }
            () = limits.up.take(next_len), if !blocks.is_empty() => {
                let mut outgoing = Outgoing::new(&mut pending);
                while let Some((request, data)) = blocks.pop_front() {
                    outgoing.push(request, data);
                    // Under a limit other connections have their turn in between.
                    if outgoing.remaining() >= WRITE_LEN || limits.up.rate() != 0 {
                        break;
                    }
                }
                socket.encrypt(&mut outgoing);
                while outgoing.has_remaining() {
                    in_time(socket.write_some(&mut outgoing)).await?;
                    let sent = outgoing.take_written();
                    if !sent.is_empty() {
                        let _ = inbox.send((key, Incoming::Sent(sent))).await;
                    }
                }
            }
        }
    }
}

/// Encodes the messages of a batch, except its blocks. Returns the number of extension messages among them.
fn sort(batch: Vec<Message>, small: &mut BytesMut, blocks: &mut VecDeque<(Request, Bytes)>) -> usize {
    let mut extensions = 0;
    for message in batch {
        extensions += usize::from(matches!(message, Message::Extended { .. }));
        match message {
            Message::Piece { piece, begin, data } => {
                blocks.push_back((Request { piece, begin, length: data.len() as u32 }, data));
            }
            message => wire::encode(&message, small),
        }
    }
    extensions
}

async fn in_time(write: impl Future<Output = io::Result<()>>) -> io::Result<()> {
    let written = timeout(WRITE_LIMIT, write).await;
    written.map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "the peer accepts no data"))?
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};

    use super::*;
    use crate::metainfo::InfoHash;
    use crate::net::OutboxFull;
    use crate::net::stream::{Socket, Stream};
    use crate::net::{Handshaken, utp};
    use crate::wire::{Handshake, PeerId};

    const PIECES: u32 = 100;

    type Inbox = mpsc::Receiver<((), Incoming)>;

    /// Returns a connection, its inbox, and the socket of its other end.
    async fn connection(limits: Limits) -> (Connection, Inbox, TcpStream) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let addr = listener.local_addr().unwrap();
        let (ours, theirs) = tokio::join!(TcpStream::connect(addr), listener.accept());
        let stream = Stream::new(Socket::Tcp(ours.unwrap()), None, BytesMut::new());
        let their_handshake = Handshake::new(InfoHash([7; 20]), PeerId([2; 20]));
        let ours = Handshaken { stream, addr, theirs: their_handshake };
        let (events, inbox) = mpsc::channel(4);
        let connection = Connection::start(ours, PIECES, Arc::new(limits), (), events);
        (connection, inbox, theirs.unwrap().0)
    }

    fn encoded(messages: &[Message]) -> BytesMut {
        let mut bytes = BytesMut::new();
        messages.iter().for_each(|message| wire::encode(message, &mut bytes));
        bytes
    }

    fn block(piece: u32) -> Message {
        Message::Piece { piece, begin: 0, data: vec![piece as u8; 16384].into() }
    }

    #[test]
    fn receive_buffers_are_no_larger_than_wanted() {
        let (mut buffer, mut blocks) = (BytesMut::new(), Vec::new());
        for round in 0..200_usize {
            make_room(&mut buffer, BUFFER_MAX);
            let room = buffer.capacity() - buffer.len();
            assert!(room >= BUFFER_MIN && buffer.capacity() <= BUFFER_MAX + 2 * BUFFER_MIN);
            buffer.resize(buffer.len() + (round * 7919) % room, round as u8);
            while buffer.len() >= 16384 {
                blocks.push(buffer.split_to(16384));
            }
            // The driver is sometimes behind and sometimes not.
            blocks.truncate(if round % 3 == 0 { 0 } else { 50 });
        }
    }

    #[tokio::test]
    async fn messages_arrive_in_order_and_in_small_batches() {
        let (_connection, mut inbox, mut peer) = connection(Limits::new(0, 0)).await;
        let mut sent = vec![Message::KeepAlive; 3 * BATCH];
        sent.extend([Message::Unchoke, block(5), Message::Have(99)]);
        let bytes = encoded(&sent);
        let sending = tokio::spawn(async move {
            peer.write_all(&bytes).await.unwrap();
            peer
        });
        let mut received = Vec::new();
        while received.len() < sent.len() {
            let Some(((), Incoming::Messages(batch))) = inbox.recv().await else { panic!("closed") };
            assert!(batch.len() <= BATCH);
            received.extend(batch);
        }
        assert_eq!(received, sent);
        drop(sending.await.unwrap());
        assert!(matches!(inbox.recv().await, Some(((), Incoming::Closed(_)))));
    }

    #[tokio::test]
    async fn invalid_data_closes_the_connection_with_a_reason() {
        let (_connection, mut inbox, mut peer) = connection(Limits::new(0, 0)).await;
        peer.write_all(&[0xFF; 64]).await.unwrap();
        let Some(((), Incoming::Closed(why))) = inbox.recv().await else { panic!("not closed") };
        assert!(!why.is_empty());
    }

    #[tokio::test]
    async fn small_messages_overtake_blocks_that_wait_for_the_limit() {
        // The first block passes at once; the next one would wait for hours.
        let (connection, mut inbox, mut peer) = connection(Limits::new(0, 1)).await;
        connection.outbox().send(vec![block(1), block(2)]).unwrap();
        let sent = inbox.recv().await;
        assert!(matches!(sent, Some(((), Incoming::Sent(sent))) if matches!(sent[..], [Request { piece: 1, .. }])));
        connection.outbox().send(vec![Message::Have(3)]).unwrap();
        let mut got = vec![0; encoded(&[block(1), Message::Have(3)]).len()];
        peer.read_exact(&mut got).await.unwrap();
        assert_eq!(got, encoded(&[block(1), Message::Have(3)]));
    }

    #[tokio::test]
    async fn a_stalled_peer_fills_its_outbox_and_no_message_is_lost() {
        let (connection, mut inbox, mut peer) = connection(Limits::new(0, 0)).await;
        tokio::spawn(async move { while inbox.recv().await.is_some() {} });
        let ballast = Message::Extended { id: 1, payload: vec![0; 65_536].into() };
        let mut sent = 0;
        let refused = loop {
            match connection.outbox().send(vec![Message::Have(sent), ballast.clone()]) {
                Ok(()) => sent += 1,
                Err(OutboxFull(back)) => break back,
            }
            tokio::task::yield_now().await;
        };
        assert_eq!(refused, [Message::Have(sent), ballast]);
        // As soon as the peer reads, it gets all accepted messages, and the outbox accepts more.
        let reading = tokio::spawn(async move {
            let (mut bytes, mut decoder, mut haves) = (BytesMut::new(), Decoder::new(u32::MAX), 0);
            while haves <= sent {
                bytes.reserve(65_536);
                peer.read_buf(&mut bytes).await.unwrap();
                while let Some(message) = decoder.decode(&mut bytes).unwrap() {
                    if let Message::Have(piece) = message {
                        assert_eq!(piece, haves);
                        haves += 1;
                    }
                }
            }
        });
        let mut refused = refused;
        while let Err(OutboxFull(back)) = connection.outbox().send(refused) {
            refused = back;
            tokio::task::yield_now().await;
        }
        reading.await.unwrap();
    }

    /// The window closes when less than a segment is free, at any of that many offsets. At some of them it did not
    /// reopen.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_closed_utp_window_reopens() {
        let bind = crate::route::Bind::Address(Ipv4Addr::LOCALHOST.into());
        let (ours, theirs) = (utp::Utp::bind(0, &bind).unwrap().0, utp::Utp::bind(0, &bind).unwrap().0);
        let (ours, theirs) = (ours.endpoints().next().unwrap().clone(), theirs.endpoints().next().unwrap().clone());
        let addr = theirs.bind_addr();
        for ahead in (0..1452).step_by(181) {
            let (called, caller) = tokio::join!(utp::connect(&ours, addr), theirs.accept());
            let stream = Stream::new(Socket::Utp(called.unwrap()), None, BytesMut::new());
            let their_handshake = Handshake::new(InfoHash([7; 20]), PeerId([2; 20]));
            let peer = Handshaken { stream, addr, theirs: their_handshake };
            let (events, mut inbox) = mpsc::channel(1);
            let connection = Connection::start(peer, PIECES, Arc::new(Limits::new(0, 0)), (), events);
            // A uTP connection is established only after the dialing side has sent data.
            connection.outbox().send(vec![Message::Interested]).unwrap();
            let (_read, mut write) = caller.unwrap().split();
            const BLOCKS: usize = 2 * utp::RECEIVE_BUFFER.get() / 16384;
            let sent = Arc::new(std::sync::atomic::AtomicUsize::new(0));
            let sending = tokio::spawn({
                let sent = sent.clone();
                async move {
                    write.write_all(&encoded(&[Message::Extended { id: 1, payload: vec![0; ahead].into() }])).await?;
                    for piece in 0..BLOCKS {
                        write.write_all(&encoded(&[block(piece as u32)])).await?;
                        sent.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                    }
                    io::Result::Ok(write)
                }
            });
            // Do not read until the peer cannot send any more.
            let mut before = usize::MAX;
            while std::mem::replace(&mut before, sent.load(std::sync::atomic::Ordering::Relaxed)) != before {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            assert!(before < BLOCKS, "the buffers took all");
            let mut blocks = 0;
            while blocks < BLOCKS {
                let next = timeout(Duration::from_secs(30), inbox.recv()).await;
                let Ok(Some(((), Incoming::Messages(batch)))) = next else {
                    panic!("{blocks} of {BLOCKS} blocks behind {ahead} bytes, then {next:?}")
                };
                blocks += batch.iter().filter(|message| matches!(message, Message::Piece { .. })).count();
            }
            drop(sending.await.unwrap().unwrap());
        }
    }

    /// The other end is a socket with the library's defaults, as in other programs that use it: it hangs up on a peer
    /// that is silent for ten seconds.
    #[tokio::test]
    async fn an_idle_utp_connection_lasts() {
        let bind = crate::route::Bind::Address(Ipv4Addr::LOCALHOST.into());
        let ours = utp::Utp::bind(0, &bind).unwrap().0;
        let ours = ours.endpoints().next().unwrap().clone();
        let theirs = librqbit_utp::UtpSocketUdp::new_udp((Ipv4Addr::LOCALHOST, 0).into());
        let theirs = theirs.await.unwrap();
        let addr = theirs.bind_addr();
        let (called, caller) = tokio::join!(utp::connect(&ours, addr), theirs.accept());
        let stream = Stream::new(Socket::Utp(called.unwrap()), None, BytesMut::new());
        let peer = Handshaken { stream, addr, theirs: Handshake::new(InfoHash([7; 20]), PeerId([2; 20])) };
        let (events, mut inbox) = mpsc::channel(1);
        let connection = Connection::start(peer, PIECES, Arc::new(Limits::new(0, 0)), (), events);
        connection.outbox().send(vec![Message::Interested]).unwrap();
        let mut peer = caller.unwrap();
        let mut next = async |peer: &mut librqbit_utp::UtpStream, message| {
            peer.write_all(&encoded(&[message])).await.unwrap();
            match timeout(Duration::from_secs(5), inbox.recv()).await {
                Ok(Some(((), Incoming::Messages(messages)))) => messages,
                other => panic!("{other:?}"),
            }
        };
        // The last message received starts the timers of both ends.
        assert_eq!(next(&mut peer, Message::Have(1)).await, [Message::Have(1)]);
        tokio::time::sleep(utp::KEEP_ALIVE * 3).await;
        assert_eq!(next(&mut peer, Message::Have(2)).await, [Message::Have(2)]);
        let silence = [Message::Interested, Message::KeepAlive, Message::KeepAlive];
        let mut received = vec![0; encoded(&silence).len()];
        peer.read_exact(&mut received).await.unwrap();
        assert_eq!(received, encoded(&silence));
    }

    /// A peer behind a relay of datagrams, which a router that forgets the flow resembles.
    #[tokio::test]
    async fn a_probe_closes_a_dead_utp_connection_and_leaves_a_live_one() {
        use tokio::net::UdpSocket;
        let bind = crate::route::Bind::Address(Ipv4Addr::LOCALHOST.into());
        let (ours, theirs) = (utp::Utp::bind(0, &bind).unwrap().0, utp::Utp::bind(0, &bind).unwrap().0);
        let (ours, theirs) = (ours.endpoints().next().unwrap().clone(), theirs.endpoints().next().unwrap().clone());
        let (near, far) =
            (UdpSocket::bind("127.0.0.1:0").await.unwrap(), UdpSocket::bind("127.0.0.1:0").await.unwrap());
        let (addr, caller, callee) = (near.local_addr().unwrap(), ours.bind_addr(), theirs.bind_addr());
        let relay = tokio::spawn(async move {
            let (mut one, mut other) = ([0; 2048], [0; 2048]);
            loop {
                tokio::select! {
                    Ok((n, _)) = near.recv_from(&mut one) => far.send_to(&one[..n], callee).await.unwrap(),
                    Ok((n, _)) = far.recv_from(&mut other) => near.send_to(&other[..n], caller).await.unwrap(),
                };
            }
        });
        let (called, _peer) = tokio::join!(utp::connect(&ours, addr), theirs.accept());
        let stream = Stream::new(Socket::Utp(called.unwrap()), None, BytesMut::new());
        let peer = Handshaken { stream, addr, theirs: Handshake::new(InfoHash([7; 20]), PeerId([2; 20])) };
        let (events, mut inbox) = mpsc::channel(1);
        let connection = Connection::start(peer, PIECES, Arc::new(Limits::new(0, 0)), (), events);
        connection.outbox().send(vec![Message::Interested]).unwrap();
        connection.probe();
        assert!(timeout(PROBE_LIMIT * 3 / 2, inbox.recv()).await.is_err(), "it is alive");
        relay.abort();
        connection.probe();
        let closed = timeout(PROBE_LIMIT * 3 / 2, inbox.recv()).await;
        assert!(matches!(closed, Ok(Some(((), Incoming::Closed(_))))), "{closed:?}");
    }

    #[tokio::test]
    async fn dropping_a_connection_closes_it() {
        let (connection, inbox, mut peer) = connection(Limits::new(0, 0)).await;
        drop((connection, inbox));
        assert_eq!(peer.read(&mut [0; 16]).await.unwrap(), 0);
    }
}
