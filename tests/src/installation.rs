//! Which Dovecot the tests run beside, and in which words its release wants to be told where mail is.
//!
//! It is Debian's 2.3, or, where `DSYNC_DOVECOT24` names a prefix, the 2.4 that is installed there: the same tests, another Dovecot.
//! How one is built stands in docs/dovecot-protocol.md.

use std::path::{Path, PathBuf};

/// The variable that names the prefix of a 2.4.
const PREFIX: &str = "DSYNC_DOVECOT24";
/// What a 2.4's configuration begins with.
const VERSION: &str = "2.4.1";

/// The user is whoever runs `doveadm`.
const NO_LOOKUP: &str = "--no-userdb-lookup";

/// The words of a location, and what 2.4 calls them.
const WORDS: [(&str, &str); 7] = [
    ("INBOX", "mail_inbox_path"),
    ("INDEX", "mail_index_path"),
    ("CONTROL", "mail_control_path"),
    ("ALT", "mail_alt_path"),
    ("LAYOUT", "mailbox_list_layout"),
    ("DIRNAME", "mailbox_directory_name"),
    ("LISTINDEX", "mailbox_list_index_prefix"),
];

/// The prefix of the 2.4 that takes the place of the system's Dovecot.
fn prefix() -> Option<PathBuf> {
    std::env::var_os(PREFIX).map(PathBuf::from)
}

/// Whether the Dovecot is a 2.4.
pub fn is_24() -> bool {
    prefix().is_some()
}

/// A program of the Dovecot: `doveadm`, `doveconf`, `dovecot`, or one of those that `dovecot` starts.
pub fn program(name: &str) -> PathBuf {
    let prefix = prefix();
    let place = match (name, &prefix) {
        ("doveadm" | "doveconf", _) => "bin",
        ("dovecot", _) => "sbin",
        (_, None) => "lib/dovecot",
        (_, Some(_)) => "libexec/dovecot",
    };
    prefix.unwrap_or_else(|| PathBuf::from("/usr")).join(place).join(name)
}

/// The lines with which a configuration begins.
pub fn head() -> String {
    if is_24() {
        // Else it sets a keyword when it first reads a message, whoever wrote that.
        format!(
            "dovecot_config_version = {VERSION}\ndovecot_storage_version = {VERSION}\nmail_attachment_detection_options =\n"
        )
    } else {
        String::new()
    }
}

/// The settings that say where mail is, by name; `location` in the words of 2.3. Only what tests use is known.
pub fn mail(location: &str) -> Vec<(&'static str, String)> {
    if !is_24() {
        return vec![("mail_location", location.to_owned())];
    }
    let mut words = location.split(':');
    let driver = words.next().unwrap_or_default();
    let path = words.next().unwrap_or_default();
    let mut settings = vec![("mail_driver", driver.to_owned()), ("mail_path", path.to_owned())];
    for word in words {
        let known = word.split_once('=').and_then(|(key, value)| {
            let (_, setting) = WORDS.iter().find(|(known, _)| *known == key)?;
            Some((*setting, value.to_owned()))
        });
        settings.push(known.unwrap_or_else(|| panic!("{word} of {location} has no name in 2.4 here")));
    }
    let apart = |(name, _): &(_, String)| matches!(*name, "mail_index_path" | "mail_control_path");
    if driver.ends_with("dbox") && settings.iter().any(apart) {
        // Else it puts the directory of a dbox into these paths, too.
        settings.push(("mailbox_directory_name_legacy", "yes".to_owned()));
    }
    settings
}

/// [`mail`] as lines of a configuration, or of a section of it.
pub fn mail_lines(location: &str) -> String {
    mail(location).iter().map(|(name, value)| format!("{name} = {value}\n")).collect()
}

/// [`mail`] as options of a program.
pub fn mail_options(location: &str) -> Vec<String> {
    options(mail(location))
}

/// Settings as options of a program.
pub fn options<'a>(settings: impl IntoIterator<Item = (&'a str, String)>) -> Vec<String> {
    settings.into_iter().flat_map(|(name, value)| ["-o".to_owned(), format!("{name}={value}")]).collect()
}

/// The options that say in which file mailbox attributes are.
pub fn attribute_options(file: &str) -> Vec<String> {
    if is_24() {
        options([
            ("mail_attribute/dict", "file".to_owned()),
            ("mail_attribute/dict/file/path", file.to_owned()),
        ])
    } else {
        options([("mail_attribute_dict", format!("file:{file}"))])
    }
}

/// The certificate of a server, in this directory.
pub fn certificate(dir: &Path) -> String {
    let dir = dir.display();
    if is_24() {
        format!("ssl_server_cert_file = {dir}/server.pem\nssl_server_key_file = {dir}/server.key\n")
    } else {
        format!("ssl_cert = <{dir}/server.pem\nssl_key = <{dir}/server.key\n")
    }
}

/// The databases of users in a passwd-file there, and the certificate beside it.
pub fn databases(dir: &Path) -> String {
    let certificate = certificate(dir);
    let dir = dir.display();
    if is_24() {
        format!(
            "passdb passwd-file {{\n  passwd_file_path = {dir}/passwd\n}}\nuserdb passwd-file {{\n  passwd_file_path = {dir}/passwd\n}}\n{certificate}"
        )
    } else {
        format!(
            "passdb {{\n  driver = passwd-file\n  args = {dir}/passwd\n}}\nuserdb {{\n  driver = passwd-file\n  args = {dir}/passwd\n}}\n{certificate}"
        )
    }
}

/// Words for `doveadm`. A 2.4 does nothing for a user of whom nobody says how to look him up: its own environment is to say who that is.
pub fn words(words: &[&str]) -> Vec<String> {
    let mut words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
    let begin = (0..words.len()).find(|at| {
        let is_value = *at > 0 && matches!(&*words[at - 1], "-f" | "-o");
        !is_value && !words[*at].starts_with('-')
    });
    let Some(begin) = begin.filter(|_| is_24()) else { return words };
    let length = match &*words[begin] {
        "exec" | "dump" | "pw" | "kick" | "who" | "user" | "stop" => return words,
        "mailbox" if matches!(words.get(begin + 1).map(|word| &**word), Some("metadata" | "cache")) => 3,
        "mailbox" | "flags" => 2,
        _ => 1,
    };
    words.insert(begin + length, NO_LOOKUP.to_owned());
    words
}

/// What `doveadm dsync-server` needs behind it where no user is named.
pub fn dsync_server() -> Vec<String> {
    words(&["dsync-server"])
}

/// [`mail`] as lines of a namespace.
pub fn own_mail_lines(location: &str) -> String {
    if is_24() { mail_lines(location) } else { format!("location = {location}\n") }
}

/// A userdb of one user.
pub fn home(home: &Path) -> String {
    let home = home.display();
    if is_24() {
        format!("userdb static {{\n  fields {{\n    home = {home}\n  }}\n}}\n")
    } else {
        format!("userdb {{\n  driver = static\n  args = home={home}\n}}\n")
    }
}

/// Where a 2.4 finds the home of a user whom it does not look up; 2.3 takes `HOME`.
pub fn mail_home(home: &Path) -> String {
    if is_24() { format!("mail_home = {}\n", home.display()) } else { String::new() }
}
