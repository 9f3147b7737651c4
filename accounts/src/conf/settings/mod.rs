//! The settings dsync knows: their names in Dovecot 2.3 and 2.4, their defaults, their types. Those of TLS are in `tls`.

mod tls;

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
};

use tracing::debug;

pub use self::tls::Ssl;
use super::{
    error::{ConfError, Place},
    parse,
    secret::Secret,
    tree::{Entry, Section, Value, parse_bool},
    units,
};

/// Where the configuration is when nobody says: the first of these that exists.
const FILES: [&str; 2] = ["/etc/dsync/dsync.conf", "/etc/dovecot/dovecot.conf"];
/// The port of `doveadm_port` when it is not set or 0.
const DOVEADM_PORT: u16 = 12345;
/// Largest file that a `<file` value or a certificate setting may name.
const VALUE_FILE_BYTES_MAX: usize = 1 << 20;
/// Dovecot's: names in lower case.
const USERNAME_FORMAT: &str = "%Lu";
const REMOTE_CMD: &str = "ssh -l%{login} %{host} dsync-server --stdio -u%u";

/// The settings that are looked up, and what they are when nobody says; all others are ignored.
pub(super) const DEFAULTS: &[(&str, &str)] = &[
    ("auth_socket_path", ""),
    ("auth_username_format", USERNAME_FORMAT),
    ("base_dir", "/run/dovecot"),
    ("doveadm_password", ""),
    ("doveadm_port", "0"),
    ("dsync_admin_certs", ""),
    ("dsync_max_connections", "256"),
    ("dsync_max_connections_per_ip", "32"),
    ("dsync_max_unauthenticated", "64"),
    ("dsync_remote_cmd", REMOTE_CMD),
    ("dsync_silence_secs", "600"),
    ("first_valid_gid", "1"),
    ("first_valid_uid", "500"),
    ("last_valid_gid", "0"),
    ("last_valid_uid", "0"),
    ("ldap_auth_dn", ""),
    ("ldap_auth_dn_password", ""),
    ("ldap_base", ""),
    ("ldap_scope", "subtree"),
    ("ldap_starttls", "no"),
    ("ldap_uris", ""),
    ("listen", "*, ::"),
    ("mail_access_groups", ""),
    ("mail_attachment_dir", ""),
    ("mail_attribute_dict", ""),
    ("mail_chroot", ""),
    ("mail_control_path", ""),
    ("mail_driver", ""),
    ("mail_ext_attachment_path", ""),
    ("mail_fsync", "optimized"),
    ("mail_gid", ""),
    ("mail_inbox_path", ""),
    ("mail_index_path", ""),
    ("mail_location", ""),
    ("mail_path", ""),
    ("mail_plugins", ""),
    ("mail_replica", ""),
    ("mail_uid", ""),
    ("mailbox_list_layout", ""),
    ("mbox_dotlock_change_timeout", "2 mins"),
    ("mbox_lock_timeout", "30 secs"),
    ("mbox_read_locks", "fcntl"),
    ("mbox_write_locks", "fcntl dotlock"),
    ("mdbox_rotate_interval", "0"),
    ("mdbox_rotate_size", "10 M"),
    ("passdb_default_password_scheme", ""),
    ("passwd_file_path", ""),
    ("sql_driver", ""),
    ("sqlite_path", ""),
    ("ssl", ""),
    ("ssl_ca", ""),
    ("ssl_cert", ""),
    ("ssl_client_ca_file", ""),
    ("ssl_client_cert", ""),
    ("ssl_client_cert_file", ""),
    ("ssl_client_key", ""),
    ("ssl_client_key_file", ""),
    ("ssl_key", ""),
    ("ssl_server_ca_file", ""),
    ("ssl_server_cert_file", ""),
    ("ssl_server_key_file", ""),
    ("ssl_server_request_client_cert", "no"),
    ("ssl_verify_client_cert", "no"),
];

/// The names of the settings that mean something here, for the manual.
pub fn known_settings() -> impl Iterator<Item = &'static str> {
    DEFAULTS.iter().map(|(name, _)| *name)
}

/// When written mail goes to disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fsync {
    /// After every write.
    Always,
    /// Where a crash would lose mail.
    Optimized,
    /// When the system likes.
    Never,
}

/// A configuration, read once; cloning it is cheap.
#[derive(Clone)]
pub struct Settings {
    inner: Arc<Inner>,
}

struct Inner {
    file: Option<PathBuf>,
    root: Section,
    overrides: Vec<Entry>,
}

impl fmt::Debug for Settings {
    // The values may be secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings").field("file", &self.inner.file).finish_non_exhaustive()
    }
}

