//! Reasons for which an order is refused.

/// A refused order.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    /// Kind of the failure, for programs.
    pub kind: RefusalKind,
    /// Explanation in one line, for people.
    pub message: String,
}

/// Kind of a [`Refusal`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RefusalKind {
    /// The order is malformed.
    Invalid,
    /// The torrent or file does not exist.
    NotFound,
    /// The current state of the mount does not allow it.
    Conflict,
    /// The torrent cannot be used: its metainfo is malformed or cannot be fetched.
    Unusable,
}

impl Refusal {
    pub(super) fn new(kind: RefusalKind, message: impl std::fmt::Display) -> Self {
        Self { kind, message: message.to_string() }
    }

    pub(super) fn invalid(message: impl std::fmt::Display) -> Self {
        Self::new(RefusalKind::Invalid, message)
    }

    pub(super) fn not_found(message: impl std::fmt::Display) -> Self {
        Self::new(RefusalKind::NotFound, message)
    }
}
