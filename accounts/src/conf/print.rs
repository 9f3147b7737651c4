//! The configuration in force, written as `doveconf` writes it: sorted, defaults left out on request, secrets hidden.

use super::{
    settings::{DEFAULTS, Settings},
    tree::{Entry, Section, Value},
};

/// What stands for a secret.
const HIDDEN: &str = "# hidden, use -P to show it";
/// Parts of the names of settings that hold secrets.
const SECRETS: [&str; 6] = ["password", "dnpass", "secret", "api_key", "nonce", "ssl_key"];
/// Settings of databases whose values may hold a password among other words.
const MIXED: [&str; 2] = ["args", "connect"];

/// How settings are written.
#[derive(Clone, Copy, Debug, Default)]
pub struct Print {
    /// Only what is not as it would be anyway.
    pub non_default: bool,
    /// Secrets, too.
    pub secrets: bool,
}

impl Settings {
    /// The lines of the configuration in force.
    pub fn printed(&self, print: Print) -> Vec<String> {
        let root = self.root();
        let mut items: Vec<(String, Vec<String>)> = Vec::new();
        let mut known: Vec<&str> =
            DEFAULTS.iter().map(|(name, _)| *name).filter(|_| !print.non_default).collect();
        known.extend(root.entries.iter().chain(self.overrides()).map(|entry| entry.key.as_str()));
        known.sort_unstable();
        known.dedup();
        for name in known {
            // What counts for doveadm alone stands in its own section.
            let entry = self.overrides().rev().find(|entry| entry.key == name).or_else(|| root.entry(name));
            let default = DEFAULTS.iter().find(|(known, _)| *known == name).map(|(_, default)| *default);
            match entry {
                Some(entry) if print.non_default && default.is_some_and(|text| is_text(entry, text)) => {}
                Some(entry) => items.push((name.to_owned(), vec![line(name, &entry.value, print)])),
                None => {
                    items.push((name.to_owned(), vec![format!("{name} = {}", default.unwrap_or_default())]))
                }
            }
        }
        let (protocols, others): (Vec<_>, Vec<_>) =
            root.sections.iter().partition(|section| section.kind == "protocol");
        items.extend(
            others.into_iter().map(|section| (section.kind.clone(), lines(section, print, self.is_old()))),
        );
        // Sections of one kind keep their order: that of passdbs and userdbs counts.
        items.sort_by(|(a, _), (b, _)| a.cmp(b));
        items.extend(
            protocols.into_iter().map(|section| (String::new(), lines(section, print, self.is_old()))),
        );
        items.into_iter().flat_map(|(_, lines)| lines).collect()
    }

    /// The value of one setting, as it is in force for dsync; `None` if dsync knows no such setting and none is written.
    pub fn printed_value(&self, name: &str, print: Print) -> Option<String> {
        match self.entry(name) {
            Some(entry) => Some(value(name, &entry.value, print)),
            None => {
                DEFAULTS.iter().find(|(known, _)| *known == name).map(|(_, default)| (*default).to_owned())
            }
        }
    }

    /// Whether this is a configuration of 2.3, where namespaces have locations.
    fn is_old(&self) -> bool {
        !["dovecot_config_version", "mail_driver", "mail_path"].iter().any(|name| self.entry(name).is_some())
    }
}

fn is_text(entry: &Entry, default: &str) -> bool {
    matches!(&entry.value, Value::Text(text) if text == default)
}

