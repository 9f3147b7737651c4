//! The configuration as it was written: sections of settings, with the place of each.

use super::error::Place;

/// What stands right of the equals sign.
#[derive(Clone)]
pub(crate) enum Value {
    /// The text itself, unquoted.
    Text(String),
    /// `<path`: the content of a file, read when asked for.
    File(String),
}

/// One `key = value`.
#[derive(Clone)]
pub(crate) struct Entry {
    pub key: String,
    pub value: Value,
    pub place: Place,
}

/// One `kind title { ... }`; the whole file is a section without a kind.
#[derive(Clone)]
pub(crate) struct Section {
    pub kind: String,
    pub title: String,
    pub place: Place,
    pub entries: Vec<Entry>,
    pub sections: Vec<Section>,
}

impl Section {
    /// Makes an empty section.
    pub fn new(kind: &str, title: &str, place: Place) -> Self {
        Self {
            kind: kind.to_owned(),
            title: title.to_owned(),
            place,
            entries: Vec::new(),
            sections: Vec::new(),
        }
    }

    /// The last setting of this name: a later line replaces an earlier one.
    pub fn entry(&self, key: &str) -> Option<&Entry> {
        self.entries.iter().rev().find(|entry| entry.key == key)
    }

    /// The text of the last setting of this name, unless it is the content of a file.
    pub fn text(&self, key: &str) -> Option<&str> {
        match &self.entry(key)?.value {
            Value::Text(text) => Some(text),
            Value::File(_) => None,
        }
    }

    /// Whether the setting says yes.
    pub fn yes(&self, key: &str) -> bool {
        self.text(key).and_then(parse_bool).unwrap_or(false)
    }

    /// The sections of one kind, in order.
    pub fn of_kind<'a>(&'a self, kind: &'a str) -> impl Iterator<Item = &'a Section> {
        self.sections.iter().filter(move |section| section.kind == kind)
    }

    /// Adds a section; one with a title already seen continues the earlier one, as in Dovecot.
    pub fn adopt(&mut self, child: Section) {
        let same = |old: &&mut Section| {
            !child.title.is_empty() && old.kind == child.kind && old.title == child.title
        };
        match self.sections.iter_mut().find(same) {
            Some(old) => {
                old.entries.extend(child.entries);
                for section in child.sections {
                    old.adopt(section);
                }
            }
            None => self.sections.push(child),
        }
    }
}

/// Reads a yes or no, in any of the spellings Dovecot accepts.
pub(crate) fn parse_bool(text: &str) -> Option<bool> {
    match text.to_ascii_lowercase().as_str() {
        "yes" | "y" | "true" | "1" => Some(true),
        "no" | "n" | "false" | "0" => Some(false),
        _ => None,
    }
}
