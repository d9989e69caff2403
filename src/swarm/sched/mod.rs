//! Scheduling: which blocks to request, from which peer, and when.
//!
//! | file | owns |
//! |---|---|
//! | `readers` | open file handles, their read-ahead windows and blocked reads: the urgent pieces in order |
//! | `urgent` | urgent pieces: each block to the peer that delivers it soonest |
//! | `background` | all other pieces: one per peer, rarest first; end-game |
//! | `requests` | sending and withdrawing requests, receiving blocks, silent and choking peers |
//! | `pipeline` | one peer's rate, latency and the bytes that may be outstanding |
//!
//! How much may be requested for what is decided by [`Policy::queue_allowance`](super::Policy::queue_allowance), and
//! turned into bytes by `Pipeline::room`; nothing here has a limit of its own.

mod background;
pub(super) mod pipeline;
pub(super) mod readers;
mod requests;
mod urgent;
