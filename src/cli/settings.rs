//! The configuration: files named `torrentfs.toml` and environment variables.
//!
//! The keys are those of [`flags::keys`]: the flags of `torrentfs mount` and the options of its `-o`. This module knows none
//! of them by name. A later layer replaces the value of a key that an earlier layer set.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use etcetera::BaseStrategy;
use toml::de::{DeTable, DeValue};

use super::failure::{Exit, Failure};
use super::flags::values::boolean;
use super::flags::{self, Key, Options};
use crate::fs::daemon;

/// Configuration file of the system.
const SYSTEM: &str = "/etc/torrentfs/torrentfs.toml";
/// Configuration file of the user, below the user's configuration directory.
const USER: &str = "torrentfs/torrentfs.toml";
/// Prefix of environment variables.
const PREFIX: &str = "TORRENTFS_";
/// Longest configuration file, in bytes: far more than all keys need.
const MAX_LEN: u64 = 1 << 20;

/// The keys, and the values that are set.
pub(super) struct Settings {
    keys: Vec<Key>,
    /// By key.
    settings: BTreeMap<String, Setting>,
}

/// The value of a key.
pub(super) struct Setting {
    /// As on a command line; several for a list, and "true" or "false" for a boolean.
    pub(super) values: Vec<String>,
    pub(super) origin: Origin,
}

/// Where a value was set.
pub(super) enum Origin {
    /// File and line.
    File(PathBuf, usize),
    /// Name of an environment variable.
    Environment(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path, line) => write!(f, "{}:{line}", path.display()),
            Self::Environment(name) => f.write_str(name),
        }
    }
}

impl Settings {
    /// Loads the configuration of a command. `explicit` replaces both files.
    pub(super) fn load(explicit: Option<&Path>) -> Result<Self, Failure> {
        let mut config = Self::empty();
        match explicit {
            Some(file) => config.read_file(file, true)?,
            None => config.read_files(true)?,
        }
        config.read_environment(|name| std::env::var(name).ok())?;
        Ok(config)
    }

    /// Loads the configuration of mount(8): without the environment and, for root, without root's own file, because mounts of
    /// the system must not depend on who runs mount(8), or from where.
    pub(super) fn of_system() -> Result<Self, Failure> {
        let mut config = Self::empty();
        config.read_files(!daemon::is_root())?;
        Ok(config)
    }

    pub(super) fn empty() -> Self {
        Self { keys: flags::keys(), settings: BTreeMap::new() }
    }

    fn read_files(&mut self, with_users: bool) -> Result<(), Failure> {
        self.read_file(Path::new(SYSTEM), false)?;
        match etcetera::choose_base_strategy() {
            Ok(dirs) if with_users && is_own(dirs.home_dir()) => self.read_file(&dirs.config_dir().join(USER), false),
            // No home directory, or one of another user.
            _ => Ok(()),
        }
    }

    fn read_file(&mut self, path: &Path, must_exist: bool) -> Result<(), Failure> {
        let mut text = String::new();
        match File::open(path).and_then(|file| file.take(MAX_LEN + 1).read_to_string(&mut text)) {
            Ok(_) if text.len() as u64 > MAX_LEN => {
                Err(usage_error(format!("{}: the file is too long", path.display())))
            }
            Ok(_) => self.read(&text, path),
            Err(error) if error.kind() == io::ErrorKind::NotFound && !must_exist => Ok(()),
            Err(error) => Err(usage_error(format!("cannot read {}: {error}", path.display()))),
        }
    }

