//! `torrentfs config`: prints the configuration, and where each value comes from.

use clap::Args;

use super::failure::Failure;
use super::flags::Key;
use super::output;
use super::settings::{Setting, Settings};
use crate::http::Masked;

const DESCRIPTION: &str = "\
Every option of `torrentfs mount`, and every option of its -o, can be set in a
configuration file under the same name, written with '_' or '-'.";

const SECTIONS: &str = "\
Files and precedence (the first that sets a key wins):
  1. options on the command line
  2. -o
  3. environment variables, such as TORRENTFS_CACHE_SIZE=5GiB
  4. ~/.config/torrentfs/torrentfs.toml, or below $XDG_CONFIG_HOME if it is set
  5. /etc/torrentfs/torrentfs.toml
  6. defaults

  --config FILE replaces both files. mount.torrentfs ignores the environment
  and, when root mounts, root's own file.

Configuration file:
  cache_size = \"100GiB\"
  no_dht = true
  peer = [\"192.168.1.5:51413\"]

  A file error is reported with its line. A boolean that is set in a file can be
  unset by --no-dht=false, -o no_dht=false or TORRENTFS_NO_DHT=false.

  cache_dir is shared by all mounts: see \"Cache\" in `torrentfs help mount`.
  When root mounts with mount(8), each mount gets a directory in cache_dir.

Examples:
  torrentfs config
  torrentfs config --json
  torrentfs --config test.toml config";

/// Print the configuration, and where each value comes from
#[derive(Args, Clone, Debug)]
#[command(before_help = DESCRIPTION, after_help = SECTIONS)]
pub(super) struct ConfigArgs {
    /// Print JSON: a list of keys with their values and origins
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
    fn settings_are_shown_with_their_origin_and_without_secrets() {
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
        assert!(Settings::empty().read(&plain, Path::new("/again.toml")).is_ok(), "the output is a valid file");
        let parsed: serde_json::Value = serde_json::from_str(&json(&settings)).unwrap();
        let entry = |key: &str| parsed.as_array().unwrap().iter().find(|entry| entry["key"] == key).unwrap().clone();
        assert_eq!((&entry("no_dht")["value"], &entry("no_dht")["from"]), (&true.into(), &"/0.toml:3".into()));
        assert_eq!((&entry("verify")["value"], &entry("verify")["from"]), (&().into(), &"default".into()));
        assert!(!json(&settings).contains("secret"));
    }
}
