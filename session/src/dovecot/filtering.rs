//! Which messages are not to be saved where they are missing (`-t`, `-e`, `-I`, `-O`), as a Dovecot is told it and tells it.
//!
//! The receiver decides, by what the sender adds to its list. Dovecot remembers nothing of it: in a later sync it takes what was kept back
//! for expunged. So this is for one-way modes, whose source is never written.

use dsync_merge::Direction;
use dsync_model::{Filter, FlagSet, Flags, Keyword, MessageChange, Timestamp};
use dsync_proto::dovecot::items::{self, Hex};
use dsync_storage::filter::{Crlf, body_pieces};
use dsync_storage::{Mailbox, Result, StorageError};

use super::lines::SIZE_UNKNOWN;
use crate::SessionError;

const LATER_LOST: &str =
    "in both directions Dovecot would later take what was kept back for expunged: use sync -1 or backup";

/// Puts the filter into a master's handshake.
pub(super) fn tell(
    filter: &Filter,
    direction: Direction,
    line: &mut items::Handshake,
) -> std::result::Result<(), SessionError> {
    if filter.is_empty() {
        return Ok(());
    }
    let refused = |text: String| Err(SessionError::Refused { status: 64, text });
    if direction == Direction::TwoWay {
        return refused(format!("-t, -e, -I and -O with a Dovecot: {LATER_LOST}"));
    }
    let conditions = [("", &filter.with), ("-", &filter.without)].into_iter().flat_map(|(sign, flags)| {
        let keywords = flags.keywords.iter().map(|keyword| keyword.as_str().to_owned());
        let named = Flags::NAMES.iter().filter(|(flag, _)| flags.system.contains(*flag));
        let system = named.map(|(_, name)| (*name).to_owned());
        system.chain(keywords).map(move |flag| format!("{sign}{flag}")).collect::<Vec<_>>()
    });
    let conditions: Vec<String> = conditions.collect();
    if conditions.len() > 1 {
        return refused("a Dovecot takes one -O".into());
    }
    let time = |time: Option<Timestamp>, option: &str| match time.map(|time| u64::try_from(time.0)) {
        None => Ok(None),
        // Zero would say that there is no such condition.
        Some(Ok(secs @ 1..)) => Ok(Some(secs)),
        Some(_) => {
            let text = format!("{option}: with a Dovecot the date must be after 1970");
            Err(SessionError::Refused { status: 64, text })
        }
    };
    line.sync_since_timestamp = time(filter.since, "-t")?;
    line.sync_until_timestamp = time(filter.until, "-e")?;
    line.sync_max_size = filter.size_max;
    if filter.size_max == Some(0) {
        return refused("-I 0: a Dovecot takes it for no limit".into());
    }
    line.sync_flags = conditions.first().map(|flag| flag.clone().into_bytes());
    Ok(())
}

/// The filter of a master's handshake.
pub(super) fn told(
    line: &items::Handshake,
    direction: Direction,
) -> std::result::Result<Box<Filter>, SessionError> {
    let refused = |text: String| Err(SessionError::Refused { status: 65, text });
    let (since, until) = (line.sync_since_timestamp, line.sync_until_timestamp);
    if until == Some(0) || (until.is_some() && until == since) {
        let text = "the other end asks for -e with the value of -t, as Dovecot before 2.4.3 does: it cannot be known what is meant";
        return refused(text.into());
    }
    let time = |secs: Option<u64>| secs.map(|secs| Timestamp(i64::try_from(secs).unwrap_or(i64::MAX)));
    let mut filter =
        Filter { since: time(since), until: time(until), size_max: line.sync_max_size, ..Filter::default() };
    if let Some(text) = &line.sync_flags {
        let text = String::from_utf8_lossy(text);
        let (side, flag) = match text.strip_prefix('-') {
            Some(flag) => (&mut filter.without, flag),
            None => (&mut filter.with, &*text),
        };
        let system = Flags::NAMES.iter().find(|(_, name)| name.eq_ignore_ascii_case(flag));
        let system = system.map(|(flag, _)| FlagSet::system(*flag));
        let keyword =
            || Keyword::new(flag).map(|keyword| FlagSet { keywords: [keyword].into(), ..FlagSet::default() });
        match system.or_else(keyword) {
            Some(flags) => *side = flags,
            None => return Err(SessionError::Peer(format!("asks for -O {text:?}, which is no flag"))),
        }
    }
    if direction == Direction::TwoWay && !filter.is_empty() {
        return refused(format!("the other end asks for -t, -e, -I or -O: {LATER_LOST}"));
    }
    Ok(Box::new(filter))
}

