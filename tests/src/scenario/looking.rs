//! What Dovecot says is there, as text.

use std::collections::BTreeMap;

use dsync_model::mutf7;
use sha2::{Digest, Sha256};

use super::{World, number};
use crate::imap::{Imap, quoted};

impl World {
    /// What Dovecot says is there.
    pub(super) fn look(&mut self, side: usize, boxes: &mut Names, mails: &mut Names) -> Vec<String> {
        self.sessions[side] = None;
        let mut command = self.doveadm(side, "no");
        command.args(["exec", "imap"]);
        let mut imap = Imap::start(command);
        let mut found: BTreeMap<String, (bool, bool)> = BTreeMap::new();
        for (command, subscribed) in [("LIST \"\" \"*\"", false), ("LIST (SUBSCRIBED) \"\" \"*\"", true)] {
            for line in imap.command(command) {
                let (flags, name) = listed(&line.text, &line.literals);
                let flags = flags.to_lowercase();
                let entry = found.entry(name).or_default();
                entry.0 |= !subscribed && !flags.contains("\\nonexistent");
                entry.1 |= subscribed && flags.contains("\\subscribed");
            }
        }
        let mut lines = Vec::new();
        let mut only = Vec::new();
        for (name, (exists, subscribed)) in found {
            let word = if subscribed { " subscribed" } else { "" };
            match exists.then(|| self.read(&mut imap, &name, boxes, mails)).flatten() {
                Some(content) => {
                    lines.push(format!("{name}: {}{word}", content[0]));
                    lines.extend(content[1..].iter().map(|line| format!("{name}: {line}")));
                }
                None if exists && self.scenario.layout == "fs" => {
                    lines.push(format!("{name}: directory{word}"))
                }
                None if subscribed => only.push(name),
                None => {}
            }
        }
        if !only.is_empty() {
            lines.push(format!("only subscribed: {}", only.join(", ")));
        }
        lines
    }

    fn read(&self, imap: &mut Imap, name: &str, boxes: &mut Names, mails: &mut Names) -> Option<Vec<String>> {
        let status = imap.try_command(&format!("STATUS {} (X-GUID)", quoted(name))).ok()?;
        let guid = status.iter().find_map(|line| line.text.split_once("X-GUID ")).expect("a GUID").1;
        let guid = boxes.of(guid.trim_end_matches(')'));
        let opened = imap.command(&format!("EXAMINE {} (CONDSTORE)", quoted(name)));
        let code = |word: &str| opened.iter().find_map(|line| number(&line.text, word)).expect("told");
        let (validity, next) = (code("[UIDVALIDITY "), code("[UIDNEXT "));
        // One that was made up just now.
        let validity = if validity > 1_000_000_000 { "?".into() } else { validity.to_string() };
        let mut lines = vec![format!("{guid} V{validity} N{next}")];
        if opened.iter().any(|line| line.text == "* 0 EXISTS") {
            return Some(lines);
        }
        let mut found = BTreeMap::new();
        for mail in imap.command("UID FETCH 1:* (UID FLAGS INTERNALDATE X-GUID BODY.PEEK[])") {
            let Some(body) = mail.literals.last() else { continue };
            let within = |start: &str, end: char| {
                let (_, rest) = mail.text.split_once(start).expect("told");
                rest.split(end).next().unwrap_or_default().to_owned()
            };
            let uid = number(&mail.text, "UID ").expect("told");
            let mut flags: Vec<String> = within("FLAGS (", ')')
                .split(' ')
                .filter(|f| !f.is_empty() && *f != "\\Recent")
                .map(Into::into)
                .collect();
            flags.sort_by_key(|flag| (!flag.starts_with('\\'), flag.clone()));
            let date = within("INTERNALDATE \"", '"');
            let date = date.trim_end_matches(" +0000").trim_start();
            let date = if date.len() == 19 { format!("0{date}") } else { date.to_owned() };
            let text = String::from_utf8_lossy(body).replace("\r\n", "\n");
            let sum = Sha256::digest(String::from_utf8_lossy(body).replace("\r\n", "\n").as_bytes());
            let sum: String = sum[..4].iter().map(|byte| format!("{byte:02x}")).collect();
            let tag = text
                .lines()
                .take_while(|line| !line.is_empty())
                .find_map(|l| l.strip_prefix("X-Oracle-Tag: "));
            let raw = within("X-GUID ", ' ');
            let tag = tag.map_or_else(|| format!("sha:{sum}"), str::to_owned);
            found.insert(uid, (raw.trim_end_matches(')').to_owned(), tag, flags.join(" "), date, sum));
        }
        for (uid, (guid, tag, flags, date, sum)) in found {
            lines.push(format!("{uid} {tag} {} ({flags}) {date} {sum}", mails.of(&guid)));
        }
        Some(lines)
    }
}

/// Gives names to GUIDs in the order in which they come.
pub(super) struct Names {
    kind: &'static str,
    known: BTreeMap<String, usize>,
}

impl Names {
    pub fn new(kind: &'static str) -> Names {
        Names { kind, known: BTreeMap::new() }
    }

    fn of(&mut self, guid: &str) -> String {
        let next = self.known.len() + 1;
        format!("{}{}", self.kind, self.known.entry(guid.to_owned()).or_insert(next))
    }
}

/// Flags and name of a `LIST` response.
fn listed(text: &str, literals: &[Vec<u8>]) -> (String, String) {
    let (flags, rest) = text.trim_start_matches("* LIST (").split_once(") ").expect("flags");
    // The separator is NIL or one character, which may be quoted.
    let (_, name) = rest
        .strip_prefix("\"\\\\\"")
        .or_else(|| rest.strip_prefix("NIL"))
        .map_or_else(|| rest.split_at(3), |name| ("", name));
    let name = name.trim_start();
    // Extended data may follow.
    let name = match (literals.first(), name.strip_prefix('"')) {
        (Some(literal), _) => String::from_utf8_lossy(literal).into_owned(),
        (None, Some(quoted)) => {
            let mut plain = String::new();
            let mut characters = quoted.chars();
            while let Some(c) = characters.next().filter(|c| *c != '"') {
                plain.push(if c == '\\' { characters.next().unwrap_or(c) } else { c });
            }
            plain
        }
        (None, None) => name.split(' ').next().unwrap_or_default().to_owned(),
    };
    (flags.to_owned(), mutf7::decode(&name).unwrap_or(name))
}
