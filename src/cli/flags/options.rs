//! `-o` as mount(8) and fstab pass it: options that belong to mounting, and every flag of `mount` by its name.

use std::str::FromStr;

use clap::{CommandFactory, Parser};

use super::mount::MountFlags;
use super::values::truth;
use crate::fs;

/// Accepted and without effect here: fstab's own words, what a read-only mount without devices and set-user-id is
/// anyway, and what asks for less than we do.
const IGNORED: &[&str] = &[
    "_netdev",
    "async",
    "atime",
    "auto",
    "default_permissions",
    "defaults",
    "dev",
    "diratime",
    "dirsync",
    "group",
    "lazytime",
    "loud",
    "mand",
    "noatime",
    "noauto",
    "nodev",
    "nodiratime",
    "nofail",
    "nogroup",
    "nolazytime",
    "nomand",
    "noowner",
    "norelatime",
    "nostrictatime",
    "nosuid",
    "nouser",
    "nousers",
    "owner",
    "relatime",
    "ro",
    "rw",
    "silent",
    "strictatime",
    "suid",
    "sync",
    "user",
    "users",
];

/// Those with a meaning of their own; the rest are flags.
const OWN: &[&str] = &["allow_other", "gid", "noexec", "setuid", "uid", "umask"];

/// What mounting itself takes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MountOptions {
    /// Other users may read, too; `None`: not said, and so no.
    pub allow_other: Option<bool>,
    /// No file may be executed; `None`: not said, and so they may.
    pub noexec: Option<bool>,
    /// Owner of the files; `None`: who mounts.
    pub uid: Option<u32>,
    /// Group of the files; `None`: that of who mounts.
    pub gid: Option<u32>,
    /// Permission bits that files and directories do not have.
    pub umask: Option<u16>,
    /// The user who is to serve a mount of the system's, by name or number.
    pub setuid: Option<String>,
}

impl MountOptions {
    /// What the mount itself is to know.
    pub(in crate::cli) fn to_fs(&self) -> fs::MountOptions {
        fs::MountOptions {
            allow_other: self.allow_other.unwrap_or(false),
            noexec: self.noexec.unwrap_or(false),
            uid: self.uid,
            gid: self.gid,
            umask: self.umask.unwrap_or(0),
            ..fs::MountOptions::default()
        }
    }
}

/// One `-o` in full.
#[derive(Clone, Debug, Default, PartialEq)]
pub(in crate::cli) struct Options {
    pub flags: MountFlags,
    pub mount: MountOptions,
}

impl Options {
    /// These, and what they leave open from `under`.
    pub fn over(self, under: Self) -> Self {
        Self {
            flags: self.flags.over(under.flags),
            mount: MountOptions {
                allow_other: self.mount.allow_other.or(under.mount.allow_other),
                noexec: self.mount.noexec.or(under.mount.noexec),
                uid: self.mount.uid.or(under.mount.uid),
                gid: self.mount.gid.or(under.mount.gid),
                umask: self.mount.umask.or(under.mount.umask),
                setuid: self.mount.setuid.or(under.mount.setuid),
            },
        }
    }
}

/// The flags alone, to be read from options written as flags.
#[derive(Parser)]
#[command(no_binary_name = true, disable_help_flag = true, args_override_self = true)]
struct FlagsOnly {
    #[command(flatten)]
    flags: MountFlags,
}

impl FromStr for Options {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::read(text, false)
    }
}

