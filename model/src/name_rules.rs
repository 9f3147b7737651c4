//! Which names an end can hold, and what it calls those that it cannot.
//!
//! Each end tells the other its rules, so that both name every mailbox alike (docs/merge.md, rule **held**).

use bincode::{Decode, Encode};

use crate::name::NAME_BYTES_MAX;
use crate::{MailboxName, mutf7};

/// Takes the place of what a name cannot have, as in Dovecot (`dsync_alt_char`); the second where the first is it.
const ALTERNATIVES: [char; 2] = ['_', '-'];
/// Most namespaces, and most reserved names of one, that a peer may have.
const NAMESPACES_MAX: usize = 100;
const RESERVED_MAX: usize = 100;
/// How often a repair may make another one necessary.
const REPAIRS_MAX: usize = 20;

/// Which namespaces take part in a session: `-n`, `-N`.
#[derive(Clone, PartialEq, Eq, Default, Debug, Encode, Decode)]
pub enum Namespaces {
    /// Those that have no location of their own.
    #[default]
    Usual,
    /// All that are visible.
    All,
    /// Those with these prefixes; an unknown one stands for the namespace without a prefix.
    Only(Vec<String>),
}

/// Which names an end can hold.
#[derive(Clone, PartialEq, Eq, Default, Debug, Encode, Decode)]
pub struct NameRules {
    /// Empty: any name can be held.
    pub namespaces: Vec<NamespaceRules>,
}

/// Which names one namespace can hold.
#[derive(Clone, PartialEq, Eq, Default, Debug, Encode, Decode)]
pub struct NamespaceRules {
    /// The parts that all its names begin with, INBOX excepted.
    pub prefix: Vec<String>,
    /// INBOX is in it.
    pub inbox: bool,
    /// It is part of this session.
    pub takes_part: bool,
    /// No part has one of these: hierarchy separators, of the namespace and of its layout.
    pub separators: Vec<char>,
    /// Names are stored in modified UTF-7, and their bytes counted so.
    pub encoded: bool,
    /// Most bytes of one part; 0: any.
    pub part_bytes_max: u32,
    /// Most bytes of all parts, with a byte between two; 0: any.
    pub name_bytes_max: u32,
    /// Names of something else.
    pub reserved: Vec<Reserved>,
}

/// A name, or a part of one, that is no mailbox's.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub struct Reserved {
    pub place: Where,
    /// As stored; for a path with `/` between parts.
    pub text: String,
}

/// Where in a name it counts.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Encode, Decode)]
pub enum Where {
    /// A whole part.
    Part,
    /// The beginning, or the end, of any part.
    PartBegin,
    PartEnd,
    /// The whole first part, or its beginning whatever its case.
    First,
    FirstBegin,
    /// The whole name; or that and all below it.
    Path,
    PathBegin,
}

impl NameRules {
    /// Says whether these are rules that a peer may have.
    pub fn are_sane(&self) -> bool {
        self.namespaces.len() <= NAMESPACES_MAX
            && self.namespaces.iter().all(|namespace| namespace.reserved.len() <= RESERVED_MAX)
    }

    /// The namespace that a name is in, and the name within it, which is empty for the prefix itself. INBOX is its own name.
    pub fn place<'a>(&self, name: &'a MailboxName) -> Option<(usize, &'a [Box<str>])> {
        if name.is_inbox() {
            return Some((self.namespaces.iter().position(|namespace| namespace.inbox)?, name.parts()));
        }
        let parts = name.parts();
        let fitting = |namespace: &NamespaceRules| {
            parts.len() >= namespace.prefix.len()
                && parts.iter().zip(&namespace.prefix).all(|(part, prefix)| **part == **prefix)
        };
        let all = self.namespaces.iter().enumerate().filter(|(_, namespace)| fitting(namespace));
        let (index, namespace) = all.max_by_key(|(_, namespace)| namespace.prefix.len())?;
        Some((index, &parts[namespace.prefix.len()..]))
    }

    /// Says whether a name lies where this session does not go.
    pub fn is_apart(&self, name: &MailboxName) -> bool {
        match self.place(name) {
            Some((index, _)) => !self.namespaces[index].takes_part,
            None if name.is_inbox() => !self.namespaces.is_empty(),
            // It could only be held elsewhere.
            None => self.place(&self.hold(name)).is_some_and(|(index, _)| !self.namespaces[index].takes_part),
        }
    }

    /// Says whether the name can be held as it is.
    pub fn holds(&self, name: &MailboxName) -> bool {
        self.hold(name) == *name
    }

    /// The name itself if it can be held, else what the mailbox is called instead.
    #[must_use]
    pub fn hold(&self, name: &MailboxName) -> MailboxName {
        self.hold_numbered(name, 1)
    }

    /// The `number`th choice: from 2 on, with that number behind the name.
    #[must_use]
    pub fn hold_numbered(&self, name: &MailboxName, number: u32) -> MailboxName {
        let suffix = if number > 1 { format!(" ({number})") } else { String::new() };
        self.held(name, &suffix).unwrap_or_else(|| name.with_suffix(&suffix))
    }

    /// Says whether this end, which cannot hold `name`, calls the mailbox `held` instead: with or without a number.
    pub fn is_instead(&self, held: &MailboxName, name: &MailboxName) -> bool {
        if held == name || self.holds(name) {
            return false;
        }
        let last = held.parts().last().and_then(|last| last.strip_suffix(')')?.rsplit_once(" ("));
        let number = last.and_then(|(_, number)| number.parse().ok()).filter(|number| *number > 1);
        *held == self.hold(name) || number.is_some_and(|number| self.hold_numbered(name, number) == *held)
    }

    fn held(&self, name: &MailboxName, suffix: &str) -> Option<MailboxName> {
        if name.is_inbox() && suffix.is_empty() || self.namespaces.is_empty() {
            return None;
        }
        let (index, inner) = match self.place(name) {
            Some((index, inner)) => (index, inner),
            // A name that no namespace has goes below the prefix of the one with INBOX.
            None => {
                let main = self.namespaces.iter().position(|namespace| namespace.inbox);
                let main = main.or_else(|| self.namespaces.iter().position(|one| one.takes_part))?;
                (main, name.parts())
            }
        };
        let namespace = &self.namespaces[index];
        let prefix = namespace.prefix.iter().map(String::as_str);
        let inner = namespace.repaired(inner, suffix, name)?;
        let parts: Vec<&str> = prefix.chain(inner.iter().map(String::as_str)).collect();
        let held = MailboxName::new(&parts).ok()?;
        (self.place(&held).is_some_and(|(found, _)| found == index)).then_some(held)
    }
}

