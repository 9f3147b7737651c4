//! A user of the mail system, and which names may be one.

use std::{collections::BTreeMap, io, path::PathBuf};

use crate::{
    conf::ConfError,
    variables::{VarError, Vars, expand},
};

/// Longest user name.
const NAME_BYTES_MAX: usize = 255;

/// What the userdb knows of a user.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct User {
    /// The name, safe as one part of a path.
    pub name: String,
    /// The home directory.
    pub home: Option<PathBuf>,
    /// The mail location, variables expanded.
    pub mail: Option<String>,
    /// The system user that owns the mail.
    pub uid: Option<u32>,
    /// The system group that owns the mail.
    pub gid: Option<u32>,
    /// Other fields, by name.
    pub extra: BTreeMap<String, String>,
}

impl User {
    /// A user of whom only the name is known.
    pub(crate) fn named(name: &str) -> Self {
        Self { name: name.to_owned(), ..Self::default() }
    }

    /// Takes fields of a userdb, variables not yet expanded; later ones win, empty ones do not count unless [they may](may_be_empty).
    pub(crate) fn set_fields(&mut self, fields: &[(String, String)]) -> Result<(), UserError> {
        // The home comes first: other fields may use it.
        let is_home = |key: &str| key == "home";
        let (homes, others): (Vec<_>, Vec<_>) = fields.iter().partition(|(key, _)| is_home(key));
        for (key, template) in homes.into_iter().chain(others) {
            if template.is_empty() && !may_be_empty(key) {
                continue;
            }
            let value = expand(template, &Vars::of(self))
                .map_err(|source| UserError::Variable { field: key.clone(), source })?;
            match key.as_str() {
                "home" => self.home = Some(value.into()),
                "mail" => self.mail = Some(value),
                "uid" => self.uid = Some(system_id(key, &value)?),
                "gid" => self.gid = Some(system_id(key, &value)?),
                _ => {
                    self.extra.insert(key.clone(), value);
                }
            }
        }
        Ok(())
    }
}

impl User {
    /// Takes the fields that a database gave for this user: as they are, but for `mail` and those that are named as settings of mail.
    pub(crate) fn set_found(&mut self, fields: &[(String, String)]) -> Result<(), UserError> {
        for (key, value) in fields.iter().filter(|(key, value)| !value.is_empty() || may_be_empty(key)) {
            match key.as_str() {
                "home" => self.home = Some(value.into()),
                "uid" => self.uid = Some(system_id(key, value)?),
                "gid" => self.gid = Some(system_id(key, value)?),
                // The database knows the user by this name.
                "user" => {
                    check_user(value)?;
                    self.name.clone_from(value);
                }
                setting if is_of_mail(setting) => {}
                _ => {
                    self.extra.insert(key.clone(), value.clone());
                }
            }
        }
        // It may use what came with it.
        let mail: Vec<_> = fields.iter().filter(|(key, _)| is_of_mail(key)).cloned().collect();
        self.set_fields(&mail)
    }
}

/// Whether a field is a setting that says where mail is, or how it is kept: its variables are expanded.
fn is_of_mail(field: &str) -> bool {
    field == "mail" || field.starts_with("mail_") || field.starts_with("mailbox_")
}

/// Says whether an empty value is one: of a setting it stands for none, whatever is configured, as in Dovecot 2.4 (2.3.19 takes every
/// empty one for "yes", and fails). An empty column, the home or an id, says nothing.
fn may_be_empty(field: &str) -> bool {
    field.starts_with("namespace/") || (is_of_mail(field) && field != "mail")
}