impl Options {
    /// Reads one `-o`; a `sloppy` reader passes over names that it does not know.
    pub fn read(text: &str, sloppy: bool) -> Result<Self, String> {
        let options = split(text);
        let pairs = options.iter().map(|option| match option.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (option.as_str(), None),
        });
        Self::of(pairs, sloppy)
    }

    /// The same of names and values, wherever they stood.
    pub fn of<'a>(pairs: impl Iterator<Item = (&'a str, Option<&'a str>)>, sloppy: bool) -> Result<Self, String> {
        let known = FlagsOnly::command();
        let flags: Vec<&str> = known.get_arguments().filter_map(|arg| arg.get_long()).collect();
        let mut mount = MountOptions::default();
        let mut given = Vec::new();
        for (name, value) in pairs {
            let flag = name.replace('_', "-");
            match (name, value) {
                ("allow_other", said) => mount.allow_other = Some(switch(name, said)?),
                ("noexec", said) => mount.noexec = Some(switch(name, said)?),
                // mount(8)'s way of taking it back.
                ("exec", None) => mount.noexec = Some(false),
                ("uid", Some(id)) => mount.uid = Some(number(name, id, 10, u32::MAX - 1)?),
                ("gid", Some(id)) => mount.gid = Some(number(name, id, 10, u32::MAX - 1)?),
                ("umask", Some(mask)) => mount.umask = Some(number(name, mask, 8, 0o777)? as u16),
                ("setuid", Some(user)) => mount.setuid = Some(user.to_owned()),
                ("uid" | "gid" | "umask" | "setuid", None) => return Err(format!("option {name} needs a value")),
                // mount(8) says who may unmount, and by which helper.
                ("comment" | "user" | "uhelper" | "helper", Some(_)) => {}
                ("remount", None) => {
                    return Err("option remount: a mounted torrent cannot be changed; unmount it first".into());
                }
                (name, _) if name.starts_with("x-") || name.starts_with("X-") => {}
                (name, None) if IGNORED.contains(&name) => {}
                _ if flags.contains(&flag.as_str()) => {
                    given.push(value.map_or_else(|| format!("--{flag}"), |value| format!("--{flag}={value}")));
                }
                _ if sloppy => {}
                _ => return Err(unknown(name, flags.iter().copied().chain(OWN.iter().copied()))),
            }
        }
        let flags = FlagsOnly::try_parse_from(given).map_err(|error| first_line(&error))?.flags;
        Ok(Self { flags, mount })
    }
}

/// What can be configured.
pub(in crate::cli) struct Key {
    /// Written with `_`.
    pub name: String,
    /// Whether it is true or false, and nothing else.
    pub is_switch: bool,
    /// Whether it may be given more than once.
    pub is_list: bool,
    /// Its default in words, if the help tells one.
    pub default: Option<String>,
}

/// Every flag that is not hidden, and the options of mounting; sorted by name.
pub(in crate::cli) fn keys() -> Vec<Key> {
    let command = FlagsOnly::command();
    let flags = command.get_arguments().filter(|arg| !arg.is_hide_set()).filter_map(|arg| {
        let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
        let default = help.split_once("[default: ").and_then(|(_, rest)| rest.split_once(']'));
        Some(Key {
            name: arg.get_long()?.replace('-', "_"),
            is_switch: arg.get_num_args().is_some_and(|values| values.min_values() == 0),
            is_list: matches!(arg.get_action(), clap::ArgAction::Append),
            default: default.map(|(default, _)| default.to_owned()),
        })
    });
    let own = OWN.iter().map(|name| Key {
        name: (*name).to_owned(),
        is_switch: matches!(*name, "allow_other" | "noexec"),
        is_list: false,
        default: None,
    });
    let mut keys: Vec<Key> = flags.chain(own).collect();
    keys.sort_by(|one, other| one.name.cmp(&other.name));
    keys
}

/// What was most likely meant by a name that is not known.
pub(in crate::cli) fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<String> {
    let written = name.replace('_', "-");
    let distance = |known: &str| strsim::levenshtein(&written, &known.replace('_', "-"));
    let nearest =
        known.min_by_key(|known| distance(known)).filter(|nearest| distance(nearest) <= 1 + nearest.len() / 4);
    nearest.map(|nearest| nearest.replace('-', "_"))
}

/// At commas; a backslash takes the next character as it is. Empty parts are no options.
fn split(text: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            ',' => parts.push(String::new()),
            // A backslash at the end stands for itself.
            '\\' => parts.last_mut().into_iter().for_each(|part| part.push(chars.next().unwrap_or('\\'))),
            _ => parts.last_mut().into_iter().for_each(|part| part.push(c)),
        }
    }
    parts.retain(|part| !part.is_empty());
    parts
}

/// A name alone says yes.
fn switch(name: &str, said: Option<&str>) -> Result<bool, String> {
    said.map_or(Ok(true), truth).map_err(|why| format!("option {name}: {why}"))
}

