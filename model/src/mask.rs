//! Masks over mailbox names: what `-m` and `-x` take.

use crate::MailboxName;

/// A mask over mailbox names. `*` stands for any text, across hierarchy parts as well; `?` for one
/// character; and, in masks made by [`list_pattern`](Mask::list_pattern), `%` for any text within one part.
///
/// Parts may be written with `/` or with `.` between them: a name matches if either spelling does.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Mask {
    tokens: Vec<Token>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Token {
    Any,
    AnyInPart,
    One,
    Char(char),
}

impl Mask {
    /// A mask with `*` and `?`, as `-x` and `-u` take it.
    pub fn wildcards(text: &str) -> Mask {
        Mask::compile(text, |c| match c {
            '*' => Token::Any,
            '?' => Token::One,
            c => Token::Char(c),
        })
    }

    /// An IMAP LIST pattern with `*` and `%` (RFC 9051 §6.3.9), as `-m` takes it.
    pub fn list_pattern(text: &str) -> Mask {
        Mask::compile(text, |c| match c {
            '*' => Token::Any,
            '%' => Token::AnyInPart,
            c => Token::Char(c),
        })
    }

    fn compile(text: &str, token: impl Fn(char) -> Token) -> Mask {
        // INBOX compares without case and is stored in capitals.
        let text = if text.eq_ignore_ascii_case("INBOX") { "INBOX" } else { text };
        let mut tokens: Vec<Token> = text.chars().map(token).collect();
        tokens.dedup_by(|a, b| *a == Token::Any && *b == Token::Any);
        Mask { tokens }
    }

    /// Says whether `name` matches.
    pub fn matches(&self, name: &MailboxName) -> bool {
        ['/', '.'].into_iter().any(|separator| self.matches_text(&name.join(separator), separator))
    }

    /// Says whether `text` matches, parts of it being divided by `separator`.
    pub fn matches_text(&self, text: &str, separator: char) -> bool {
        let text: Vec<char> = text.chars().collect();
        // One row of the table "tokens up to here match text up to there": no backtracking.
        let mut reached = vec![false; text.len() + 1];
        reached[0] = true;
        for token in &self.tokens {
            match token {
                Token::Any | Token::AnyInPart => {
                    for i in 0..text.len() {
                        reached[i + 1] |= reached[i] && (*token == Token::Any || text[i] != separator);
                    }
                }
                Token::One | Token::Char(_) => {
                    for i in (0..text.len()).rev() {
                        let fits = match token {
                            Token::Char(c) => *c == text[i],
                            _ => true,
                        };
                        reached[i + 1] = reached[i] && fits;
                    }
                    reached[0] = false;
                }
            }
        }
        reached[text.len()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_match_as_the_manual_page_says() {
        for (mask, name, expected) in [
            ("Sp*", "Spam", true),
            ("Sp*", "Spam/2024", true),
            ("Work/*", "Work", false),
            ("Work.*", "Work/x/y", true),
            ("?ent", "Sent", true),
            ("?ent", "ent", false),
            ("inbox", "INBOX", true),
            ("*", "INBOX", true),
            ("a*c*e", "abcde", true),
            ("a*c*f", "abcde", false),
        ] {
            let name = MailboxName::parse(name, '/').unwrap();
            assert_eq!(Mask::wildcards(mask).matches(&name), expected, "{mask} {name}");
        }
        let deep = MailboxName::parse("Lists/2024/Q1", '/').unwrap();
        assert!(Mask::list_pattern("Lists/%/Q1").matches(&deep));
        assert!(!Mask::list_pattern("Lists/%").matches(&deep));
        assert!(Mask::list_pattern("Lists.*").matches(&deep));
    }
}
