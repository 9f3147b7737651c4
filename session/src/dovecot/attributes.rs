//! Attributes of mailboxes (IMAP METADATA): one mailbox's list as a Dovecot is told it, and what is taken over of the peer's.
//!
//! The account's are read once; a mailbox's log says when each was changed. What is larger than we keep is left alone.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use dsync_merge::dovecot::attributes::{Known, takes_over};
use dsync_model::{
    ATTRIBUTE_BYTES_MAX, ATTRIBUTE_KEY_BYTES_MAX, AttributeChange, AttributeChanges, AttributeKey,
    AttributeList, AttributeScope, AttributeValue, MailboxGuid,
};
use dsync_proto::dovecot::items;

use super::{Brain, chain};
use crate::SessionError;

/// Most bytes of keys and values that are taken over of one mailbox.
const TAKEN_BYTES_MAX: usize = 64 << 20;
/// Notes of one mailbox.
const NOTES_MAX: usize = 10;

/// The attributes of one mailbox under way.
#[derive(Default)]
pub(super) struct Attributes {
    own: BTreeMap<AttributeKey, Known>,
    /// Here, and larger than we keep.
    too_large: BTreeSet<AttributeKey>,
    told: VecDeque<items::Attribute>,
    were_told: bool,
    last_common: Option<u64>,
    /// A value that comes as a body; `None`: of one that is left alone.
    coming: Option<Option<(AttributeKey, Known)>>,
    changes: AttributeChanges,
    taken_bytes: usize,
    pub notes: Vec<String>,
}

impl Attributes {
    /// Those of a mailbox. `log` is what its log tells, `last_common` the modseq of a saved state: only what changed since then is told.
    pub fn new(
        mailbox: MailboxGuid,
        all: &AttributeList,
        log: Vec<AttributeChange>,
        last_common: Option<u64>,
    ) -> Attributes {
        let mut attributes = Attributes { last_common, ..Attributes::default() };
        let from = all.range(AttributeKey::first_of(mailbox)..);
        for (key, value) in from.take_while(|(key, _)| key.mailbox == mailbox) {
            match value {
                AttributeValue::Bytes(bytes) => {
                    let known = Known { value: Some(bytes.clone()), ..Known::default() };
                    attributes.own.insert(key.clone(), known);
                }
                AttributeValue::TooLarge => drop(attributes.too_large.insert(key.clone())),
            }
        }
        for AttributeChange { scope, key, removed, modseq, .. } in log {
            let key = AttributeKey { mailbox, scope, key };
            match attributes.own.get_mut(&key) {
                Some(known) => known.modseq = modseq.get(),
                None if removed && !attributes.too_large.contains(&key) => {
                    let known = Known { value: None, last_change: 0, modseq: modseq.get() };
                    attributes.own.insert(key, known);
                }
                None => {}
            }
        }
        let changed = |known: &Known| last_common.is_none_or(|last| known.modseq > last);
        let (there, removed): (Vec<_>, Vec<_>) =
            attributes.own.iter().filter(|(_, known)| changed(known)).partition(|(_, k)| k.value.is_some());
        attributes.told = there.into_iter().chain(removed).map(line).collect();
        attributes
    }

    /// The next lines to say; empty when all were said.
    pub fn tell(&mut self, lines_max: usize) -> Vec<items::Attribute> {
        let lines: Vec<_> = self.told.drain(..lines_max.min(self.told.len())).collect();
        self.were_told |= !lines.is_empty();
        lines
    }

    /// Says whether there was anything to tell, and some of it was told.
    pub fn were_told(&self) -> bool {
        self.were_told
    }

    /// Takes a line of the peer.
    pub fn take(&mut self, mailbox: MailboxGuid, line: items::Attribute) -> Result<(), SessionError> {
        let scope = match &line.kind[..] {
            b"p" => AttributeScope::Private,
            b"s" => AttributeScope::Shared,
            _ => {
                return Err(SessionError::Peer("has an attribute that is neither private nor shared".into()));
            }
        };
        if u8::from(line.value.is_some()) + u8::from(line.stream) + u8::from(line.deleted) != 1 {
            return Err(SessionError::Peer("has an attribute with no value or with two".into()));
        }
        let key = String::from_utf8(line.key).ok();
        let key = key.filter(|key| !key.is_empty() && key.len() <= ATTRIBUTE_KEY_BYTES_MAX);
        let key = key.map(|key| AttributeKey { mailbox, scope, key });
        let known = Known {
            value: line.value,
            last_change: line.last_change.unwrap_or(0),
            modseq: line.modseq.unwrap_or(0),
        };
        let keepable = key.map(|key| (key, known));
        match (keepable, line.stream) {
            (None, stream) => {
                self.note("an attribute of the other end's is left alone: its key is none here".into());
                if stream {
                    self.coming = Some(None);
                }
            }
            (Some((key, known)), true) => {
                self.coming = Some(Some((key, Known { value: Some(Vec::new()), ..known })));
            }
            (Some((key, known)), false) => self.consider(key, known)?,
        }
        Ok(())
    }

