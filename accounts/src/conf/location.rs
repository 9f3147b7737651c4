//! Where a user's mail is: `mail_location` of Dovecot 2.3, or its parts in 2.4.

use std::path::PathBuf;

use super::{
    error::{ConfError, Place},
    settings::{Settings, invalid},
};
use crate::{
    user::User,
    variables::{Vars, expand},
};

/// The words of a location for settings of 2.4 that have a value.
const PATHS: [(&str, &str); 9] = [
    ("INDEX", "mail_index_path"),
    ("INDEXCACHE", "mail_cache_path"),
    ("CONTROL", "mail_control_path"),
    ("ALT", "mail_alt_path"),
    ("VOLATILEDIR", "mail_volatile_path"),
    ("LAYOUT", "mailbox_list_layout"),
    ("SUBSCRIPTIONS", "mailbox_subscriptions_filename"),
    ("MAILBOXDIR", "mailbox_root_directory_name"),
    ("LISTINDEX", "mailbox_list_index_prefix"),
];

impl Settings {
    /// The user's mail location, variables expanded; `None` if neither the user nor the settings say.
    ///
    /// The user's own `mail`, which the userdb has expanded, wins. A leading `~/` stays as it is. Dovecot's 2.4
    /// settings come out in the 2.3 form, `driver:path:INBOX=...:INDEX=...` (storage formats reference, 12).
    pub fn mail_location(&self, user: &User) -> Result<Option<String>, ConfError> {
        if let Some(mail) = user.mail.as_ref().filter(|mail| !mail.is_empty()) {
            return Ok(Some(mail.clone()));
        }
        let get = |setting: &str| self.expanded(setting, user);
        // Of the two forms, an override's or the only one there.
        let overridden = self.entry("mail_location").is_some_and(|entry| entry.place == Place::Override);
        let driver = get("mail_driver")?.filter(|(_, driver)| driver != "auto");
        let path = if overridden { None } else { get("mail_path")? };
        let Some((_, path)) = path else {
            let location = get("mail_location")?;
            return match (location, driver) {
                (Some((_, location)), _) => Ok(Some(location)),
                (None, Some((place, _))) => {
                    Err(invalid(place, "mail_driver", "set, but mail_path is not".to_owned()))
                }
                // In 2.4 the namespace with INBOX may say it.
                (None, None) => self.own_mail_of_usual(user),
            };
        };
        let driver = driver.map(|(_, driver)| driver);
        let mut location = match &driver {
            Some(driver) => format!("{driver}:{}", glued(&path)),
            // Else the path would be taken for a driver's name.
            None if !path.starts_with(['/', '~']) => format!("auto:{}", glued(&path)),
            None => glued(&path),
        };
        let mut add = |key: &str, value: &str| location.push_str(&format!(":{key}={}", glued(value)));
        if let Some((_, inbox)) = get("mail_inbox_path")? {
            add("INBOX", &inbox_path(&path, &inbox));
        }
        for (key, setting) in PATHS {
            if let Some((_, value)) = get(setting)? {
                add(key, &value);
            }
        }
        let dbox = driver.is_some_and(|driver| matches!(&*driver, "sdbox" | "mdbox" | "dbox"));
        let apart = get("mail_index_path")?.is_some() || get("mail_control_path")?.is_some();
        let directory = get("mailbox_directory_name")?.map(|(_, name)| name);
        // 2.4 puts the directory's name into index and control paths too, unless told to do as 2.3 did.
        if let Some(name) = directory.or_else(|| (dbox && apart).then(|| "dbox-Mails".to_owned())) {
            add(if self.is_legacy_directory(apart)? { "DIRNAME" } else { "FULLDIRNAME" }, &name);
        }
        if self.yes("mailbox_list_utf8")? == Some(true) {
            location.push_str(":UTF-8");
        }
        if self.yes("mail_alt_check")? == Some(false) {
            location.push_str(":ALTNOCHECK");
        }
        Ok(Some(location))
    }

    /// Whether the paths of indexes and control files, if they are `apart`, lack the directory's name, as in 2.3 (`mailbox_directory_name_legacy`). The default
    /// of 2.4.0 and 2.4.1, "yes", is "no" since 2.4.2, whatever version a configuration names; who takes the wrong one looks for indexes where there are none.
    fn is_legacy_directory(&self, apart: bool) -> Result<bool, ConfError> {
        const SETTING: &str = "mailbox_directory_name_legacy";
        const CHANGED: [u32; 3] = [2, 4, 2];
        if let Some(known) = self.yes(SETTING)? {
            return Ok(known);
        }
        let Some((place, text)) = self.value("dovecot_config_version")?.filter(|_| apart) else {
            return Ok(false);
        };
        let version = text.split('.').map(str::parse).collect::<Result<Vec<u32>, _>>();
        if version.is_ok_and(|version| version[..] < CHANGED[..]) {
            let what = "not set, and indexes or control files are apart: say \"yes\" for a Dovecot 2.4.0 or 2.4.1, \"no\" for a later one";
            return Err(invalid(place, SETTING, what.to_owned()));
        }
        Ok(false)
    }