    /// Parses a file, and replaces the values of the keys that it sets.
    pub(super) fn read(&mut self, text: &str, path: &Path) -> Result<(), Failure> {
        let line = |at: usize| 1 + text.bytes().take(at).filter(|byte| *byte == b'\n').count();
        let at = |at: usize, what: &dyn fmt::Display| usage_error(format!("{}:{}: {what}", path.display(), line(at)));
        let table =
            DeTable::parse(text).map_err(|error| at(error.span().map_or(0, |span| span.start), &error.message()))?;
        for (name, value) in table.get_ref() {
            let place = name.span().start;
            let written = name.get_ref();
            let Some(key) = self.keys.iter().find(|key| key.name == written.replace('-', "_")) else {
                let nearest = flags::nearest(written, self.keys.iter().map(|key| key.name.as_str()));
                let hint = match nearest {
                    Some(nearest) => format!("did you mean {nearest:?}?"),
                    None => "`torrentfs config` lists them".to_owned(),
                };
                return Err(at(place, &format!("unknown key {written:?}; {hint}")));
            };
            let values = values(key, value.get_ref()).and_then(|values| check(key, values));
            let values = values.map_err(|error| at(place, &format!("{written}: {error}")))?;
            let origin = Origin::File(path.to_owned(), line(place));
            self.settings.insert(key.name.clone(), Setting { values, origin });
        }
        Ok(())
    }

    pub(super) fn read_environment(&mut self, of: impl Fn(&str) -> Option<String>) -> Result<(), Failure> {
        for key in &self.keys {
            let variable = format!("{PREFIX}{}", key.name.to_ascii_uppercase());
            let Some(text) = of(&variable) else { continue };
            let values = if key.is_list {
                let parts = text.split([',', ' ']).filter(|part| !part.is_empty());
                Ok(parts.map(str::to_owned).collect())
            } else if key.is_switch {
                // An empty variable counts as unset.
                if text.is_empty() { Ok(false) } else { boolean(&text) }.map(|set| vec![set.to_string()])
            } else {
                Ok(vec![text])
            };
            let values = values.and_then(|values| check(key, values));
            let values = values.map_err(|error| usage_error(format!("{variable}: {error}")))?;
            self.settings.insert(key.name.clone(), Setting { values, origin: Origin::Environment(variable) });
        }
        Ok(())
    }

    /// Returns every key, with its setting if it has one.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&Key, Option<&Setting>)> {
        self.keys.iter().map(|key| (key, self.settings.get(&key.name)))
    }

    /// Returns the configuration in the form of one `-o`.
    pub(super) fn options(&self) -> Result<Options, Failure> {
        let of_key = |key| self.settings.get(key).map_or(&[][..], |setting| &setting.values);
        let pairs = self.keys.iter().flat_map(|key| of_key(&key.name).iter().map(|value| pair(key, value)));
        Options::from_pairs(pairs, false).map_err(usage_error)
    }
}

/// Returns whether the configuration directory belongs to this user: after `sudo`, `HOME` may be another user's.
fn is_own(home: &Path) -> bool {
    std::env::var_os("XDG_CONFIG_HOME").is_some() || home.metadata().is_ok_and(|home| home.uid() == daemon::user())
}

fn pair<'a>(key: &'a Key, value: &'a str) -> (&'a str, Option<&'a str>) {
    (&key.name, Some(value))
}

/// Converts a value of a file to values of a command line.
fn values(key: &Key, value: &DeValue<'_>) -> Result<Vec<String>, String> {
    match value {
        DeValue::Boolean(set) if key.is_switch => Ok(vec![set.to_string()]),
        _ if key.is_switch => Err("expected true or false".to_owned()),
        DeValue::String(text) => Ok(vec![text.to_string()]),
        DeValue::Integer(number) if number.radix() == 10 => Ok(vec![number.as_str().to_owned()]),
        DeValue::Float(number) => Ok(vec![number.as_str().to_owned()]),
        DeValue::Array(items) if key.is_list => {
            let one = |item: &toml::Spanned<DeValue<'_>>| match item.get_ref() {
                DeValue::String(text) => Ok(text.to_string()),
                _ => Err("expected a list of strings".to_owned()),
            };
            items.iter().map(one).collect()
        }
        _ if key.is_list => Err("expected a string or a list of strings".to_owned()),
        _ => Err("expected a string or a number".to_owned()),
    }
}

/// Checks each value alone, so that an error can be reported with its place.
fn check(key: &Key, values: Vec<String>) -> Result<Vec<String>, String> {
    for value in &values {
        Options::from_pairs(std::iter::once(pair(key, value)), false)?;
    }
    Ok(values)
}

