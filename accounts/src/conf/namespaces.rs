//! Namespaces of the configuration, in the syntax of 2.3 and of 2.4.

use super::{
    error::{ConfError, Place},
    settings::{Settings, invalid},
    tree::{Entry, Section, Value, parse_bool},
};
use crate::user::User;

/// One namespace that a session may be about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Namespace {
    /// With the separator at its end, or empty.
    pub prefix: String,
    /// The hierarchy separator, if it is set.
    pub separator: Option<char>,
    /// INBOX is in it.
    pub inbox: bool,
    /// It takes part where nobody says which ones do: in 2.3 if it has no location of its own, in 2.4 if it has INBOX.
    pub usual: bool,
    /// Clients can see it.
    pub visible: bool,
    /// It is the user's own: not of others, not of all.
    pub private: bool,
    /// It keeps the subscriptions of its names.
    pub subscriptions: bool,
    /// Where its mail is.
    pub mail: Mail,
}

/// Where the mail of a namespace is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mail {
    /// Where the user's mail is.
    Users,
    /// At this location, variables expanded.
    Own(String),
    /// Where dsync cannot get it; why.
    Unsupported(String),
}

/// Settings of a namespace that give it mail of its own.
const OWN_MAIL: [&str; 4] = ["location", "mail_location", "mail_driver", "mail_path"];
/// What stands for everything else that says where mail is.
const BEGINS: [&str; 3] = ["mail_", "mailbox_", "mdbox_"];

impl Settings {
    /// The namespaces, in their order; aliases of others are left out. Without any in the configuration there is one, without a prefix.
    pub fn namespaces(&self, user: &User) -> Result<Vec<Namespace>, ConfError> {
        let mut all = Vec::new();
        for section in self.root().of_kind("namespace").map(|section| told_by_userdb(section, user)) {
            if !section.yes("disabled") && get(&section, "alias_for").is_none() {
                all.push(self.namespace(&section, user)?);
            }
        }
        if all.is_empty() {
            all.push(Namespace {
                prefix: String::new(),
                separator: None,
                inbox: true,
                usual: true,
                visible: true,
                private: true,
                subscriptions: true,
                mail: Mail::Users,
            });
        }
        if all.iter().all(|namespace| !namespace.inbox)
            && let Some(first) = all.iter_mut().find(|one| one.prefix.is_empty() && one.mail == Mail::Users)
        {
            (first.inbox, first.usual) = (true, true);
        }
        Ok(all)
    }

    /// The namespaces that a user has, each with its prefix, as the userdb and else the configuration say.
    pub(super) fn prefixes(&self, user: &User) -> Result<Vec<(String, Section)>, ConfError> {
        let mut all = Vec::new();
        for section in self.root().of_kind("namespace").map(|section| told_by_userdb(section, user)) {
            if !section.yes("disabled") {
                let prefix = get(&section, "prefix").map(|(_, text)| text).unwrap_or_default();
                all.push((self.expanded_text(prefix, "prefix", &section.place, user)?, section));
            }
        }
        Ok(all)
    }

    /// Where the mail is of the namespace that takes part by itself, if it says so.
    pub(super) fn own_mail_of_usual(&self, user: &User) -> Result<Option<String>, ConfError> {
        let own = |namespace: Namespace| match namespace.mail {
            Mail::Own(location) if namespace.usual => Some(location),
            _ => None,
        };
        Ok(self.namespaces(user)?.into_iter().find_map(own))
    }