fn number(name: &str, text: &str, radix: u32, max: u32) -> Result<u32, String> {
    let digits = !text.is_empty() && text.chars().all(|c| c.is_digit(radix));
    let number = u32::from_str_radix(text, radix).ok().filter(|number| digits && *number <= max);
    let kind = if radix == 8 { "an octal number up to 777" } else { "a number" };
    number.ok_or_else(|| format!("option {name} takes {kind}, not {text:?}"))
}

fn unknown<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> String {
    match nearest(name, known) {
        Some(nearest) => format!("unknown option {name:?}; did you mean {nearest:?}?"),
        None => format!("unknown option {name:?}; `torrentfs mount --help` lists them"),
    }
}

/// Of the parser's message, which speaks of a flag: `--cache-size` is plain enough for `cache_size`.
fn first_line(error: &clap::Error) -> String {
    let text = error.to_string();
    text.lines().next().unwrap_or_default().trim_start_matches("error: ").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(text: &str) -> MountOptions {
        Options::from_str(text).unwrap().mount
    }

    #[test]
    fn options_of_mounting() {
        assert_eq!(
            mount("allow_other,noexec,uid=1000,gid=0,umask=027"),
            MountOptions {
                allow_other: Some(true),
                noexec: Some(true),
                uid: Some(1000),
                gid: Some(0),
                umask: Some(0o027),
                ..MountOptions::default()
            }
        );
        assert_eq!(mount("setuid=tv,user=me").setuid.as_deref(), Some("tv"));
        let later =
            Options::from_str("uid=2,allow_other").unwrap().over(Options::from_str("uid=1,gid=1").unwrap()).mount;
        assert_eq!(
            later,
            MountOptions { allow_other: Some(true), uid: Some(2), gid: Some(1), ..MountOptions::default() }
        );
    }

    #[test]
    fn what_fstab_says_is_ignored() {
        let all = IGNORED.join(",");
        for text in
            ["", ",,", "rw,nosuid,nodev,relatime,user", "x-systemd.automount,X-mount.mkdir=755,comment=x=y", &all]
        {
            assert_eq!(Options::from_str(text), Ok(Options::default()), "{text}");
        }
        assert!(IGNORED.is_sorted());
    }

    #[test]
    fn a_sloppy_reader_passes_over_names_but_not_over_values() {
        assert_eq!(Options::read("frob,uid=1,x=y", true).unwrap().mount.uid, Some(1));
        assert!(Options::read("uid=me", true).is_err() && Options::read("memory=much", true).is_err());
    }

    #[test]
    fn refusals_name_the_option() {
        for (text, message) in [
            ("ro,allow_others", r#"unknown option "allow_others"; did you mean "allow_other"?"#),
            ("cache_sise=1GiB", r#"unknown option "cache_sise"; did you mean "cache_size"?"#),
            ("noexecute", r#"unknown option "noexecute"; `torrentfs mount --help` lists them"#),
            ("remount", "option remount: a mounted torrent cannot be changed; unmount it first"),
            ("setuid", "option setuid needs a value"),
            ("uid=root", r#"option uid takes a number, not "root""#),
            ("uid=+1", r#"option uid takes a number, not "+1""#),
            ("gid=4294967295", r#"option gid takes a number, not "4294967295""#),
            ("umask=888", r#"option umask takes an octal number up to 777, not "888""#),
            ("umask=1000", r#"option umask takes an octal number up to 777, not "1000""#),
            ("umask", "option umask needs a value"),
            ("allow_other=me", "option allow_other: expected true or false"),
            ("memory=much", "invalid value 'much' for '--memory <SIZE>': expected a size such as 512MiB or 20GiB"),
            ("memory", "a value is required for '--memory <SIZE>' but none was supplied"),
            ("verify=maybe", "invalid value 'maybe' for '--verify[=<BOOL>]': expected true or false"),
            ("help", r#"unknown option "help"; did you mean "http"?"#),
        ] {
            assert_eq!(Options::from_str(text).unwrap_err(), message);
        }
    }

    #[test]
    fn a_backslash_saves_a_comma() {
        assert_eq!(split(r"a=b\,c,d\\,,e\"), ["a=b,c", r"d\", r"e\"]);
    }
}