    /// Where dbox keeps attachments outside of the mails (`mail_attachment_dir`, in 2.4 `mail_ext_attachment_path`), variables
    /// expanded; `None` if nobody says.
    pub fn mail_attachment_dir(&self, user: &User) -> Result<Option<PathBuf>, ConfError> {
        let (mut found, mut setting) = (None, "");
        for name in ["mail_attachment_dir", "mail_ext_attachment_path"] {
            if let Some(value) = self.expanded(name, user)?.filter(|_| found.is_none()) {
                (found, setting) = (Some(value), name);
            }
        }
        let Some((place, text)) = found else { return Ok(None) };
        let path = match (text.strip_prefix("~/"), &user.home) {
            (Some(rest), Some(home)) => home.join(rest),
            (Some(_), None) => return Err(invalid(place, setting, "the user has no home".to_owned())),
            (None, _) => PathBuf::from(&text),
        };
        if !path.is_absolute() {
            return Err(invalid(place, setting, format!("\"{}\" is no absolute path", text.escape_debug())));
        }
        Ok(Some(path))
    }

    /// The dict of mailbox attributes (`mail_attribute_dict`, or 2.4's `mail_attribute`) in the words of 2.3, variables and `~/` of a file
    /// dict expanded; `None` if nobody says.
    pub fn mail_attribute_dict(&self, user: &User) -> Result<Option<String>, ConfError> {
        let set = self.expanded("mail_attribute_dict", user)?;
        let Some((place, text)) = set.map_or_else(|| self.attribute_block(user), |set| Ok(Some(set)))? else {
            return Ok(None);
        };
        match (text.strip_prefix("file:~/"), &user.home) {
            _ if text.is_empty() => Ok(None),
            (Some(rest), Some(home)) => Ok(Some(format!("file:{}", home.join(rest).display()))),
            (Some(_), None) => Err(invalid(place, "mail_attribute_dict", "the user has no home".to_owned())),
            (None, _) => Ok(Some(text)),
        }
    }

    /// `mail_attribute { dict file { path = P } }`, or with `dict_driver` and `dict_file_path`.
    fn attribute_block(&self, user: &User) -> Result<Option<(Place, String)>, ConfError> {
        let Some(block) = self.root().of_kind("mail_attribute").last() else { return Ok(None) };
        let dict = block.of_kind("dict").last();
        let named = dict.map(|dict| dict.text("driver").or(dict.text("dict_driver")).unwrap_or(&dict.title));
        let Some(driver) = named.or(block.text("dict_driver")) else { return Ok(None) };
        if driver != "file" {
            return Ok(Some((block.place.clone(), driver.to_owned())));
        }
        let path = dict.and_then(|dict| dict.text("path").or(dict.text("dict_file_path")));
        let path = path.or_else(|| block.of_kind("dict_file").last()?.text("path"));
        let Some(path) = path.or(block.text("dict_file_path")).filter(|path| !path.is_empty()) else {
            let what = "the file dict has no path".to_owned();
            return Err(invalid(block.place.clone(), "mail_attribute", what));
        };
        let text = self.expanded_text(&format!("file:{path}"), "mail_attribute", &block.place, user)?;
        Ok(Some((block.place.clone(), text)))
    }

    /// The place and text of a setting, variables expanded.
    fn expanded(&self, setting: &str, user: &User) -> Result<Option<(Place, String)>, ConfError> {
        // As in Dovecot, a field of the userdb goes before the setting of its name, also if it is empty, and `-o` before both.
        let overridden = self.entry(setting).is_some_and(|entry| entry.place == Place::Override);
        if let Some(text) = user.extra.get(setting).filter(|_| !overridden) {
            return Ok((!text.is_empty()).then(|| (Place::Userdb, text.clone())));
        }
        let Some((place, text)) = self.value(setting)? else { return Ok(None) };
        let text = self.expanded_text(&text, setting, &place, user)?;
        Ok(Some((place, text)))
    }

    /// A text with its variables expanded.
    pub(super) fn expanded_text(
        &self,
        text: &str,
        setting: &str,
        place: &Place,
        user: &User,
    ) -> Result<String, ConfError> {
        expand(text, &Vars::of(user)).map_err(|source| ConfError::Variable {
            place: place.clone(),
            setting: setting.to_owned(),
            source,
        })
    }
}

/// Writes a value so that its colons are not taken for the end of it.
fn glued(value: &str) -> String {
    value.replace(':', "::")
}

/// `mail_inbox_path` may be relative to `mail_path`: `.` is that itself.
fn inbox_path(root: &str, inbox: &str) -> String {
    match inbox {
        "." => root.to_owned(),
        _ if inbox.starts_with(['/', '~']) => inbox.to_owned(),
        _ => format!("{}/{inbox}", root.trim_end_matches('/')),
    }
}
