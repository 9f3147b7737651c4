//! File names of messages: base, flags, sizes (storage formats reference, 6.2).

use dsync_model::{FlagSet, Flags, Keyword};

const LETTERS: [(u8, Flags); 5] = [
    (b'D', Flags::DRAFT),
    (b'F', Flags::FLAGGED),
    (b'R', Flags::ANSWERED),
    (b'S', Flags::SEEN),
    (b'T', Flags::DELETED),
];

/// The part of a file name before `:`.
pub fn base(name: &[u8]) -> &[u8] {
    &name[..memchr::memchr(b':', name).unwrap_or(name.len())]
}

/// The letters behind `:2,`, and what follows a second comma with that comma.
fn info(name: &[u8]) -> (&[u8], &[u8]) {
    let info = name.get(base(name).len()..).and_then(|rest| rest.strip_prefix(b":2,")).unwrap_or_default();
    info.split_at(memchr::memchr(b',', info).unwrap_or(info.len()))
}

/// The flags that a file name tells. Keyword letters without an entry become `unknown-<n>`, as Dovecot shows them.
pub fn flags(name: &[u8], keywords: &Keywords) -> FlagSet {
    let mut set = FlagSet::default();
    for letter in info(name).0 {
        if let Some((_, flag)) = LETTERS.iter().find(|(l, _)| l == letter) {
            set.system = set.system.union(*flag);
        } else if letter.is_ascii_lowercase() {
            set.keywords.extend(keywords.of_letter(*letter));
        }
    }
    set
}

/// The file name that a message gets in `cur`: with these flags, and with letters that are no flags as in `old`. Keywords without a
/// letter are left out.
pub fn with_flags(old: &[u8], base: &[u8], flags: &FlagSet, keywords: &Keywords) -> Vec<u8> {
    let (letters, rest) = info(old);
    let known = |l: &u8| LETTERS.iter().any(|(letter, _)| letter == l) || l.is_ascii_lowercase();
    let mut all: Vec<u8> = letters.iter().filter(|l| !known(l)).copied().collect();
    all.extend(LETTERS.iter().filter(|(_, flag)| flags.system.contains(*flag)).map(|(letter, _)| *letter));
    all.extend(flags.keywords.iter().filter_map(|keyword| keywords.letter_of(keyword)));
    all.sort_unstable();
    all.dedup();
    [base, b":2,", &all, rest].concat()
}

/// The size in bytes that a base name tells as `,S=`.
pub fn size(base: &[u8]) -> Option<u64> {
    let at = memchr::memmem::find(base, b",S=")?;
    let digits = base[at + 3..].iter().take_while(|b| b.is_ascii_digit()).count();
    std::str::from_utf8(&base[at + 3..at + 3 + digits]).ok()?.parse().ok()
}

/// What orders messages that come without UIDs: the time in the name, then its microseconds, then the name.
pub fn arrival(base: &[u8]) -> (u64, u64, &[u8]) {
    let number = |bytes: &[u8]| {
        let digits = bytes.iter().take_while(|b| b.is_ascii_digit()).take(18);
        digits.fold(0u64, |n, d| n * 10 + u64::from(d - b'0'))
    };
    let micros = memchr::memmem::find(base, b".M").map_or(0, |at| number(&base[at + 2..]));
    (number(base), micros, base)
}

/// The 26 keyword letters of a mailbox (`dovecot-keywords`, reference 6.5).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Keywords {
    names: [Option<Keyword>; 26],
}

impl Keywords {
    /// Reads the file's content; lines that make no sense are passed over.
    pub fn parse(bytes: &[u8]) -> Keywords {
        let mut keywords = Keywords::default();
        for line in String::from_utf8_lossy(bytes).lines() {
            let Some((index, name)) = line.split_once(' ') else { continue };
            let slot = index.parse::<usize>().ok().and_then(|index| keywords.names.get_mut(index));
            if let (Some(slot), Some(name)) = (slot, Keyword::new(name)) {
                *slot = Some(name);
            }
        }
        keywords
    }

    /// Says whether the keyword has a letter.
    pub fn has(&self, keyword: &Keyword) -> bool {
        self.names.iter().flatten().any(|name| name == keyword)
    }

    /// The content of the file.
    pub fn to_bytes(&self) -> Vec<u8> {
        let named = self.names.iter().enumerate().filter_map(|(i, name)| name.as_ref().map(|name| (i, name)));
        named.map(|(i, name)| format!("{i} {name}\n")).collect::<String>().into_bytes()
    }

    fn of_letter(&self, letter: u8) -> Option<Keyword> {
        let index = usize::from(letter - b'a');
        self.names[index].clone().or_else(|| Keyword::new(&format!("unknown-{index}")))
    }

    fn letter_of(&self, keyword: &Keyword) -> Option<u8> {
        let known = self.names.iter().position(|name| name.as_ref() == Some(keyword));
        let unnamed = || {
            let index: usize = keyword.as_str().strip_prefix("unknown-")?.parse().ok()?;
            self.names.get(index)?.is_none().then_some(index)
        };
        known.or_else(unnamed).map(|index| b'a' + index as u8)
    }

    /// Gives each of these keywords a letter. Those for which none is free come back.
    pub fn learn<'a>(&mut self, wanted: impl Iterator<Item = &'a Keyword>, used: &[u8]) -> Vec<Keyword> {
        let mut left_over = Vec::new();
        for keyword in wanted {
            if self.letter_of(keyword).is_some() {
                continue;
            }
            // A letter that files carry without a name in the list is somebody's: it is never given away.
            let free = (0..26).find(|i| self.names[*i].is_none() && !used.contains(&(b'a' + *i as u8)));
            match free {
                Some(index) => self.names[index] = Some(keyword.clone()),
                None => left_over.push(keyword.clone()),
            }
        }
        left_over
    }
}

/// The keyword letters in a file name.
pub fn letters(name: &[u8]) -> impl Iterator<Item = u8> + '_ {
    info(name).0.iter().copied().filter(u8::is_ascii_lowercase)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_come_from_letters_and_go_back() {
        let keywords = Keywords::parse(b"0 $Label1\n1 Work\nx y\n99 z\n");
        let name = b"1.M2P3.host,S=10:2,QSTabz,extra";
        let set = flags(name, &keywords);
        assert_eq!(set.system, Flags::SEEN.union(Flags::DELETED));
        let names: Vec<&str> = set.keywords.iter().map(Keyword::as_str).collect();
        assert_eq!(names, ["$Label1", "unknown-25", "Work"]);
        assert_eq!(with_flags(name, base(name), &set, &keywords), name);
        let fewer = FlagSet::system(Flags::FLAGGED);
        assert_eq!(with_flags(name, base(name), &fewer, &keywords), b"1.M2P3.host,S=10:2,FQ,extra");
        assert_eq!(size(base(name)), Some(10));
        assert_eq!(arrival(base(name)), (1, 2, &b"1.M2P3.host,S=10"[..]));
        assert_eq!(keywords.to_bytes(), b"0 $Label1\n1 Work\n");
    }

    #[test]
    fn a_letter_that_files_carry_is_not_given_away() {
        let mut keywords = Keywords::default();
        let all: Vec<Keyword> = (0..30).map(|i| Keyword::new(&format!("k{i}")).unwrap()).collect();
        let left = keywords.learn(all.iter(), b"ac");
        assert_eq!(left.len(), 6);
        assert_eq!(keywords.letter_of(&all[0]), Some(b'b'));
        assert_eq!(keywords.letter_of(&all[1]), Some(b'd'));
    }
}
