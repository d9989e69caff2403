//! Small helpers that several modules share: locks, addresses, text for display, timers.
//!
//! The bottom layer: it imports nothing from the crate and does no I/O.

mod addr;
mod sync;
mod text;
mod time;

pub(crate) use addr::{is_lan, is_local};
pub(crate) use sync::lock;
pub(crate) use text::{is_hidden, printable, printable_name};
pub(crate) use time::{TICK, align_to_tick};