impl NamespaceRules {
    /// The nearest name that can be held, `suffix` at its end; `None`: there is none.
    fn repaired(&self, inner: &[Box<str>], suffix: &str, name: &MailboxName) -> Option<Vec<String>> {
        let mut parts: Vec<String> = inner.iter().map(|part| part.to_string()).collect();
        if parts.is_empty() {
            // The prefix itself.
            parts.push(format!("_{}", name.parts().last()?));
        }
        let alternative = ALTERNATIVES.into_iter().find(|c| !self.separators.contains(c))?;
        for part in &mut parts {
            *part = part.replace(self.separators.as_slice(), &alternative.to_string());
        }
        for _ in 0..REPAIRS_MAX {
            self.shorten(&mut parts, suffix)?;
            let mut last = parts.clone();
            last.last_mut()?.push_str(suffix);
            match self.wrong(&last) {
                None => return Some(last),
                Some((at, Where::PartEnd)) => parts[at].push(alternative),
                Some((at, _)) => parts[at].insert(0, alternative),
            }
        }
        None
    }

    /// Which part cannot be as it is, and why.
    fn wrong(&self, parts: &[String]) -> Option<(usize, Where)> {
        // INBOX is one mailbox, whichever way it is written.
        if let [only] = parts
            && only.eq_ignore_ascii_case("INBOX")
            && (self.inbox || only != "INBOX")
        {
            return Some((0, Where::First));
        }
        let stored: Vec<String> = parts.iter().map(|part| self.stored(part)).collect();
        let begins = |text: &str, begin: &str| {
            text.get(..begin.len()).is_some_and(|start| start.eq_ignore_ascii_case(begin))
        };
        for Reserved { place, text } in &self.reserved {
            let fits = |part: &String| match place {
                Where::Part | Where::First => part == text,
                Where::PartBegin => part.starts_with(text),
                Where::PartEnd => part.ends_with(text),
                Where::FirstBegin => begins(part, text),
                Where::Path | Where::PathBegin => false,
            };
            let depth = text.split('/').count();
            let path = || stored.iter().take(depth).map(String::as_str).eq(text.split('/'));
            let at = match place {
                Where::First | Where::FirstBegin => stored.first().is_some_and(fits).then_some(0),
                Where::Path => (stored.len() == depth && path()).then_some(depth - 1),
                Where::PathBegin => path().then_some(depth - 1),
                Where::Part | Where::PartBegin | Where::PartEnd => stored.iter().position(fits),
            };
            if let Some(at) = at {
                return Some((at, *place));
            }
        }
        None
    }

    /// Cuts the ends off parts that are too long. `None`: nothing would be left.
    fn shorten(&self, parts: &mut [String], suffix: &str) -> Option<()> {
        let last = parts.len().checked_sub(1)?;
        let room = |at: usize| if at == last { self.stored(suffix).len() } else { 0 };
        let limit = |max: u32| if max == 0 { NAME_BYTES_MAX } else { max as usize };
        for (at, part) in parts.iter_mut().enumerate() {
            while self.stored(part).len() + room(at) > limit(self.part_bytes_max) {
                part.pop()?;
            }
        }
        let bytes =
            |parts: &[String]| -> usize { parts.iter().map(|part| self.stored(part).len() + 1).sum() };
        while bytes(parts) - 1 + room(last) > limit(self.name_bytes_max) {
            parts.iter_mut().max_by_key(|part| part.len())?.pop()?;
        }
        parts.iter().all(|part| !part.is_empty()).then_some(())
    }

    fn stored(&self, part: &str) -> String {
        if self.encoded { mutf7::encode(part) } else { part.to_owned() }
    }
}
