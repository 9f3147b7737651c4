//! Names of mailboxes: paths of hierarchy parts, free of any separator.

use std::fmt;

use bincode::de::{BorrowDecoder, Decoder};
use bincode::error::DecodeError;
use bincode::{BorrowDecode, Decode, Encode};

/// Most hierarchy parts of a name.
pub const PARTS_MAX: usize = 1000;
/// Longest name, in bytes, counting one byte between two parts.
pub const NAME_BYTES_MAX: usize = 4096;

/// Name of a mailbox: one or more hierarchy parts in UTF-8. INBOX is spelled in capitals.
///
/// No part is empty, `.` or `..`, or holds `/` or a control character, so no name leads out of the
/// directory it is put under. Order is depth first, siblings by byte value.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Encode)]
pub struct MailboxName(Vec<Box<str>>);

/// Why a text is no mailbox name.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum NameError {
    #[error("mailbox name is empty or has an empty part")]
    Empty,
    #[error("mailbox name has a part \".\" or \"..\"")]
    Dots,
    #[error("mailbox name holds a slash or a control character")]
    Character,
    #[error("mailbox name is longer than {NAME_BYTES_MAX} bytes or deeper than {PARTS_MAX} parts")]
    Long,
}

impl MailboxName {
    /// Takes the parts from the root down.
    pub fn new<S: AsRef<str>>(parts: &[S]) -> Result<MailboxName, NameError> {
        let bytes: usize = parts.iter().map(|part| part.as_ref().len() + 1).sum();
        if parts.len() > PARTS_MAX || bytes > NAME_BYTES_MAX + 1 {
            return Err(NameError::Long);
        }
        let mut checked: Vec<Box<str>> = Vec::with_capacity(parts.len());
        for part in parts {
            let part = part.as_ref();
            if part.is_empty() {
                return Err(NameError::Empty);
            }
            if part == "." || part == ".." {
                return Err(NameError::Dots);
            }
            if part.chars().any(|c| c == '/' || c.is_control()) {
                return Err(NameError::Character);
            }
            checked.push(part.into());
        }
        match checked.as_mut_slice() {
            [] => Err(NameError::Empty),
            [only] if only.eq_ignore_ascii_case("INBOX") => Ok(MailboxName::inbox()),
            _ => Ok(MailboxName(checked)),
        }
    }

    /// Reads a name whose parts are joined by `separator`.
    pub fn parse(text: &str, separator: char) -> Result<MailboxName, NameError> {
        let parts: Vec<&str> = text.split(separator).take(PARTS_MAX + 1).collect();
        MailboxName::new(&parts)
    }

    /// The one mailbox that every account has.
    pub fn inbox() -> MailboxName {
        MailboxName(vec!["INBOX".into()])
    }

    pub fn is_inbox(&self) -> bool {
        matches!(self.0.as_slice(), [only] if &**only == "INBOX")
    }

    /// The parts from the root down; at least one.
    pub fn parts(&self) -> &[Box<str>] {
        &self.0
    }

    /// The parts with `separator` between them.
    pub fn join(&self, separator: char) -> String {
        let mut text = String::new();
        for (i, part) in self.0.iter().enumerate() {
            if i > 0 {
                text.push(separator);
            }
            text.push_str(part);
        }
        text
    }

    /// The name one level up; `None` at the root.
    pub fn parent(&self) -> Option<MailboxName> {
        match self.0.split_last() {
            Some((_, [])) | None => None,
            Some((_, parts)) => Some(MailboxName(parts.to_vec())),
        }
    }

    /// The names above this one, the nearest first.
    pub fn ancestors(&self) -> impl Iterator<Item = MailboxName> {
        std::iter::successors(self.parent(), MailboxName::parent)
    }

    /// Says whether this name lies below `ancestor`.
    pub fn is_below(&self, ancestor: &MailboxName) -> bool {
        self.0.len() > ancestor.0.len() && self.0.starts_with(&ancestor.0)
    }

    /// The same name with `suffix` after its last part, which is shortened at a character boundary if
    /// it must be.
    pub fn with_suffix(&self, suffix: &str) -> MailboxName {
        let mut parts = self.0.clone();
        if let Some(last) = parts.last_mut() {
            let mut end = last.len().min(200usize.saturating_sub(suffix.len()));
            while !last.is_char_boundary(end) {
                end -= 1;
            }
            *last = format!("{}{suffix}", &last[..end]).into();
        }
        MailboxName(parts)
    }
}

impl fmt::Display for MailboxName {
    /// The parts joined by `/`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.join('/'))
    }
}

impl fmt::Debug for MailboxName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.join('/'), f)
    }
}

impl<C> Decode<C> for MailboxName {
    fn decode<D: Decoder<Context = C>>(decoder: &mut D) -> Result<Self, DecodeError> {
        let parts = Vec::<String>::decode(decoder)?;
        MailboxName::new(&parts).map_err(|_| DecodeError::Other("mailbox name is not valid"))
    }
}

impl<'de, C> BorrowDecode<'de, C> for MailboxName {
    fn borrow_decode<D: BorrowDecoder<'de, Context = C>>(decoder: &mut D) -> Result<Self, DecodeError> {
        Self::decode(decoder)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_lead_elsewhere_are_refused() {
        for (text, error) in [
            ("", NameError::Empty),
            ("a//b", NameError::Empty),
            ("../etc", NameError::Dots),
            ("a/./b", NameError::Dots),
            ("a\0b", NameError::Character),
            ("a\nb", NameError::Character),
        ] {
            assert_eq!(MailboxName::parse(text, '/'), Err(error), "{text:?}");
        }
        assert_eq!(MailboxName::new(&["a/b"]), Err(NameError::Character));
        assert_eq!(MailboxName::parse(&"a/".repeat(10_000), '/'), Err(NameError::Long));
    }

    #[test]
    fn inbox_is_one_whatever_its_case() {
        assert!(MailboxName::parse("inBox", '/').unwrap().is_inbox());
        let child = MailboxName::parse("inbox/sub", '/').unwrap();
        assert!(!child.is_inbox() && child.join('.') == "inbox.sub");
    }

    #[test]
    fn order_is_depth_first() {
        let name = |t: &str| MailboxName::parse(t, '/').unwrap();
        let mut names = [name("a-b"), name("a/b"), name("a"), name("B")];
        names.sort();
        assert_eq!(names.map(|n| n.to_string()), ["B", "a", "a/b", "a-b"]);
        assert!(name("a/b").is_below(&name("a")) && !name("a-b").is_below(&name("a")));
        assert_eq!(name("ab").with_suffix(" (2)").to_string(), "ab (2)");
    }
}