    /// Takes a piece of a value that comes as a body.
    pub fn piece(&mut self, piece: &[u8]) {
        let Some(Some((_, Known { value: Some(value), .. }))) = &mut self.coming else { return };
        // One byte more tells that it is too large.
        let room = (ATTRIBUTE_BYTES_MAX + 1).saturating_sub(value.len());
        value.extend_from_slice(&piece[..piece.len().min(room)]);
    }

    /// Says whether a value was coming, which has now come whole.
    pub fn end_body(&mut self) -> Result<bool, SessionError> {
        match self.coming.take() {
            None => Ok(false),
            Some(None) => Ok(true),
            Some(Some((key, known))) => self.consider(key, known).map(|()| true),
        }
    }

    fn consider(&mut self, key: AttributeKey, known: Known) -> Result<(), SessionError> {
        let too_large = known.value.as_ref().is_some_and(|value| value.len() > ATTRIBUTE_BYTES_MAX);
        if too_large || self.too_large.contains(&key) {
            self.note(format!("attribute {:?} is left alone: it is larger than 512 KiB", key.key));
            return Ok(());
        }
        if takes_over(self.own.get(&key), &known, self.last_common) {
            // With what each takes up beside its text.
            self.taken_bytes += key.key.len() + known.value.as_ref().map_or(0, Vec::len) + 64;
            if self.taken_bytes > TAKEN_BYTES_MAX {
                return Err(SessionError::Peer("has more than 64 MiB of attributes in one mailbox".into()));
            }
            self.changes.insert(key, known.value);
        }
        Ok(())
    }

    fn note(&mut self, text: String) {
        if self.notes.len() < NOTES_MAX {
            self.notes.push(text);
        }
    }

    /// What is to be changed here, once the peer has said all.
    pub fn changes(&mut self) -> AttributeChanges {
        std::mem::take(&mut self.changes)
    }
}

fn line((key, known): (&AttributeKey, &Known)) -> items::Attribute {
    items::Attribute {
        kind: match key.scope {
            AttributeScope::Private => b"p".to_vec(),
            AttributeScope::Shared => b"s".to_vec(),
        },
        key: key.key.clone().into_bytes(),
        value: known.value.clone(),
        stream: false,
        deleted: known.value.is_none(),
        last_change: None,
        modseq: (known.modseq > 0).then_some(known.modseq),
    }
}

impl Brain {
    /// Reads our attributes. Mail is synchronised even if they cannot be read.
    pub(super) fn read_attributes(&mut self) {
        self.attributes = match self.storage.attributes() {
            Ok(list) => list,
            Err(error) => {
                self.report.notes.push(format!("mailbox attributes are left alone: {}", chain(&error)));
                None
            }
        };
    }

    /// Carries out what the peer's list led to. As in Dovecot, attributes that cannot be kept do not stop the mail.
    pub(super) fn change_attributes(&mut self) {
        let Some(exchange) = &mut self.exchange else { return };
        let changes = exchange.attribute_changes();
        if changes.is_empty() || self.attributes.is_none() {
            return;
        }
        let changed =
            self.storage.change_attributes(&changes).and_then(|()| exchange.log_attributes(&changes));
        if let Err(error) = changed {
            let text = format!("{}: attributes: {}", exchange.name(), chain(&error));
            self.problem(text, error.status());
        }
    }