fn lines(section: &Section, print: Print, old: bool) -> Vec<String> {
    let title = if section.title.contains(char::is_whitespace) {
        format!("\"{}\"", section.title)
    } else {
        section.title.clone()
    };
    let head = if title.is_empty() { section.kind.clone() } else { format!("{} {title}", section.kind) };
    let mut names: Vec<&str> = section.entries.iter().map(|entry| entry.key.as_str()).collect();
    names.sort_unstable();
    names.dedup();
    let mut items: Vec<(String, Vec<String>)> = Vec::new();
    if section.kind == "namespace" && old {
        let missing = ["location", "prefix"].into_iter().filter(|name| !names.contains(name));
        items.extend(missing.map(|name| (name.to_owned(), vec![format!("{name} = ")])));
    }
    for name in names {
        if let Some(entry) = section.entry(name) {
            items.push((name.to_owned(), vec![line(name, &entry.value, print)]));
        }
    }
    let inner = section.sections.iter().map(|inner| {
        let lines = lines(inner, print, old);
        (lines.first().cloned().unwrap_or_default(), lines)
    });
    items.extend(inner);
    items.sort_by(|(a, _), (b, _)| a.cmp(b));
    let body = items.into_iter().flat_map(|(_, lines)| lines).map(|line| format!("  {line}"));
    std::iter::once(format!("{head} {{")).chain(body).chain(["}".to_owned()]).collect()
}

fn line(name: &str, written: &Value, print: Print) -> String {
    format!("{name} = {}", value(name, written, print))
}

fn value(name: &str, value: &Value, print: Print) -> String {
    let text = match value {
        Value::File(path) => format!("<{path}"),
        Value::Text(text) => text.clone(),
    };
    let named = SECRETS.iter().any(|part| name.contains(part))
        && !name.contains("scheme")
        && !name.ends_with("_query");
    let mixed = MIXED.contains(&name) && ["password=", "pass="].iter().any(|part| text.contains(part));
    if (named || mixed) && !text.is_empty() && !print.secrets {
        return HIDDEN.to_owned();
    }
    let quoted = text.trim() != text || text.contains('#') || text.starts_with(['"', '\'']);
    if quoted && matches!(value, Value::Text(_)) {
        return format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_hidden_unless_they_are_asked_for() {
        let text = "doveadm_password = geheim\nssl_key = </k\npassdb {\n driver = static\n args = nopassword=n password=geheim\n}\n\
                    userdb sql {\n sql_driver = pgsql\n pgsql h {\n parameters {\n  password = geheim\n }\n }\n}\n";
        let settings = Settings::parse(text).unwrap();
        let shown = settings.printed(Print::default()).join("\n");
        assert!(!shown.contains("geheim") && !shown.contains("/k"), "{shown}");
        assert!(shown.contains(&format!("doveadm_password = {HIDDEN}")));
        let shown = settings.printed(Print { secrets: true, non_default: true }).join("\n");
        assert_eq!(shown.matches("geheim").count(), 3, "{shown}");
    }

    #[test]
    fn what_is_printed_reads_as_the_same_again() {
        let text = "mail_driver = maildir\nmail_path = ~/M\na = \" x # \\\" y \"\nuserdb static {\n fields {\n home = /h/%{user}\n }\n}\n\
                    namespace inbox {\n mailbox \"Sent Messages\" {\n special_use = \\Sent\n }\n}\nprotocol doveadm {\n b = c\n}\n";
        let all = Print { secrets: true, non_default: true };
        let once = Settings::parse(text).unwrap().printed(all);
        assert_eq!(Settings::parse(&once.join("\n")).unwrap().printed(all), once);
        assert!(!once.contains(&"  location = ".to_owned()), "2.4 has no such setting: {once:#?}");
    }

    #[test]
    fn all_settings_have_their_defaults() {
        let lines = Settings::defaults().printed(Print::default());
        assert!(
            lines.contains(&"doveadm_port = 0".to_owned())
                && lines.contains(&"mail_fsync = optimized".to_owned())
        );
        assert!(Settings::defaults().printed(Print { non_default: true, secrets: false }).is_empty());
        let settings = Settings::parse("mail_fsync = optimized\nmail_location = x\n").unwrap();
        assert_eq!(settings.printed(Print { non_default: true, secrets: false }), ["mail_location = x"]);
    }
}
