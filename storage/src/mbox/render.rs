//! The header of one message in an mbox, as it is written.

use dsync_model::{FlagSet, Flags, Keyword, Uid};

use super::headers::{METAS, Meta, STATUS, X_STATUS, fields, push_line, without_end};

/// Length of a fresh `X-Keywords` line, and the spaces that are at least in it: room for changes in place.
const KEYWORDS_LINE_BYTES: usize = 83;
const RESERVE_BYTES_MIN: usize = 50;

/// What the metadata headers of a message are to say.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    /// Name and value of the base, for the message that holds it.
    pub base: Option<(Meta, &'a str)>,
    pub uid: Option<Uid>,
    pub flags: &'a FlagSet,
    pub is_old: bool,
    pub body_bytes: Option<u64>,
}

/// How long a header may get.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Room {
    /// As long as it takes, with a fresh reserve of spaces.
    Free,
    /// As long as this header, so that it can be written over it.
    Same,
}

impl Wanted<'_> {
    fn line(&self, meta: Meta) -> Option<String> {
        let letters = |of: &[(Flags, u8)]| -> String {
            of.iter().filter(|(f, _)| self.flags.system.contains(*f)).map(|(_, l)| char::from(*l)).collect()
        };
        Some(match meta {
            Meta::Base | Meta::Imap => match self.base {
                Some((kind, text)) if kind == meta => text.to_owned(),
                _ => return None,
            },
            Meta::Uid => self.uid?.to_string(),
            Meta::Status => format!("{}{}", letters(&STATUS), if self.is_old { "O" } else { "" }),
            Meta::XStatus => letters(&X_STATUS),
            Meta::Keywords => {
                let names: Vec<&str> = self.flags.keywords.iter().map(Keyword::as_str).collect();
                names.join(" ")
            }
            Meta::Length => self.body_bytes?.to_string(),
        })
    }

    /// Writes `header`, without its empty line, anew. `None`: it does not fit into the room.
    pub fn render(&self, header: &[u8], room: Room, end: &str) -> Option<Vec<u8>> {
        let mut writer =
            Writer { text: Vec::with_capacity(header.len() + 256), spare: None, done: Vec::new() };
        for field in fields(header) {
            match field.meta {
                None => {
                    if field.bytes.ends_with(b"\n") {
                        writer.text.extend_from_slice(field.bytes);
                    } else {
                        push_line(&mut writer.text, without_end(field.bytes), end);
                    }
                }
                Some(meta) => {
                    // Dovecot knows no keyword, and believes no UID, before it has read the base.
                    let after_base = meta == Meta::Uid || (meta == Meta::Keywords && room == Room::Free);
                    if after_base {
                        writer.put(self, Meta::Base, room, end);
                    }
                    writer.put(self, meta, room, end);
                }
            }
        }
        for (meta, _) in METAS {
            let needed = match meta {
                Meta::Status => room == Room::Free || self.is_old || self.flags.system.contains(Flags::SEEN),
                Meta::XStatus => X_STATUS.iter().any(|(flag, _)| self.flags.system.contains(*flag)),
                Meta::Keywords => room == Room::Free || !self.flags.keywords.is_empty(),
                _ => true,
            };
            if needed {
                writer.put(self, meta, room, end);
            }
        }
        let Writer { mut text, spare, .. } = writer;
        if room == Room::Same {
            let missing = header.len().checked_sub(text.len())?;
            if missing > 0 {
                let (at, _) = spare?;
                text.splice(at..at, std::iter::repeat_n(b' ', missing));
            }
        }
        Some(text)
    }
}

struct Writer {
    text: Vec<u8>,
    /// Where spaces may be put in, and for which header.
    spare: Option<(usize, Meta)>,
    done: Vec<Meta>,
}

impl Writer {
    fn put(&mut self, wanted: &Wanted<'_>, meta: Meta, room: Room, end: &str) {
        if self.done.contains(&meta) {
            return;
        }
        self.done.push(meta);
        let Some(value) = wanted.line(meta) else { return };
        let name = METAS.iter().find(|(known, _)| *known == meta).map_or(&b""[..], |(_, name)| *name);
        let begin = self.text.len();
        self.text.extend_from_slice(name);
        self.text.push(b':');
        if !value.is_empty() || meta != Meta::Keywords {
            self.text.push(b' ');
        }
        self.text.extend_from_slice(value.as_bytes());
        if meta == Meta::Keywords && room == Room::Free {
            let length = (self.text.len() - begin + RESERVE_BYTES_MIN).max(KEYWORDS_LINE_BYTES);
            self.text.resize(begin + length, b' ');
        }
        if meta == Meta::Keywords || (meta == Meta::Uid && self.spare.is_none()) {
            self.spare = Some((self.text.len(), meta));
        }
        self.text.extend_from_slice(end.as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flags(system: Flags, keywords: &[&str]) -> FlagSet {
        FlagSet { system, keywords: keywords.iter().map(|name| Keyword::new(name).unwrap()).collect() }
    }

    fn wanted<'a>(flags: &'a FlagSet, base: Option<&'a str>) -> Wanted<'a> {
        let base = base.map(|text| (Meta::Base, text));
        Wanted { base, uid: Uid::new(7), flags, is_old: false, body_bytes: Some(9) }
    }

    #[test]
    fn a_new_header_is_written_as_dovecot_writes_it() {
        let (none, some) = (FlagSet::default(), flags(Flags::SEEN.union(Flags::FLAGGED), &["ren"]));
        let text = wanted(&none, Some("3 0000000007")).render(b"Subject: a\n", Room::Free, "\n").unwrap();
        let spaces = " ".repeat(72);
        let expected = format!(
            "Subject: a\nX-IMAPbase: 3 0000000007\nX-UID: 7\nStatus: \nX-Keywords:{spaces}\nContent-Length: 9\n"
        );
        assert_eq!(String::from_utf8(text).unwrap(), expected);
        let text = wanted(&some, None).render(b"", Room::Free, "\n").unwrap();
        let spaces = " ".repeat(68);
        let expected =
            format!("X-UID: 7\nStatus: R\nX-Status: F\nX-Keywords: ren{spaces}\nContent-Length: 9\n");
        assert_eq!(String::from_utf8(text).unwrap(), expected);
    }

    #[test]
    fn a_change_that_fits_keeps_the_length() {
        let header = b"A: 1\nX-UID: 7\nStatus: O\nB: 2\nX-Keywords: work          \nContent-Length: 9\n";
        let some = flags(Flags::SEEN.union(Flags::ANSWERED), &[]);
        let text = wanted(&some, None).render(header, Room::Same, "\n").unwrap();
        assert_eq!(text.len(), header.len());
        let expected = "A: 1\nX-UID: 7\nStatus: R\nB: 2\nX-Keywords:   \nContent-Length: 9\nX-Status: A\n";
        assert_eq!(String::from_utf8(text).unwrap(), expected);
        let much = flags(Flags::NONE, &["a-keyword-that-has-no-room"]);
        assert_eq!(wanted(&much, None).render(header, Room::Same, "\n"), None);
    }
}