/// Reads a number, or the name of a system user or group.
pub(crate) fn system_id(field: &str, value: &str) -> Result<u32, UserError> {
    if let Ok(id) = value.parse() {
        return Ok(id);
    }
    let found = if field == "uid" {
        nix::unistd::User::from_name(value).map(|user| user.map(|user| user.uid.as_raw()))
    } else {
        nix::unistd::Group::from_name(value).map(|group| group.map(|group| group.gid.as_raw()))
    };
    let found =
        found.map_err(|errno| UserError::Temporary { what: field.to_owned(), source: errno.into() })?;
    found.ok_or_else(|| UserError::Invalid(format!("{field}: no system account {value:?}")))
}

/// A mail location of the command line, its variables expanded for a user; a leading `~/` stays as it is.
pub fn location_for(template: &str, user: &User) -> Result<String, UserError> {
    let failed = |source| UserError::Variable { field: format!("mail location {template:?}"), source };
    expand(template, &Vars::of(user)).map_err(failed)
}

/// Why a user cannot be found, or not be let in.
#[derive(Debug, thiserror::Error)]
pub enum UserError {
    /// The name cannot be a user's.
    #[error("user name {name:?} {why}")]
    Name {
        /// The name, cut if long.
        name: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The userdb does not have the user.
    #[error("unknown user {0:?}")]
    Unknown(String),
    /// The database cannot be asked now.
    #[error("{what}")]
    Temporary {
        /// What was asked.
        what: String,
        /// Why it did not answer.
        source: io::Error,
    },
    /// The user exists and is not let in.
    #[error("{0}")]
    Refused(String),
    /// Something Dovecot can do and dsync cannot.
    #[error("{0}")]
    Unsupported(String),
    /// The database, or a password hash, has a value that means nothing.
    #[error("{0}")]
    Invalid(String),
    /// A field uses a variable that is unknown or has no value.
    #[error("{field}")]
    Variable {
        /// The field.
        field: String,
        /// What is wrong with the variable.
        source: VarError,
    },
    /// The configuration is wrong.
    #[error(transparent)]
    Conf(#[from] ConfError),
}

impl UserError {
    /// The exit status of a program that ends with this error.
    pub fn status(&self) -> u8 {
        match self {
            Self::Name { .. } | Self::Unknown(_) => 67,
            Self::Temporary { .. } => 75,
            Self::Refused(_) => 77,
            Self::Unsupported(_) | Self::Invalid(_) | Self::Variable { .. } => 78,
            Self::Conf(error) => error.status(),
        }
    }
}

/// Checks that a name can be part of a path, a log line and a command.
///
/// The halves around the first `@` are parts of paths too (`%d/%n`), so neither is empty, `.` or `..`.
pub fn check_user(name: &str) -> Result<(), UserError> {
    let dots = |part: &str| matches!(part, "." | "..");
    let halves = name.split_once('@');
    let why = if name.is_empty() {
        "is empty"
    } else if name.len() > NAME_BYTES_MAX {
        "is longer than 255 bytes"
    } else if name.contains('/') {
        "has a slash"
    } else if name.contains(char::is_control) {
        "has a control character"
    } else if name.contains(char::is_whitespace) {
        "has white space"
    } else if name.starts_with('-') {
        "begins with a hyphen"
    } else if dots(name) || halves.is_some_and(|(local, domain)| dots(local) || dots(domain)) {
        "is made of dots"
    } else if halves.is_some_and(|(local, domain)| local.is_empty() || domain.is_empty()) {
        "lacks a part before or after \"@\""
    } else {
        return Ok(());
    };
    Err(UserError::Name { name: name.chars().take(64).collect(), why })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_that_are_safe_in_a_path_are_users() {
        for name in ["alice", "alice@example.org", "a.b+c", "émile", ".x", "a@b@c", &"x".repeat(255)] {
            assert!(check_user(name).is_ok(), "{name}");
        }
        let long = "x".repeat(256);
        for name in
            ["", ".", "..", "a/b", "-a", "a b", "a\0", "a\n", "..@x", "x@..", "@x", "x@", "a\u{a0}", &long]
        {
            assert_eq!(check_user(name).expect_err(name).status(), 67);
        }
    }
}
