//! What is written down of a mailbox that is on its way into another namespace, beside the mail of the namespace that it goes to.
//!
//! Lines of text: who moves where, whether the copy was ever whole, and each state that we gave to a message of the copy. Whatever else is
//! in the copy came from others.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use dsync_model::{Digest, FlagSet, MailboxGuid, MailboxName, MessageGuid, Uid};

use crate::{Result, Storage};

/// The note's name. There is one: a move begins only where none is unfinished.
const NAME: &str = "move";
const FIRST_LINE: &str = "dsync-move 1";
/// Largest note that is read: a line of 33 bytes for each message, 8 million of them.
const BYTES_MAX: usize = 256 << 20;

/// A move that is not done yet.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Note {
    /// Of the mailbox.
    pub guid: MailboxGuid,
    /// Of its copy, until the mailbox itself is gone.
    pub copy: MailboxGuid,
    /// Names outside.
    pub from: MailboxName,
    pub to: MailboxName,
    /// How many names above the copy were made for it.
    pub made: usize,
    /// Digest and UIDNEXT of both, when the copy was whole last.
    pub whole: Option<(Digest, Uid)>,
    states: BTreeSet<u128>,
}

fn state(uid: Uid, guid: &MessageGuid, flags: &FlagSet) -> u128 {
    let mut digest = Digest::default();
    digest.add(uid, guid, flags);
    digest.0
}

impl Note {
    pub fn new(
        guid: MailboxGuid,
        copy: MailboxGuid,
        from: MailboxName,
        to: MailboxName,
        made: usize,
    ) -> Note {
        Note { guid, copy, from, to, made, whole: None, states: BTreeSet::new() }
    }

    /// A message of the copy is about to be this.
    pub fn expect(&mut self, uid: Uid, guid: &MessageGuid, flags: &FlagSet) {
        self.states.insert(state(uid, guid, flags));
    }

    /// Says whether a message of the copy is as we left it.
    pub fn knows(&self, uid: Uid, guid: &MessageGuid, flags: &FlagSet) -> bool {
        self.states.contains(&state(uid, guid, flags))
    }

    /// Nothing was copied yet.
    pub fn is_fresh(&self) -> bool {
        self.states.is_empty()
    }

    /// The note of an unfinished move into this storage. What cannot be understood is told and removed: both mailboxes are then kept.
    pub fn read(storage: &mut dyn Storage) -> Result<Option<Note>> {
        let Some(bytes) = storage.read_note(NAME, BYTES_MAX)? else { return Ok(None) };
        let note = std::str::from_utf8(&bytes).ok().and_then(parse);
        if note.is_none() {
            let place = storage.location();
            tracing::warn!(
                "{place}: the note .dsync-{NAME} of a mailbox that was moved there is damaged; that mailbox may be there twice"
            );
            storage.remove_note(NAME)?;
        }
        Ok(note)
    }

    /// Writes it down, durably.
    pub fn write(&self, storage: &mut dyn Storage) -> Result<()> {
        storage.write_note(NAME, self.to_text().as_bytes())
    }

    pub fn remove(storage: &mut dyn Storage) -> Result<()> {
        storage.remove_note(NAME)
    }

    fn to_text(&self) -> String {
        let Note { guid, copy, from, to, made, whole, states } = self;
        let (from, to) = (from.join('/'), to.join('/'));
        let mut text = format!("{FIRST_LINE}\n{guid}\n{copy}\n{from}\n{to}\n{made}\n");
        match whole {
            Some((digest, uid_next)) => _ = writeln!(text, "{digest} {}", uid_next.get()),
            None => text.push_str("-\n"),
        }
        for state in states {
            _ = writeln!(text, "{state:032x}");
        }
        // Says that all of it is there.
        text.push_str("end\n");
        text
    }
}

fn parse(text: &str) -> Option<Note> {
    let mut lines = text.strip_suffix("\nend\n")?.lines();
    let mut next = || lines.next();
    if next()? != FIRST_LINE {
        return None;
    }
    let (guid, copy) = (MailboxGuid::parse(next()?)?, MailboxGuid::parse(next()?)?);
    let (from, to) = (MailboxName::parse(next()?, '/').ok()?, MailboxName::parse(next()?, '/').ok()?);
    let made = next()?.parse().ok()?;
    let whole = match next()? {
        "-" => None,
        line => {
            let (digest, uid_next) = line.split_once(' ')?;
            let digest = Digest(u128::from_str_radix(digest, 16).ok()?);
            Some((digest, Uid::new(uid_next.parse().ok()?)?))
        }
    };
    let states: Option<BTreeSet<u128>> = lines.map(|line| u128::from_str_radix(line, 16).ok()).collect();
    Some(Note { guid, copy, from, to, made, whole, states: states? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_is_read_as_it_was_written_or_not_at_all() {
        let name = |text: &str| MailboxName::parse(text, '/').unwrap();
        let (guid, copy) = (MailboxGuid([1; 16]), MailboxGuid([2; 16]));
        let mut note = Note::new(guid, copy, name("Wörk/a b"), name("Archive/x"), 1);
        let (uid, message) = (Uid::new(7).unwrap(), MessageGuid::new("a").unwrap());
        let expected = "dsync-move 1\n01010101010101010101010101010101\n02020202020202020202020202020202\nWörk/a b\nArchive/x\n1\n-\nend\n";
        assert_eq!(note.to_text(), expected);
        assert_eq!(parse(expected).as_ref(), Some(&note));
        note.expect(uid, &message, &FlagSet::default());
        note.whole = Some((Digest(9), Uid::new(8).unwrap()));
        let text = note.to_text();
        assert_eq!(parse(&text).as_ref(), Some(&note));
        assert!(
            note.knows(uid, &message, &FlagSet::default())
                && !note.knows(Uid::MIN, &message, &FlagSet::default())
        );
        for cut in (0..text.len()).filter(|cut| text.is_char_boundary(*cut)) {
            assert_eq!(parse(&text[..cut]), None, "{cut}");
        }
    }
}