    fn namespace(&self, section: &Section, user: &User) -> Result<Namespace, ConfError> {
        let yes = |key: &str, usual: bool| match get(section, key) {
            None => Ok(usual),
            Some((place, text)) => parse_bool(text)
                .ok_or_else(|| invalid(place.clone(), key, format!("\"{text}\" is not yes or no"))),
        };
        let separator = match get(section, "separator").filter(|(_, text)| !text.is_empty()) {
            None => None,
            Some((place, text)) => {
                let mut chars = text.chars();
                let one = chars.next().filter(|_| chars.next().is_none());
                Some(one.ok_or_else(|| {
                    invalid(place.clone(), "separator", format!("\"{text}\" is not one character"))
                })?)
            }
        };
        let prefix = get(section, "prefix").map(|(_, text)| text.to_owned()).unwrap_or_default();
        let kind = get(section, "type").map_or("private", |(_, kind)| kind);
        let (shared, private) = (kind == "shared", kind == "private" || kind.is_empty());
        let own = OWN_MAIL.iter().any(|key| section.entry(key).is_some() && section.text(key) != Some(""));
        let listed = match get(section, "list") {
            Some((_, "children")) => true,
            _ => yes("list", true)?,
        };
        let inbox = yes("inbox", false)?;
        let mail = match own {
            _ if shared => Mail::Unsupported("the mail of other users is not supported".to_owned()),
            true => self.own_mail(section, user),
            false => Mail::Users,
        };
        // Whose mail it is only the name tells: what is in front of that names them all.
        let prefix = match prefix.find('%').filter(|_| shared) {
            Some(at) => prefix[..at].to_owned(),
            None => self.expanded_text(&prefix, "prefix", &section.place, user)?,
        };
        Ok(Namespace {
            usual: !shared && if self.entry("dovecot_config_version").is_some() { inbox } else { !own },
            visible: !shared && (listed || !yes("hidden", false)?),
            private,
            subscriptions: yes("subscriptions", true)?,
            prefix,
            separator,
            inbox,
            mail,
        })
    }

    /// The location that the settings within a namespace make.
    fn own_mail(&self, section: &Section, user: &User) -> Mail {
        let location = match section.entry("location") {
            Some(Entry { value: Value::Text(text), place, .. }) if !text.is_empty() => {
                self.expanded_text(text, "location", place, user).map(Some)
            }
            _ => {
                // What the userdb says of the user's mail is not said of this.
                let user = User { mail: None, ..user.clone() };
                self.within(section).mail_location(&user)
            }
        };
        match location {
            Ok(Some(location)) => Mail::Own(location),
            Ok(None) => Mail::Unsupported("it has no location".to_owned()),
            Err(error) => Mail::Unsupported(error.to_string()),
        }
    }

    /// The settings as they are within a section: what it sets comes before what stands outside and what overrides that.
    fn within(&self, section: &Section) -> Settings {
        let about_mail = |entry: &&Entry| BEGINS.iter().any(|begin| entry.key.starts_with(begin));
        let own: Vec<Entry> = section.entries.iter().filter(about_mail).cloned().collect();
        let others = self.overrides().filter(|entry| own.iter().all(|known| known.key != entry.key));
        let others = others.filter(|entry| entry.key != "mail_location").cloned().collect();
        let mut root = self.root().clone();
        root.sections.clear();
        root.entries.extend(own);
        self.with_root(root, others)
    }
}

/// Settings of a namespace that are yes or no.
const SWITCHES: [&str; 5] = ["disabled", "hidden", "inbox", "list", "subscriptions"];

/// The section with what fields `namespace/<its name>/<setting>` of the user say in its place. Their variables are expanded already.
pub(super) fn told_by_userdb(section: &Section, user: &User) -> Section {
    let mut section = section.clone();
    let begin = format!("namespace/{}/", section.title);
    for (field, value) in user.extra.range(begin.clone()..).take_while(|(field, _)| field.starts_with(&begin))
    {
        let (key, place) = (field[begin.len()..].to_owned(), section.place.clone());
        // As in Dovecot, a switch that is named alone is on.
        let value = if value.is_empty() && SWITCHES.contains(&&*key) { "yes" } else { value };
        section.entries.push(Entry { key, value: Value::Text(value.replace('%', "%%")), place });
    }
    section
}

