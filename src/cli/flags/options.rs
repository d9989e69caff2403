//! `-o` in the form of mount(8) and fstab: the options of mounting itself, and every flag of `torrentfs mount` by its name.

use std::str::FromStr;

use clap::{CommandFactory, Parser};

use super::mount::MountFlags;
use super::values::boolean;
use crate::fs;

/// Options that are accepted and have no effect: those of fstab itself, those that every mount of torrentfs has anyway
/// (read-only, no devices, no set-user-id), and those that only matter for writing.
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

/// Options of mounting itself. Every other known option is a flag of `torrentfs mount`.
const MOUNT_OPTIONS: &[&str] = &["allow_other", "gid", "noexec", "setuid", "uid", "umask"];

/// The options of mounting itself, as given.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MountOptions {
    /// Whether other users may access the mount; by default not.
    pub allow_other: Option<bool>,
    /// Whether no file may be executed; by default files may.
    pub noexec: Option<bool>,
    /// Owner of the files; by default the user who mounts.
    pub uid: Option<u32>,
    /// Group of the files; by default that of the user who mounts.
    pub gid: Option<u32>,
    /// Permission bits to remove from files and directories.
    pub umask: Option<u16>,
    /// User who serves a mount that root makes, by name or number.
    pub setuid: Option<String>,
}

impl MountOptions {
    /// Returns the options of the FUSE mount, with the defaults filled in.
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

/// One `-o`: flags and options of mounting.
#[derive(Clone, Debug, Default, PartialEq)]
pub(in crate::cli) struct Options {
    pub flags: MountFlags,
    pub mount: MountOptions,
}

impl Options {
    /// Returns these options, with those not given taken from `under`.
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

/// A command line that has only the flags: options are parsed as flags of the same name.
#[derive(Parser)]
#[command(no_binary_name = true, disable_help_flag = true, args_override_self = true)]
struct FlagsOnly {
    #[command(flatten)]
    flags: MountFlags,
}

impl FromStr for Options {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::parse(text, false)
    }
}

impl Options {
    /// Parses one `-o`. If `sloppy`, unknown names are ignored, as mount(8) asks for with its `-s`.
    pub fn parse(text: &str, sloppy: bool) -> Result<Self, String> {
        let options = split(text);
        let pairs = options.iter().map(|option| match option.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (option.as_str(), None),
        });
        Self::from_pairs(pairs, sloppy)
    }

    /// Parses names and values, as in [`Self::parse`].
    pub fn from_pairs<'a>(
        pairs: impl Iterator<Item = (&'a str, Option<&'a str>)>,
        sloppy: bool,
    ) -> Result<Self, String> {
        let known = FlagsOnly::command();
        let flags: Vec<&str> = known.get_arguments().filter_map(|arg| arg.get_long()).collect();
        let mut mount = MountOptions::default();
        let mut given = Vec::new();
        for (name, value) in pairs {
            let flag = name.replace('_', "-");
            match (name, value) {
                ("allow_other", value) => mount.allow_other = Some(switch(name, value)?),
                ("noexec", value) => mount.noexec = Some(switch(name, value)?),
                // mount(8) undoes `noexec` with it.
                ("exec", None) => mount.noexec = Some(false),
                ("uid", Some(id)) => mount.uid = Some(number(name, id, 10, u32::MAX - 1)?),
                ("gid", Some(id)) => mount.gid = Some(number(name, id, 10, u32::MAX - 1)?),
                ("umask", Some(mask)) => mount.umask = Some(number(name, mask, 8, 0o777)? as u16),
                ("setuid", Some(user)) => mount.setuid = Some(user.to_owned()),
                ("uid" | "gid" | "umask" | "setuid", None) => return Err(format!("option {name} needs a value")),
                // mount(8) passes on which user may unmount, and the helper that unmounts.
                ("comment" | "user" | "uhelper" | "helper", Some(_)) => {}
                ("remount", None) => {
                    return Err("option remount: a mounted torrent cannot be remounted; unmount it first".into());
                }
                (name, _) if name.starts_with("x-") || name.starts_with("X-") => {}
                (name, None) if IGNORED.contains(&name) => {}
                _ if flags.contains(&flag.as_str()) => {
                    given.push(value.map_or_else(|| format!("--{flag}"), |value| format!("--{flag}={value}")));
                }
                _ if sloppy => {}
                _ => return Err(unknown(name, flags.iter().copied().chain(MOUNT_OPTIONS.iter().copied()))),
            }
        }
        let flags = FlagsOnly::try_parse_from(given).map_err(|error| first_line(&error))?.flags;
        Ok(Self { flags, mount })
    }
}