/// Adds to a line of our list what the receiver decides by. A message that is gone passes or not, it is not sent either way.
pub(super) fn complete(
    filter: &Filter,
    mailbox: &mut dyn Mailbox,
    change: &MessageChange,
    line: &mut items::Change,
) -> Result<()> {
    let dates = filter.since.is_some() || filter.until.is_some();
    if line.kind != b"s" || !(dates || filter.size_max.is_some()) {
        return Ok(());
    }
    // Dovecot takes 0 for no date, and would not bear that.
    let (mut received, mut crlf) = (1, Crlf::default());
    match mailbox.body(change.uid(), None) {
        Ok(Some(mut body)) => {
            received = body.received.map_or(1, |time| u64::try_from(time.0).unwrap_or(1).max(1));
            if filter.size_max.is_some() {
                let read = body_pieces(&mut body, &mut |piece| {
                    crlf.count(piece);
                    true
                });
                if let Err(error) = read {
                    tracing::debug!("UID {}: its size is not known: {error}", change.uid());
                }
            }
        }
        Ok(None) | Err(StorageError::Io { .. }) => {}
        // It is told where it is to be sent.
        Err(error) if error.status() == 65 => {}
        Err(error) => return Err(error),
    }
    line.received_timestamp = dates.then_some(Hex(received));
    line.virtual_size = Some(Hex(if filter.size_max.is_some() { crlf.size } else { SIZE_UNKNOWN }));
    Ok(())
}

/// Says whether a message of the peer's may be saved here. Dovecot leaves out what is 0.
pub(super) fn passes(
    filter: &Filter,
    line: &items::Change,
    flags: &FlagSet,
) -> std::result::Result<bool, SessionError> {
    let mut passes = filter.flags_pass(flags);
    if filter.since.is_some() || filter.until.is_some() {
        let received = line.received_timestamp.map_or(0, |time| time.0);
        passes &= filter.date_passes(i64::try_from(received).ok().map(Timestamp));
    }
    if let Some(max) = filter.size_max {
        let size = line.virtual_size.map_or(0, |size| size.0);
        if size == SIZE_UNKNOWN {
            return Err(SessionError::Peer(format!("lists UID {} without its size", line.uid)));
        }
        passes &= size <= max;
    }
    Ok(passes)
}

#[cfg(test)]
mod tests {
    use dsync_merge::End;

    use super::*;

    const PUSH: Direction = Direction::OneWay { into: End::Responder };

    #[test]
    fn what_a_handshake_says_is_what_was_asked_for() {
        let keyword = FlagSet { keywords: [Keyword::new("$Junk").unwrap()].into(), ..FlagSet::default() };
        for filter in [
            Filter { since: Some(Timestamp(5)), until: Some(Timestamp(9)), ..Filter::default() },
            Filter { size_max: Some(100), with: FlagSet::system(Flags::SEEN), ..Filter::default() },
            Filter { without: keyword.clone(), ..Filter::default() },
            Filter { without: FlagSet::system(Flags::DELETED), ..Filter::default() },
        ] {
            let mut line = items::Handshake::default();
            tell(&filter, PUSH, &mut line).unwrap();
            assert_eq!(*told(&line, PUSH).unwrap(), filter, "{line:?}");
            assert_eq!(tell(&filter, Direction::TwoWay, &mut line).unwrap_err().status(), 64);
            assert_eq!(told(&line, Direction::TwoWay).unwrap_err().status(), 65);
        }
        let two = Filter { with: FlagSet::system(Flags::SEEN), without: keyword, ..Filter::default() };
        assert_eq!(tell(&two, PUSH, &mut items::Handshake::default()).unwrap_err().status(), 64);
        for (since, until) in [(Some(7), Some(7)), (None, Some(0))] {
            let line = items::Handshake {
                sync_since_timestamp: since,
                sync_until_timestamp: until,
                ..items::Handshake::default()
            };
            assert_eq!(told(&line, PUSH).unwrap_err().status(), 65);
        }
    }

    #[test]
    fn the_receiver_decides_by_what_the_line_says() {
        let filter = Filter { since: Some(Timestamp(5)), size_max: Some(100), ..Filter::default() };
        let line = |received, size| items::Change {
            received_timestamp: received,
            virtual_size: size,
            ..items::Change::default()
        };
        let check = |received, size| passes(&filter, &line(received, size), &FlagSet::default());
        assert!(check(Some(Hex(5)), Some(Hex(100))).unwrap());
        assert!(!check(Some(Hex(4)), Some(Hex(100))).unwrap());
        assert!(!check(Some(Hex(5)), Some(Hex(101))).unwrap());
        assert!(!check(None, Some(Hex(1))).unwrap() && check(Some(Hex(5)), None).unwrap());
        assert!(check(Some(Hex(5)), Some(Hex(SIZE_UNKNOWN))).is_err());
    }
}