    /// Attributes hang on the GUID of their mailbox: they follow it to another one.
    pub(super) fn move_attributes(&mut self, from: MailboxGuid, to: MailboxGuid) {
        let Some(list) = &mut self.attributes else { return };
        let keys = list.range(AttributeKey::first_of(from)..).map(|(key, _)| key);
        let keys: Vec<AttributeKey> = keys.take_while(|key| key.mailbox == from).cloned().collect();
        let mut changes = AttributeChanges::new();
        for old in keys {
            let Some(value) = list.remove(&old) else { continue };
            let new = AttributeKey { mailbox: to, ..old.clone() };
            if let AttributeValue::Bytes(bytes) = &value {
                changes.insert(old, None);
                changes.insert(new.clone(), Some(bytes.clone()));
            }
            list.insert(new, value);
        }
        if changes.is_empty() {
            return;
        }
        if let Err(error) = self.storage.change_attributes(&changes) {
            self.problem(format!("attributes: {}", chain(&error)), error.status());
        }
    }
}

#[cfg(test)]
mod tests {
    use dsync_model::ModSeq;

    use super::*;

    const BOX: MailboxGuid = MailboxGuid([7; 16]);

    fn key(scope: AttributeScope, key: &str) -> AttributeKey {
        AttributeKey { mailbox: BOX, scope, key: key.into() }
    }

    fn logged(key: &str, removed: bool, modseq: u64) -> AttributeChange {
        let modseq = ModSeq::new(modseq).unwrap();
        AttributeChange { scope: AttributeScope::Private, key: key.into(), removed, at: 0, modseq }
    }

    fn a(kind: &str, key: &str, value: Option<&str>) -> items::Attribute {
        items::Attribute {
            kind: kind.into(),
            key: key.into(),
            value: value.map(Into::into),
            deleted: value.is_none(),
            ..items::Attribute::default()
        }
    }

    fn ours(last_common: Option<u64>) -> Attributes {
        let value = |text: &str| AttributeValue::Bytes(text.into());
        let all = [
            (key(AttributeScope::Private, "comment"), value("mine")),
            (key(AttributeScope::Private, "big"), AttributeValue::TooLarge),
            (key(AttributeScope::Shared, "comment"), value("shared")),
        ];
        let log = vec![logged("comment", false, 5), logged("gone", true, 6), logged("big", false, 7)];
        Attributes::new(BOX, &all.into(), log, last_common)
    }

    #[test]
    fn values_are_told_then_removals_and_with_a_state_only_what_changed() {
        let told = |last_common| {
            let lines = ours(last_common).tell(100).into_iter();
            let text = |line: items::Attribute| {
                let value = line.value.map_or("-".into(), |value| String::from_utf8(value).unwrap());
                let (kind, key) = (line.kind[0] as char, String::from_utf8(line.key).unwrap());
                format!("{kind} {key} {value} {:?}", line.modseq)
            };
            lines.map(text).collect::<Vec<_>>()
        };
        let all = ["p comment mine Some(5)", "s comment shared None", "p gone - Some(6)"];
        assert_eq!(told(None), all);
        assert_eq!(told(Some(5)), all[2..]);
    }

    #[test]
    fn what_is_newer_is_taken_over_and_what_is_too_large_left_alone() {
        let mut attributes = ours(None);
        let mut take = |line| attributes.take(BOX, line);
        take(items::Attribute { modseq: Some(9), ..a("p", "comment", Some("theirs")) }).unwrap();
        take(items::Attribute { modseq: Some(5), ..a("p", "gone", Some("old")) }).unwrap();
        take(a("p", "big", Some("small"))).unwrap();
        take(a("p", "never", None)).unwrap();
        take(a("s", "huge", Some(&"x".repeat(ATTRIBUTE_BYTES_MAX + 1)))).unwrap();
        take(items::Attribute { stream: true, deleted: false, ..a("s", "script", None) }).unwrap();
        attributes.piece(b"keep");
        attributes.piece(b";");
        assert!(attributes.end_body().unwrap() && !attributes.end_body().unwrap());
        let expected = [
            (key(AttributeScope::Private, "comment"), Some(b"theirs".to_vec())),
            (key(AttributeScope::Shared, "script"), Some(b"keep;".to_vec())),
        ];
        assert_eq!(attributes.changes(), expected.into());
        assert_eq!(attributes.notes.len(), 2);
    }

    #[test]
    fn lines_that_cannot_be_are_refused() {
        let mut attributes = ours(None);
        for line in [
            a("x", "comment", Some("v")),
            items::Attribute { deleted: true, ..a("p", "comment", Some("v")) },
            items::Attribute { deleted: false, ..a("p", "comment", None) },
        ] {
            assert!(attributes.take(BOX, line).is_err());
        }
    }
}