/// A setting of a namespace, which 2.4 may spell with its kind in front.
pub(super) fn get<'a>(section: &'a Section, key: &str) -> Option<(&'a Place, &'a str)> {
    let entry = section.entry(key).or_else(|| section.entry(&format!("namespace_{key}")))?;
    match &entry.value {
        Value::Text(text) => Some((&entry.place, text)),
        Value::File(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    fn told(text: &str) -> Vec<String> {
        let user = User {
            home: Some(PathBuf::from("/home/alice")),
            mail: Some("maildir:/users/own".into()),
            ..User::named("alice@mx")
        };
        let all = Settings::parse(text).unwrap().namespaces(&user).unwrap();
        let mark = |yes: bool, mark: &'static str| if yes { mark } else { "" };
        all.iter()
            .map(|one| {
                let mail = match &one.mail {
                    Mail::Users => "user's",
                    Mail::Own(location) => location,
                    Mail::Unsupported(_) => "none",
                };
                let separator = one.separator.map(String::from).unwrap_or_default();
                let marks = [
                    mark(one.inbox, "i"),
                    mark(one.usual, "u"),
                    mark(one.visible, "v"),
                    mark(one.subscriptions, "s"),
                ];
                format!("{}|{separator}|{}|{mail}", one.prefix, marks.concat())
            })
            .collect()
    }

    #[test]
    fn namespaces_of_2_3() {
        assert_eq!(told(""), ["||iuvs|user's"]);
        assert_eq!(told("namespace x {\n separator = /\n}"), ["|/|iuvs|user's"], "somewhere INBOX must be");
        let text = "mail_location = maildir:~/Maildir\n\
            namespace inbox {\n inbox = yes\n prefix = INBOX/\n separator = /\n}\n\
            namespace archive {\n prefix = Archive/\n separator = /\n location = sdbox:~/archive/%n\n subscriptions = no\n}\n\
            namespace public {\n type = public\n prefix = Public/\n separator = /\n location = maildir:/srv/public\n list = children\n hidden = yes\n}\n\
            namespace secret {\n prefix = s/\n location = maildir:/s\n list = no\n hidden = yes\n}\n\
            namespace others {\n type = shared\n prefix = user/%%u/\n location = maildir:%%h/Maildir\n}\n\
            namespace old {\n prefix =\n alias_for = INBOX/\n hidden = yes\n list = no\n}\n\
            namespace off {\n prefix = off/\n disabled = yes\n}\n";
        assert_eq!(
            told(text),
            [
                "INBOX/|/|iuvs|user's",
                "Archive/|/|v|sdbox:~/archive/alice",
                "Public/|/|vs|maildir:/srv/public",
                "s/||s|maildir:/s",
                "user/||s|none",
            ]
        );
    }

    #[test]
    fn namespaces_of_2_4() {
        let text = "dovecot_config_version = 2.4.0\nmail_driver = maildir\nmail_path = ~/Maildir\nmail_index_path = /idx/%{user | username}\n\
            namespace inbox {\n inbox = yes\n separator = /\n}\n\
            namespace archive {\n prefix = Archive/\n separator = /\n mail_driver = sdbox\n mail_path = ~/archive\n mail_index_path =\n}\n\
            namespace other {\n namespace_prefix = Other/\n mail_path = ~/other\n}\n";
        assert_eq!(
            told(text),
            [
                "|/|iuvs|user's",
                "Archive/|/|vs|sdbox:~/archive",
                "Other/||vs|maildir:~/other:INDEX=/idx/alice",
            ]
        );
        let text = "dovecot_config_version = 2.4.0\nnamespace inbox {\n inbox = yes\n mail_driver = maildir\n mail_path = ~/Maildir\n}\n";
        let location = Settings::parse(text).unwrap().mail_location(&User::named("bob")).unwrap();
        assert_eq!(location.as_deref(), Some("maildir:~/Maildir"));
    }

    #[test]
    fn the_userdb_may_say_otherwise() {
        let fields = [
            ("namespace/archive/location", "sdbox:/big/100%"),
            ("namespace/archives/prefix", "Not/"),
            ("namespace/inbox/prefix", "Mail/"),
            ("namespace/all/prefix", ""),
            ("namespace/all/location", ""),
            ("namespace/all/hidden", ""),
            ("namespace/old/disabled", "yes"),
        ];
        let extra = fields.map(|(field, value)| (field.to_owned(), value.to_owned())).into();
        let user = User { extra, ..User::named("alice") };
        let text = "namespace inbox {\n inbox = yes\n separator = /\n}\n\
            namespace archive {\n prefix = Archive/\n separator = /\n location = maildir:~/archive\n}\n\
            namespace all {\n prefix = All/\n separator = /\n location = maildir:/all\n list = no\n}\n\
            namespace old {\n prefix = Old/\n separator = /\n}\n";
        let all = Settings::parse(text).unwrap().namespaces(&user).unwrap();
        assert!(!all[2].visible);
        let found: Vec<_> = all.iter().map(|one| (one.prefix.as_str(), &one.mail)).collect();
        let archive = Mail::Own("sdbox:/big/100%".into());
        assert_eq!(found, [("Mail/", &Mail::Users), ("Archive/", &archive), ("", &Mail::Users)]);
    }

    #[test]
    fn what_is_wrong_is_said() {
        for text in ["namespace x {\n separator = ab\n}", "namespace x {\n inbox = perhaps\n}"] {
            let error = Settings::parse(text).unwrap().namespaces(&User::named("alice")).unwrap_err();
            assert_eq!(error.status(), 78);
        }
    }
}
