//! Where a user's mail is: `mail_location` of Dovecot 2.3, or its parts in 2.4.

use super::{
    error::{ConfError, Place},
    settings::{Settings, invalid},
    tree::Section,
};
use crate::{
    user::User,
    variables::{Vars, expand},
};

/// Settings of a namespace that give it mail of its own.
const OWN_MAIL: [&str; 5] = ["location", "mail_location", "mail_driver", "mail_path", "mail_inbox_path"];

impl Settings {
    /// The user's mail location, variables expanded; `None` if neither the user nor the settings say.
    ///
    /// The user's own `mail`, which the userdb has expanded, wins. A leading `~/` stays as it is. Dovecot's 2.4
    /// settings come out in the 2.3 form, `driver:path:INBOX=...:INDEX=...:CONTROL=...:LAYOUT=...`.
    pub fn mail_location(&self, user: &User) -> Result<Option<String>, ConfError> {
        for namespace in self.root().of_kind("namespace") {
            check_namespace(namespace)?;
        }
        if let Some(mail) = user.mail.as_ref().filter(|mail| !mail.is_empty()) {
            return Ok(Some(mail.clone()));
        }
        let vars = Vars::of(user);
        let get = |setting: &str| -> Result<Option<(Place, String)>, ConfError> {
            let Some((place, text)) = self.value(setting)? else { return Ok(None) };
            match expand(&text, &vars) {
                Ok(text) => Ok(Some((place, text))),
                Err(source) => Err(ConfError::Variable { place, setting: setting.to_owned(), source }),
            }
        };
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
                (None, None) => Ok(None),
            };
        };
        let mut location = match driver {
            Some((_, driver)) => format!("{driver}:{path}"),
            None => path,
        };
        let parts = [
            ("INBOX", "mail_inbox_path"),
            ("INDEX", "mail_index_path"),
            ("CONTROL", "mail_control_path"),
            ("LAYOUT", "mailbox_list_layout"),
        ];
        for (name, setting) in parts {
            let Some((place, value)) = get(setting)? else { continue };
            if value.contains(':') {
                return Err(invalid(place, setting, "dsync cannot use a path with \":\"".to_owned()));
            }
            location.push_str(&format!(":{name}={value}"));
        }
        Ok(Some(location))
    }
}

/// Refuses a namespace that keeps mail apart from the user's other mail.
fn check_namespace(namespace: &Section) -> Result<(), ConfError> {
    if namespace.yes("disabled") {
        return Ok(());
    }
    let set = |key: &&str| namespace.entry(key).is_some() && namespace.text(key) != Some("");
    let what = match (set(&"prefix"), OWN_MAIL.iter().find(|key| set(key))) {
        (true, _) => "a prefix",
        (false, Some(_)) => "a location of its own",
        (false, None) => return Ok(()),
    };
    let title = &namespace.title;
    let what =
        format!("namespace {title:?} has {what}, which dsync does not support (disabled = yes skips it)");
    Err(ConfError::Unsupported { place: namespace.place.clone(), what })
}