/// A key of the configuration.
pub(in crate::cli) struct Key {
    /// Name, written with `_`.
    pub name: String,
    /// Whether the value is a boolean.
    pub is_switch: bool,
    /// Whether several values may be given.
    pub is_list: bool,
    /// Default value as the help shows it, if it does.
    pub default: Option<String>,
}

/// Returns every visible flag and every option of mounting as a key, sorted by name.
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
    let own = MOUNT_OPTIONS.iter().map(|name| Key {
        name: (*name).to_owned(),
        is_switch: matches!(*name, "allow_other" | "noexec"),
        is_list: false,
        default: None,
    });
    let mut keys: Vec<Key> = flags.chain(own).collect();
    keys.sort_by(|one, other| one.name.cmp(&other.name));
    keys
}

/// Returns the known name that an unknown one most likely stands for, if one is similar enough.
pub(in crate::cli) fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<String> {
    let written = name.replace('_', "-");
    let distance = |known: &str| strsim::levenshtein(&written, &known.replace('_', "-"));
    let nearest =
        known.min_by_key(|known| distance(known)).filter(|nearest| distance(nearest) <= 1 + nearest.len() / 4);
    nearest.map(|nearest| nearest.replace('-', "_"))
}

/// Splits at commas; a backslash escapes the next character. Empty parts are dropped.
fn split(text: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            ',' => parts.push(String::new()),
            // A backslash at the end is a backslash.
            '\\' => parts.last_mut().into_iter().for_each(|part| part.push(chars.next().unwrap_or('\\'))),
            _ => parts.last_mut().into_iter().for_each(|part| part.push(c)),
        }
    }
    parts.retain(|part| !part.is_empty());
    parts
}

/// Parses a boolean; the name alone means true.
fn switch(name: &str, value: Option<&str>) -> Result<bool, String> {
    value.map_or(Ok(true), boolean).map_err(|why| format!("option {name}: {why}"))
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

/// Returns the first line of clap's message. It names the flag, as `--cache-size` for the option `cache_size`.
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
    fn options_of_mounting_are_parsed() {
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
    fn options_of_fstab_are_ignored() {
        let all = IGNORED.join(",");
        for text in
            ["", ",,", "rw,nosuid,nodev,relatime,user", "x-systemd.automount,X-mount.mkdir=755,comment=x=y", &all]
        {
            assert_eq!(Options::from_str(text), Ok(Options::default()), "{text}");
        }
        assert!(IGNORED.is_sorted());
    }

    #[test]
    fn sloppy_parsing_ignores_unknown_names_but_not_bad_values() {
        assert_eq!(Options::parse("frob,uid=1,x=y", true).unwrap().mount.uid, Some(1));
        assert!(Options::parse("uid=me", true).is_err() && Options::parse("memory=much", true).is_err());
    }

    #[test]
    fn errors_name_the_option() {
        for (text, message) in [
            ("ro,allow_others", r#"unknown option "allow_others"; did you mean "allow_other"?"#),
            ("cache_sise=1GiB", r#"unknown option "cache_sise"; did you mean "cache_size"?"#),
            ("noexecute", r#"unknown option "noexecute"; `torrentfs mount --help` lists them"#),
            ("remount", "option remount: a mounted torrent cannot be remounted; unmount it first"),
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
    fn a_backslash_escapes_a_comma() {
        assert_eq!(split(r"a=b\,c,d\\,,e\"), ["a=b,c", r"d\", r"e\"]);
    }
}
