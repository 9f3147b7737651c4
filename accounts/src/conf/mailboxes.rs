//! What the configuration says of mailboxes and destinations: special uses, namespaces, `mail_replica`.

use super::{
    error::ConfError,
    settings::{Settings, invalid},
};
use crate::{
    user::User,
    variables::{Vars, expand},
};

impl Settings {
    /// Names of a user's mailboxes whose `special_use` has this flag, `\Trash` say, prefixes of their namespaces included.
    pub fn special_use(&self, flag: &str, user: &User) -> Result<Vec<String>, ConfError> {
        let namespaces = self.prefixes(user)?;
        let root = std::iter::once(("", self.root()));
        let holders = root.chain(namespaces.iter().map(|(prefix, namespace)| (prefix.as_str(), namespace)));
        let mut names = Vec::new();
        for (prefix, holder) in holders {
            for mailbox in holder.of_kind("mailbox") {
                let uses =
                    mailbox.text("special_use").or(mailbox.text("mailbox_special_use")).unwrap_or_default();
                if uses.split_whitespace().any(|known| known.eq_ignore_ascii_case(flag)) {
                    let name = mailbox.text("mailbox_name").unwrap_or(&mailbox.title);
                    names.push(format!("{prefix}{name}"));
                }
            }
        }
        Ok(names)
    }

    /// Where `-d` leads: the user's field `mail_replica`, which is empty if he has none, or else the setting, variables expanded.
    pub fn mail_replica(&self, user: &User) -> Result<Option<String>, ConfError> {
        if let Some(known) = user.extra.get("mail_replica") {
            return Ok((!known.is_empty()).then(|| known.clone()));
        }
        let mut plugins = self.root().of_kind("plugin");
        let entry =
            self.entry("mail_replica").or_else(|| plugins.find_map(|plugin| plugin.entry("mail_replica")));
        let Some(entry) = entry else { return Ok(None) };
        let super::tree::Value::Text(text) = &entry.value else {
            return Err(invalid(entry.place.clone(), "mail_replica", "a file is no destination".to_owned()));
        };
        let expanded = expand(text, &Vars::of(user)).map_err(|source| ConfError::Variable {
            place: entry.place.clone(),
            setting: "mail_replica".to_owned(),
            source,
        })?;
        Ok((!expanded.is_empty()).then_some(expanded))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn special_uses_are_found_in_namespaces_and_outside() {
        let text = "namespace inbox {\n inbox = yes\n mailbox Trash {\n special_use = \\Trash\n }\n mailbox \"Sent Messages\" {\n \
                    special_use = \\Sent \\Archive\n }\n}\nnamespace shared {\n prefix = Shared/\n mailbox Bin {\n special_use = \\trash\n }\n}\n";
        let settings = Settings::parse(text).unwrap();
        let mut user = User::named("alice");
        let names = |flag: &str, user: &User| settings.special_use(flag, user).unwrap();
        assert_eq!(names("\\Trash", &user), ["Trash", "Shared/Bin"]);
        assert_eq!(names("\\Sent", &user), ["Sent Messages"]);
        assert!(names("\\Junk", &user).is_empty());
        for (field, value) in [("namespace/inbox/prefix", "INBOX/"), ("namespace/shared/prefix", "")] {
            user.extra.insert(field.into(), value.into());
        }
        assert_eq!(names("\\Trash", &user), ["INBOX/Trash", "Bin"]);
        user.extra.insert("namespace/shared/disabled".into(), "yes".into());
        assert_eq!(names("\\Trash", &user), ["INBOX/Trash"]);
    }

    #[test]
    fn the_replica_is_the_users_or_the_plugins() {
        let settings = Settings::parse("plugin {\n mail_replica = tcp:%d.example.org\n}\n").unwrap();
        let mut user = User::named("alice@mx");
        assert_eq!(settings.mail_replica(&user).unwrap().as_deref(), Some("tcp:mx.example.org"));
        user.extra.insert("mail_replica".into(), "remote:other".into());
        assert_eq!(settings.mail_replica(&user).unwrap().as_deref(), Some("remote:other"));
        assert_eq!(Settings::defaults().mail_replica(&User::named("bob")).unwrap(), None);
    }
}
