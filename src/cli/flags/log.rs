//! The flag that chooses the format of the log.

/// The format of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::cli) enum LogFormat {
    /// Lines of text.
    Human,
    /// One JSON object a line.
    Json,
    /// Entries of the systemd journal, with its levels and fields.
    Journald,
}

impl LogFormat {
    /// Parses the value of `--log-format`.
    pub(in crate::cli) fn parse(text: &str) -> Result<Self, String> {
        match text {
            "human" => Ok(Self::Human),
            "json" => Ok(Self::Json),
            "journald" => Ok(Self::Journald),
            _ => Err("expected human, json or journald".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_formats_are_parsed_by_name() {
        assert_eq!(LogFormat::parse("json"), Ok(LogFormat::Json));
        assert!(LogFormat::parse("xml").is_err());
    }
}