impl Settings {
    /// Reads the configuration; `overrides` are `setting=value` and win over the file.
    ///
    /// Without `file`, reads the first of `/etc/dsync/dsync.conf` and `/etc/dovecot/dovecot.conf` that exists,
    /// and has only defaults if neither does. Values are checked when they are asked for.
    pub fn load(file: Option<&Path>, overrides: &[String]) -> Result<Self, ConfError> {
        // A file that cannot be looked at is there: silence would turn its rules off.
        let there = || FILES.iter().map(PathBuf::from).find(|path| !matches!(path.try_exists(), Ok(false)));
        let file = file.map(Path::to_owned).or_else(there);
        let root = match &file {
            Some(path) => parse::load(path)?,
            None => Section::new("", "", Place::Override),
        };
        let overrides = overrides.iter().map(|text| parse_override(text)).collect::<Result<Vec<_>, _>>()?;
        Ok(Self::new(file, root, overrides))
    }

    /// The settings of an empty file.
    pub fn defaults() -> Self {
        Self::new(None, Section::new("", "", Place::Override), Vec::new())
    }

    /// Reads configuration text.
    #[cfg(test)]
    pub(crate) fn parse(text: &str) -> Result<Self, ConfError> {
        let path = Path::new("/etc/dsync/dsync.conf");
        Ok(Self::new(Some(path.to_owned()), parse::parse(path, text)?, Vec::new()))
    }

    fn new(file: Option<PathBuf>, root: Section, overrides: Vec<Entry>) -> Self {
        for entry in root.entries.iter().chain(&overrides) {
            if !DEFAULTS.iter().any(|(known, _)| *known == entry.key) {
                debug!(place = %entry.place, setting = entry.key, "setting ignored");
            }
        }
        Self { inner: Arc::new(Inner { file, root, overrides }) }
    }

    /// The same file with another content.
    pub(super) fn with_root(&self, root: Section, overrides: Vec<Entry>) -> Self {
        Self { inner: Arc::new(Inner { file: self.inner.file.clone(), root, overrides }) }
    }

    pub(crate) fn root(&self) -> &Section {
        &self.inner.root
    }

