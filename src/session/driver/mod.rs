//! The task that owns one torrent's [`Swarm`], and does for it everything that is I/O.
//!
//! One loop: wait for any input, pass everything that is there to the swarm, carry out its actions, send each peer its
//! messages. The task never waits on a peer or a disk: it only tries to put messages into outboxes, and hashing and
//! disk work go to the blocking pool. It knows no protocol and makes no scheduling decision.
//!
//! | file | owns |
//! |---|---|
//! | `start` | building the task from a session's resources |
//! | `connections` | dialing, new connections, messages in and out |
//! | `disk` | hashing pieces, reading blocks for uploads |
//! | `maintenance` | timers: statistics, shared limits, seeding limits |
//! | `report` | the torrent at one moment, for people |
//! | `partial` | the bytes of unfinished pieces |

mod connections;
mod disk;
mod maintenance;
mod partial;
mod report;
pub(super) mod start;

use std::collections::{HashMap, HashSet, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::{mpsc, watch};

use crate::discovery::{AnnouncedPort, Dht, Transferred, Want};
use crate::metainfo::{Metainfo, PieceIndex, Verdict};
use crate::net::{Connection, DialError, Dialer, Handshaken, Incoming, Limits, Transport};
use crate::store::TorrentStore;
use crate::swarm::{Action, Direction, Event, PeerKey, PeerSource, Stats, Swarm};
use crate::webseed::WebSeed;
use crate::wire::{Handshake, Message, Request};

use super::awake::AwakeClock;
use super::queue::Place;
use super::registry::{Call, IncomingConnections};
use super::seeding::Seeding;
use super::shares::{Allowed, Share};
use super::sources::{Found, Sources};
use super::torrent::Command;

use partial::Partials;

/// Maximum number of inputs handled before messages are sent: one turn serves many messages, and answers do not wait
/// for long.
const MAX_INPUTS_PER_TURN: usize = 32;

/// How long trackers may take to acknowledge that we stop.
const STOP_LIMIT: Duration = Duration::from_secs(2);

/// The result of work done outside the task.
#[derive(Debug)]
enum Done {
    /// An address was dialed. The connection is boxed to keep the channel small.
    Dialed(SocketAddr, Result<Box<Handshaken>, DialError>),
    /// A piece was hashed, and stored if it is good.
    Checked { piece: PieceIndex, verdict: Verdict, digests: Vec<u64> },
    /// The metadata was loaded, or could not be read.
    MetadataLoaded,
    /// A block was read for an upload; `None`: the store does not have it.
    Read { peer: PeerKey, request: Request, data: Option<Bytes> },
}

/// Everything that the task waits for.
struct Inputs {
    inbox: mpsc::Receiver<(PeerKey, Incoming)>,
    done: mpsc::Receiver<Done>,
    commands: mpsc::Receiver<Command>,
    incoming: IncomingConnections,
    found: Found,
    /// Unbounded, because the store must not wait while it evicts; holds each piece at most once between two turns.
    evicted: mpsc::UnboundedReceiver<PieceIndex>,
    /// Changes each time the process has slept.
    sleeps: watch::Receiver<u64>,
}

/// One connection.
struct Peer {
    connection: Connection,
    addr: SocketAddr,
    transport: Transport,
    encrypted: bool,
    /// Messages of this turn, sent together at its end. Those for which the outbox has no room wait here for a later
    /// turn.
    outgoing: Vec<Message>,
    /// The swarm takes no message of this peer now.
    held: bool,
    /// Messages that had come before the connection was held. A few batches at most.
    backlog: VecDeque<Message>,
}

pub(super) struct Driver {
    swarm: Swarm,
    store: Arc<TorrentStore>,
    metainfo: Arc<Metainfo>,
    /// Our handshake.
    handshake: Handshake,
    /// The port at which others can reach us.
    announced: AnnouncedPort,
    /// The session may serve others.
    upload: bool,
    dialer: Arc<Dialer>,
    /// Whether somebody reads, so that dials do not wait behind those of other torrents.
    hurried: watch::Sender<bool>,
    limits: Arc<Limits>,
    /// `None` for a private torrent, too.
    dht: Option<Arc<Dht>>,
    sources: Sources,
    transferred: Arc<Transferred>,
    peers: HashMap<PeerKey, Peer>,
    next_peer: u64,
    /// Peers with messages in `outgoing`: of hundreds of peers few have any in one turn.
    unflushed: Vec<PeerKey>,
    /// Peers that are no longer held and have a backlog.
    released: Vec<PeerKey>,
    /// By the addresses that stand for them.
    web_seeds: HashMap<SocketAddr, WebSeed>,
    seeding: Seeding,
    /// When the addresses of good peers are kept next; `None` for a private torrent.
    keep_peers_due: Option<Instant>,
    partials: Partials,
    /// Addresses that the swarm banned; port 0 stands for every port.
    banned: HashSet<SocketAddr>,
    /// Number of pieces being checked in the blocking pool.
    checking: usize,
    /// The metadata is being loaded there.
    loading: bool,
    inbox: mpsc::Sender<(PeerKey, Incoming)>,
    done: mpsc::Sender<Done>,
    stats: watch::Sender<Stats>,
    /// When maintenance is due, and the interval until then.
    maintenance_due: Instant,
    maintenance_interval: Duration,
    share: Share,
    allowed: Allowed,
    clock: Arc<AwakeClock>,
    /// The torrent's place in the queue for background fetching.
    place: Place,
    /// The cache has room for another piece.
    has_room: bool,
}

impl Driver {
    /// Runs until a command or the last handle ends it. `Torrent::stop` waits until the inputs are dropped.
    async fn run(&mut self, inputs: &mut Inputs, closed: watch::Sender<bool>) {
        let mut stop = false;
        while !stop {
            self.update_turn();
            self.handle_backlogs();
            self.flush();
            self.update_share();
            let wakeup = self.swarm.next_wakeup().map_or(self.maintenance_due, |at| at.min(self.maintenance_due));
            // Checked here, too: while there is always a message the timer below is never reached.
            if self.now() >= wakeup {
                self.tick();
            }
            let clock = self.clock.clone();
            tokio::select! {
                biased;
                // `None`: no handle to the torrent is left.
                command = inputs.commands.recv() => stop |= command.is_none_or(|command| self.command(command)),
                Some(done) = inputs.done.recv() => self.done(done),
                Some(piece) = inputs.evicted.recv() => self.dispatch(Event::Evicted(piece)),
                Some((source, addrs)) = inputs.found.recv() => {
                    self.update_allowed(self.now());
                    self.peers_found(addrs, source);
                }
                Some(call) = inputs.incoming.recv() => match call {
                    Call::Connected(peer) => self.connected(*peer, Direction::Incoming),
                    Call::Refused(addr) => {
                        // Its address may be known elsewhere.
                        self.sources.want_peers(Want::Few);
                        self.dispatch(Event::Refused(addr));
                    }
                },
                Some((peer, incoming)) = inputs.inbox.recv() => self.incoming(peer, incoming),
                // The clock ends only after this task.
                Ok(()) = inputs.sleeps.changed() => self.woke(),
                () = self.place.changed() => {}
                () = clock.sleep_until(wakeup) => {}
            }
            for _ in 0..MAX_INPUTS_PER_TURN {
                if let Ok(command) = inputs.commands.try_recv() {
                    stop |= self.command(command);
                } else if let Ok(done) = inputs.done.try_recv() {
                    self.done(done);
                } else if let Ok((peer, incoming)) = inputs.inbox.try_recv() {
                    self.incoming(peer, incoming);
                } else if let Ok(piece) = inputs.evicted.try_recv() {
                    self.dispatch(Event::Evicted(piece));
                } else {
                    break;
                }
            }
        }
        self.stop(inputs, closed).await;
    }

    /// Fails blocked reads, disconnects peers, finishes the checks under way, saves the state.
    async fn stop(&mut self, inputs: &mut Inputs, closed: watch::Sender<bool>) {
        closed.send_replace(true);
        let good = self.good_peers();
        self.peers.clear();
        inputs.inbox.close();
        self.update_transferred();
        let store = self.store.clone();
        let save = async {
            while self.checking > 0 {
                match inputs.done.recv().await {
                    Some(Done::Checked { .. }) => self.checking -= 1,
                    Some(_) => {}
                    None => break,
                }
            }
            let close = move || {
                if !good.is_empty() {
                    store.keep_peers(&good);
                }
                store.close();
            };
            let _ = tokio::task::spawn_blocking(close).await;
        };
        tokio::join!(save, self.sources.stop(STOP_LIMIT));
    }

    /// Passes an event to the swarm and carries out its actions at once: an action must not be overtaken by a later
    /// event (a piece dropped and begun anew, above all).
    fn dispatch(&mut self, event: Event) {
        self.swarm.handle(self.now(), event);
        self.act();
    }

    /// Passes an event to the swarm while its actions are being carried out: the loop in [`Self::act`] goes on to the
    /// actions that follow.
    fn enqueue(&mut self, event: Event) {
        self.swarm.handle(self.now(), event);
    }

    fn act(&mut self) {
        while let Some(action) = self.swarm.poll() {
            self.perform(action);
        }
    }

    fn perform(&mut self, action: Action) {
        match action {
            Action::Connect(addr) => self.dial(addr),
            Action::FindPeers => {
                // Trackers are told whether something is missing, and seeds get no seeds.
                self.update_transferred();
                self.sources.want_peers(Want::Blocked);
            }
            Action::Send(key, message) => {
                tracing::trace!(peer = key.0, ?message, "sending");
                self.queue_message(key, message);
            }
            Action::Disconnect(key, reason) => self.disconnect(key, reason),
            Action::Hold(key) => self.hold(key),
            Action::Release(key) => self.release(key),
            Action::Ban(addr) => {
                self.banned.insert(addr);
            }
            Action::RefuseWebSeed(addr, piece) => {
                if let Some(seed) = self.web_seeds.get(&addr) {
                    seed.mark_bad(piece);
                }
            }
            Action::AddDhtNode(addr) => {
                if let Some(dht) = &self.dht {
                    dht.add_node(addr);
                }
            }
            Action::Upload(key, request) => self.read_for_upload(key, request),
            Action::Check { piece, digests } => self.check(piece, digests),
            Action::LoadMetadata => self.load_metadata(),
            Action::Drop(piece) => self.partials.remove(piece),
            Action::Pin(ranges) => self.store.pin(ranges),
            Action::Completed => {
                tracing::info!(name = %self.metainfo.name, "complete");
                self.update_transferred();
                self.sources.announcer.completed();
            }
        }
    }

    /// Carries out a command. Returns whether the task has to end.
    fn command(&mut self, command: Command) -> bool {
        match command {
            Command::Swarm(event) => {
                tracing::trace!(?event, "command");
                self.dispatch(event);
            }
            Command::Report(answer) => drop(answer.send(self.report())),
            Command::Stop => return true,
        }
        false
    }

    fn done(&mut self, done: Done) {
        match done {
            Done::Dialed(_, Ok(handshaken)) => self.connected(*handshaken, Direction::Outgoing),
            Done::Dialed(addr, Err(error)) => {
                tracing::debug!(%addr, "cannot connect: {error}");
                self.dispatch(Event::ConnectFailed(addr));
            }
            Done::Checked { piece, verdict, digests } => self.checked(piece, verdict, digests),
            Done::MetadataLoaded => {
                self.loading = false;
                self.dispatch(Event::MetadataLoaded);
            }
            Done::Read { peer, request, data } => {
                self.upload(peer, request, data);
                self.act();
            }
        }
    }

    /// Returns the time on the clock of the swarm, which leaves out what the process slept.
    fn now(&self) -> Instant {
        self.clock.now()
    }

    /// Searches for more peers, because there are few.
    fn want_peers(&self) {
        self.sources.want_peers(if self.swarm.is_read(self.now()) { Want::Read } else { Want::Few });
    }

    fn peers_found(&mut self, addrs: Vec<SocketAddr>, source: PeerSource) {
        self.dispatch(Event::PeersFound { addrs, source });
    }
}
