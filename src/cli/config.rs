//! `torrentfs config`: the settings in force, and where each comes from.

use clap::Args;

use super::failure::Failure;
use super::flags::Key;
use super::output;
use super::settings::{Setting, Settings};
use crate::http::Masked;

const AFTER_HELP: &str = "\
What `torrentfs mount` takes as a flag or an option of -o can be configured, by
the same name: cache_size = \"5GiB\", no_dht = true, peer = [\"10.0.0.1:6881\"].
What comes first in this list is in force:
  1. flags
  2. -o
  3. the environment: TORRENTFS_CACHE_SIZE=5GiB, TORRENTFS_NO_DHT=true
  4. ~/.config/torrentfs/torrentfs.toml (of $XDG_CONFIG_HOME, if set)
  5. /etc/torrentfs/torrentfs.toml
  6. defaults
What a file switches on, a flag, -o or a variable switches off:
--no-dht=false, -o no_dht=false, TORRENTFS_NO_DHT=false.
cache_dir is for all mounts: the first has it, each that comes beside it a
directory below it, mounts/ and the name of its mount point, for good. Named by
--cache-dir or -o, it is that mount's alone. For root mount.torrentfs gives each
mount a directory in cache_dir, named after the mount point.
--config FILE stands for both files. mount.torrentfs has no part 3, and for root
no part 4.";

/// Print what is configured, and where
#[derive(Args, Clone, Debug)]
#[command(after_help = AFTER_HELP)]
pub(super) struct ConfigArgs {
    /// As JSON: a list of keys, with their values and where each comes from
    #[arg(long)]
    json: bool,
}

/// Prints the settings.
pub(super) fn run(settings: &Settings, args: &ConfigArgs) -> Result<(), Failure> {
    let text = if args.json { json(settings) } else { lines(settings) };
    output::print(&text)
}

/// Writes the settings as a configuration file that has each value's origin in a comment, and defaults as comments.
fn lines(settings: &Settings) -> String {
    let line = |(key, setting): (&Key, Option<&Setting>)| match setting {
        // A JSON string, list or boolean is TOML, too.
        Some(setting) => format!("{} = {}  # {}\n", key.name, value(key, setting), setting.origin),
        None => format!("# {}: {}\n", key.name, default_of(key)),
    };
    settings.iter().map(line).collect()
}

fn json(settings: &Settings) -> String {
    let entry = |(key, setting): (&Key, Option<&Setting>)| {
        serde_json::json!({
            "key": key.name,
            "value": setting.map(|setting| value(key, setting)),
            "default": default_of(key),
            "from": setting.map_or("default".to_owned(), |setting| setting.origin.to_string()),
        })
    };
    let entries: Vec<_> = settings.iter().map(entry).collect();
    format!("{:#}\n", serde_json::Value::from(entries))
}

fn default_of(key: &Key) -> &str {
    match &key.default {
        Some(default) => default,
        None if key.is_switch => "false",
        None => "none",
    }
}

fn value(key: &Key, setting: &Setting) -> serde_json::Value {
    let masked = |value: &String| masked(value);
    match setting.values.first() {
        _ if key.is_list => setting.values.iter().map(masked).collect(),
        first if key.is_switch => first.is_some_and(|set| set == "true").into(),
        first => first.map(masked).into(),
    }
}

/// Hides the user name and password in a URL, such as a proxy's.
fn masked(value: &str) -> String {
    if value.contains("://") { Masked(value).to_string() } else { value.to_owned() }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn it_is_shown_with_its_origin_and_without_secrets() {
        let mut settings = Settings::empty();
        let text = "cache_size = '1GiB'\nproxy = 'socks5://me:secret@10.0.0.1:1080'\nno_dht = true";
        settings.read(text, Path::new("/0.toml")).unwrap();
        settings.read_environment(|name| (name == "TORRENTFS_MEMORY").then(|| "64MiB".into())).unwrap();
        let lines = lines(&settings);
        for line in [
            "cache_size = \"1GiB\"  # /0.toml:1\n",
            "proxy = \"socks5://***@10.0.0.1:1080\"  # /0.toml:2\n",
            "no_dht = true  # /0.toml:3\n",
            "memory = \"64MiB\"  # TORRENTFS_MEMORY\n",
            "# read_timeout: 120s\n",
            "# verify: false\n",
        ] {
            assert!(lines.contains(line), "{line} in {lines}");
        }
        let plain = lines.replace("***@", "");
        assert!(Settings::empty().read(&plain, Path::new("/again.toml")).is_ok(), "it is a file itself");
        let parsed: serde_json::Value = serde_json::from_str(&json(&settings)).unwrap();
        let entry = |key: &str| parsed.as_array().unwrap().iter().find(|entry| entry["key"] == key).unwrap().clone();
        assert_eq!((&entry("no_dht")["value"], &entry("no_dht")["from"]), (&true.into(), &"/0.toml:3".into()));
        assert_eq!((&entry("verify")["value"], &entry("verify")["from"]), (&().into(), &"default".into()));
        assert!(!json(&settings).contains("secret"));
    }
}