    pub(super) fn overrides(&self) -> std::slice::Iter<'_, Entry> {
        self.inner.overrides.iter()
    }

    /// The setting as written: an override, else one for doveadm alone, else the last in the file.
    pub(crate) fn entry(&self, setting: &str) -> Option<&Entry> {
        let named = |entry: &&Entry| entry.key == setting;
        let inner = &self.inner;
        let mut own = inner.root.of_kind("protocol").filter(|section| section.title == "doveadm");
        inner
            .overrides
            .iter()
            .rev()
            .find(named)
            .or_else(|| own.find_map(|section| section.entry(setting)))
            .or_else(|| inner.root.entry(setting))
    }

    /// The place and text of a setting; `<file` is read here. An empty text is no value.
    pub(super) fn value(&self, setting: &str) -> Result<Option<(Place, String)>, ConfError> {
        let Some(entry) = self.entry(setting) else { return Ok(None) };
        let text = match &entry.value {
            Value::Text(text) => text.clone(),
            Value::File(path) => {
                let bytes = read_file(entry, path)?;
                String::from_utf8_lossy(&bytes).trim_end_matches(['\r', '\n']).to_owned()
            }
        };
        Ok((!text.is_empty()).then(|| (entry.place.clone(), text)))
    }

    pub(crate) fn parsed<T>(
        &self,
        setting: &str,
        what: &str,
        read: impl Fn(&str) -> Option<T>,
    ) -> Result<Option<T>, ConfError> {
        let Some((place, text)) = self.value(setting)? else { return Ok(None) };
        match read(&text) {
            Some(value) => Ok(Some(value)),
            None => Err(invalid(place, setting, format!("\"{}\" is not {what}", text.escape_debug()))),
        }
    }

    pub(super) fn yes(&self, setting: &str) -> Result<Option<bool>, ConfError> {
        self.parsed(setting, "yes or no", parse_bool)
    }

    fn number(&self, setting: &str, default: u32) -> Result<u32, ConfError> {
        let read = |text: &str| text.parse().ok().filter(|&number| number > 0);
        let what = format!("a number from 1 to {}", u32::MAX);
        Ok(self.parsed(setting, &what, read)?.unwrap_or(default))
    }

    /// The text of any setting; `None` if it is not set, empty, or in a file that cannot be read.
    pub fn text(&self, setting: &str) -> Option<String> {
        self.value(setting)
            .unwrap_or_else(|error| {
                debug!(%error, "no value");
                None
            })
            .map(|(_, text)| text)
    }

    /// How databases spell the names of users; `None`: as they are given. So they are left where there is no database, too: each name is a user then.
    pub(crate) fn username_format(&self) -> Option<String> {
        if self.entry("auth_username_format").is_some() {
            return self.text("auth_username_format");
        }
        let databases = ["userdb", "passdb"].iter().any(|kind| self.root().of_kind(kind).next().is_some());
        databases.then(|| USERNAME_FORMAT.to_owned())
    }

    /// The file that was read.
    pub fn file(&self) -> Option<&Path> {
        self.inner.file.as_deref()
    }

    /// The addresses to listen on.
    pub fn listen(&self) -> Result<Vec<String>, ConfError> {
        let words = self.text_words("listen")?;
        Ok(if words.is_empty() { vec!["*".to_owned(), "::".to_owned()] } else { words })
    }

    fn text_words(&self, setting: &str) -> Result<Vec<String>, ConfError> {
        let text = self.value(setting)?.map(|(_, text)| text).unwrap_or_default();
        let words = text.split(|c: char| c == ',' || c.is_whitespace());
        Ok(words.filter(|word| !word.is_empty()).map(str::to_owned).collect())
    }

    /// The port of the doveadm protocol.
    pub fn doveadm_port(&self) -> Result<u16, ConfError> {
        let port = self.parsed("doveadm_port", "a port number (1 to 65535)", |text| text.parse().ok())?;
        Ok(port.filter(|&port| port != 0).unwrap_or(DOVEADM_PORT))
    }

    /// The password that servers trust each other by.
    pub fn doveadm_password(&self) -> Result<Option<Secret>, ConfError> {
        Ok(self.value("doveadm_password")?.map(|(_, text)| Secret::new(text)))
    }

    /// The client certificates that may act for every user.
    pub fn dsync_admin_certs(&self) -> Vec<String> {
        self.text_words("dsync_admin_certs").unwrap_or_default()
    }

    /// The command that reaches the other side; see [`crate::command`].
    pub fn dsync_remote_cmd(&self) -> String {
        self.text("dsync_remote_cmd").unwrap_or_else(|| REMOTE_CMD.to_owned())
    }

    /// When written mail goes to disk.
    pub fn mail_fsync(&self) -> Result<Fsync, ConfError> {
        let read = |text: &str| match text {
            "always" => Some(Fsync::Always),
            "optimized" => Some(Fsync::Optimized),
            "never" => Some(Fsync::Never),
            _ => None,
        };
        Ok(self.parsed("mail_fsync", "always, optimized or never", read)?.unwrap_or(Fsync::Optimized))
    }

    /// Where the configuration turns on the plugin mail_crypt, whose mail only Dovecot can read.
    pub fn encrypts(&self) -> Option<&Place> {
        if let Some(entry) = self.entry("mail_plugins") {
            let named = |text: &str| text.split_whitespace().any(|word| word == "mail_crypt");
            return matches!(&entry.value, Value::Text(text) if named(text)).then_some(&entry.place);
        }
        let mut lists = self.root().of_kind("mail_plugins");
        let list = lists.find(|list| list.yes("mail_crypt"))?;
        list.entry("mail_crypt").map(|entry| &entry.place)
    }

    /// Bytes beyond which a file of mdbox takes no further message; `None`: the usual.
    pub fn mdbox_rotate_size(&self) -> Result<Option<u64>, ConfError> {
        self.parsed("mdbox_rotate_size", "a size such as 10M", units::size)
    }

    /// Seconds after which a file of mdbox takes no further message; 0: it does at any age.
    pub fn mdbox_rotate_interval(&self) -> Result<u64, ConfError> {
        let interval = self.parsed("mdbox_rotate_interval", "a time such as 2 days", units::seconds)?;
        Ok(interval.unwrap_or(0))
    }

    /// Most connections at a time.
    pub fn max_connections(&self) -> Result<u32, ConfError> {
        self.number("dsync_max_connections", 256)
    }

    /// Most connections at a time from one address.
    pub fn max_connections_per_ip(&self) -> Result<u32, ConfError> {
        self.number("dsync_max_connections_per_ip", 32)
    }

    /// Most connections at a time that have not logged in.
    pub fn max_unauthenticated(&self) -> Result<u32, ConfError> {
        self.number("dsync_max_unauthenticated", 64)
    }

    /// Seconds of silence after which a peer is given up.
    pub fn silence_secs(&self) -> Result<u32, ConfError> {
        self.number("dsync_silence_secs", 600)
    }
}

/// Makes the error for a value that means nothing.
pub(crate) fn invalid(place: Place, setting: &str, what: String) -> ConfError {
    ConfError::Invalid { place, setting: setting.to_owned(), what }
}

fn is_empty(entry: &Entry) -> bool {
    matches!(&entry.value, Value::Text(text) | Value::File(text) if text.is_empty())
}

/// Reads the file a setting names, relative to the file the setting is in.
fn read_file(entry: &Entry, path: &str) -> Result<Vec<u8>, ConfError> {
    let path = entry.place.dir().unwrap_or(Path::new("")).join(path);
    parse::read_limited(&path, VALUE_FILE_BYTES_MAX).map_err(|source| ConfError::File {
        place: entry.place.clone(),
        setting: entry.key.clone(),
        path,
        source,
    })
}

fn parse_override(text: &str) -> Result<Entry, ConfError> {
    let Some((key, value)) = text.split_once('=').filter(|(key, _)| !key.trim().is_empty()) else {
        // Not quoted: it may be a password that lost its name.
        return Err(ConfError::Syntax { place: Place::Override, what: "expected setting=value".to_owned() });
    };
    let value = match value.trim_start().strip_prefix('<') {
        Some(path) => Value::File(path.to_owned()),
        None => Value::Text(value.trim().to_owned()),
    };
    Ok(Entry { key: key.trim().to_owned(), value, place: Place::Override })
}