fn usage_error(message: String) -> Failure {
    Failure::new(Exit::Usage, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(texts: &[&str]) -> Result<Settings, String> {
        let mut config = Settings::empty();
        for (n, text) in texts.iter().enumerate() {
            config.read(text, Path::new(&format!("/{n}.toml"))).map_err(|failure| failure.to_string())?;
        }
        Ok(config)
    }

    fn options(texts: &[&str]) -> Options {
        config(texts).unwrap().options().unwrap()
    }

    #[test]
    fn a_file_sets_the_same_as_options() {
        let text = "cache_size = '1GiB'\nread-timeout = 30\nno_dht = true\npeer = ['10.0.0.1:1', '[::1]:2']\n\
                    seed_ratio = 1.5 # enough\nallow_other = true\nuid = 5\numask = '027'\nlog_format = 'json'\nport = 0";
        let option = "cache_size=1GiB,read_timeout=30,no_dht,peer=10.0.0.1:1,peer=[::1]:2,seed_ratio=1.5,allow_other,uid=5,\
                    umask=027,log_format=json,port=0";
        assert_eq!(options(&[text]), option.parse().unwrap());
        assert_eq!(options(&[]), Options::default());
    }

    #[test]
    fn every_key_can_be_set_alone_and_every_boolean_to_false() {
        for key in flags::keys().iter().filter(|key| key.is_switch) {
            for value in ["true", "false"] {
                let options = options(&[&format!("{} = {value}", key.name)]);
                assert_eq!(options, format!("{}={value}", key.name).parse().unwrap(), "{}", key.name);
            }
        }
        options(&["http_token = '0123456789abcdef'"]);
    }

    #[test]
    fn later_layers_replace_earlier_ones() {
        let system = "cache_size = '1GiB'\nno_dht = true\npeer = '10.0.0.1:1'";
        let user = "no_dht = false\npeer = ['10.0.0.2:2']";
        assert_eq!(options(&[system, user]), "cache_size=1GiB,no_dht=false,peer=10.0.0.2:2".parse().unwrap());
        let mut config = config(&[system]).unwrap();
        let environment = |name: &str| match name {
            "TORRENTFS_CACHE_SIZE" => Some("2GiB".to_owned()),
            "TORRENTFS_NO_DHT" => Some("0".to_owned()),
            "TORRENTFS_PEER" => Some("10.0.0.3:3, 10.0.0.4:4".to_owned()),
            "TORRENTFS_ON_DEMAND" => Some("true".to_owned()),
            _ => None,
        };
        config.read_environment(environment).unwrap();
        let option = "cache_size=2GiB,no_dht=false,peer=10.0.0.3:3,peer=10.0.0.4:4,on_demand";
        assert_eq!(config.options().unwrap(), option.parse().unwrap());
        assert!(config.read_environment(|name| (name == "TORRENTFS_NO_DHT").then(|| "maybe".into())).is_err());
    }

    #[test]
    fn an_error_names_its_file_its_line_and_a_similar_key() {
        for (text, message) in [
            ("\n\ncache_sise = '1GiB'", r#"/0.toml:3: unknown key "cache_sise"; did you mean "cache_size"?"#),
            ("frobnicate = 1", r#"/0.toml:1: unknown key "frobnicate"; `torrentfs config` lists them"#),
            ("[cache]\nsize = 1", r#"/0.toml:1: unknown key "cache"; `torrentfs config` lists them"#),
            ("port = 1\nno_dht = 'yes'", "/0.toml:2: no_dht: expected true or false"),
            (
                "cache_size = 'much'",
                "/0.toml:1: cache_size: invalid value 'much' for '--cache-size <SIZE>': expected a size such as 512MiB or 20GiB",
            ),
            ("peer = [1]", "/0.toml:1: peer: expected a list of strings"),
            ("port = []", "/0.toml:1: port: expected a string or a number"),
            ("uid = 'me'", "/0.toml:1: uid: option uid takes a number, not \"me\""),
        ] {
            assert_eq!(config(&[text]).err().as_deref(), Some(message));
        }
        let broken = config(&["port = 1\nport = 2"]).err().unwrap();
        assert!(broken.starts_with("/0.toml:2: "), "{broken}");
        assert!(config(&["= 1"]).err().unwrap().starts_with("/0.toml:1: "));
    }
}
