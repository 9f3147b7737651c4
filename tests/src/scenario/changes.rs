//! What a scenario has done at one side: by IMAP, by doveadm, and to the files.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use dsync_model::mutf7;

use super::{Op, World, number};
use crate::imap::quoted;
use crate::installation::words;

/// The first message's date, and the first delivered file's name.
const FIRST_DATE: u64 = 1_704_067_200;
const FIRST_NAME: u64 = 1_700_000_000;

impl World {
    fn update(&mut self, side: usize, mailbox: &str, settings: &[String]) {
        self.sessions[side] = None;
        let settings = settings.iter().map(String::as_str);
        let update: Vec<&str> = ["mailbox", "update"].into_iter().chain(settings).chain([mailbox]).collect();
        let output = self.doveadm(side, "yes").args(words(&update)).output().expect("doveadm runs");
        assert!(output.status.success(), "{mailbox}: {}", String::from_utf8_lossy(&output.stderr));
    }

    pub(super) fn identify(&mut self, side: usize, mailbox: &str, guid: &str, validity: u32) {
        let validity = validity.to_string();
        let settings = ["--mailbox-guid", guid, "--uid-validity", &validity].map(str::to_owned);
        self.update(side, mailbox, &settings);
    }

    pub(super) fn change(&mut self, side: usize, ops: &[Op]) {
        ops.iter().for_each(|op| self.one(side, op));
        self.sessions[side] = None;
    }

    fn one(&mut self, side: usize, op: &Op) {
        let mailbox = &op.mailbox;
        let simple = |verb: &str| format!("{verb} {}", quoted(mailbox));
        match op.op.as_str() {
            "append" => self.append(side, op),
            "store" => {
                for uid in self.uids(side, op) {
                    let mut kinds = vec![("+FLAGS", &op.add), ("-FLAGS", &op.del)];
                    kinds.extend(op.set.as_ref().map(|set| ("FLAGS", set)));
                    let set = op.set.is_some();
                    for (kind, flags) in
                        kinds.into_iter().filter(|(k, f)| !f.is_empty() || set && *k == "FLAGS")
                    {
                        self.imap(side)
                            .command(&format!("UID STORE {uid} {kind}.SILENT ({})", flags.join(" ")));
                    }
                }
            }
            "expunge" => {
                for uid in self.uids(side, op) {
                    self.imap(side).command(&format!("UID STORE {uid} +FLAGS.SILENT (\\Deleted)"));
                    self.imap(side).command(&format!("UID EXPUNGE {uid}"));
                }
            }
            verb @ ("copy" | "move") => {
                for uid in self.uids(side, op) {
                    let command = format!("UID {} {uid} {}", verb.to_uppercase(), quoted(&op.to));
                    self.imap(side).command(&command);
                }
            }
            "create" => {
                self.imap(side).unselect();
                self.imap(side).command(&simple("CREATE"));
                if let (Some(guid), Some(validity), false) = (&op.guid, op.uidvalidity, op.dir) {
                    self.identify(side, mailbox, guid, validity);
                }
            }
            verb @ ("delete" | "subscribe" | "unsubscribe") => {
                self.imap(side).unselect();
                self.imap(side).command(&simple(&verb.to_uppercase()));
            }
            "rename" => {
                self.imap(side).unselect();
                self.imap(side).command(&format!("{} {}", simple("RENAME"), quoted(&op.to)));
            }
            "update" => {
                let mut settings = Vec::new();
                let mut set = |name: &str, value: Option<u32>| {
                    settings.extend(value.into_iter().flat_map(|v| [name.to_owned(), v.to_string()]));
                };
                set("--uid-validity", op.uid_validity);
                set("--min-next-uid", op.min_next_uid);
                self.update(side, mailbox, &settings);
            }
            "unlink" => {
                self.sessions[side] = None;
                fs::remove_file(self.file(side, op)).expect("removed");
            }
            "fileflags" => {
                self.sessions[side] = None;
                let file = self.file(side, op);
                let name = file.file_name().expect("a name").to_string_lossy().into_owned();
                let base = name.split(':').next().expect("a base");
                let to = self.path(side, mailbox).join("cur").join(format!("{base}:2,{}", op.letters));
                fs::rename(&file, to).expect("renamed");
            }
            "rmindex" => {
                self.sessions[side] = None;
                for entry in fs::read_dir(self.path(side, mailbox)).expect("readable").flatten() {
                    if entry.file_name().to_string_lossy().starts_with("dovecot.") {
                        fs::remove_file(entry.path()).expect("removed");
                    }
                }
            }
            other => panic!("unknown operation {other}"),
        }
    }

    /// Delivers a file of a name that is always the same: it is the GUID.
    fn append(&mut self, side: usize, op: &Op) {
        let number = op.seq.unwrap_or(self.messages);
        self.messages += 1;
        let (tag, date) = (&op.msg, op.date.unwrap_or(FIRST_DATE + 60 * number));
        let text = op.raw.clone().unwrap_or_else(|| {
            let body = op.body.clone().unwrap_or_else(|| format!("body of {tag}\n"));
            format!(
                "From: Oracle <oracle@example.org>\nTo: someone@example.org\nSubject: message {tag}\nDate: Mon, 01 Jan 2024 01:00:00 GMT\n\
                 Message-ID: <{tag}@oracle.example.org>\nX-Oracle-Tag: {tag}\n\n{body}"
            )
        });
        if side == 1 && self.scenario.format_b.is_some() {
            let date = format!("01-Jan-2024 00:{:02}:00 +0000", (date - FIRST_DATE) / 60);
            return self.imap(side).append(&op.mailbox, &op.flags.join(" "), &date, &text);
        }
        // Other formats take it from a Maildir: Dovecot keeps the GUID then.
        let imported = (self.setup.formats[side] != "maildir").then(|| self.dir.path().join("imported"));
        let folder = match &imported {
            Some(root) => {
                let folder = self.maildir(root, side, &op.mailbox);
                for path in ["cur", "new", "tmp"].map(|sub| folder.join(sub)) {
                    fs::create_dir_all(path).expect("made");
                }
                folder
            }
            None => self.path(side, &op.mailbox),
        };
        if !folder.join("cur").is_dir() {
            self.imap(side).command(&format!("STATUS {} (UIDNEXT)", quoted(&op.mailbox)));
        }
        let name = op.guid.clone().unwrap_or_else(|| format!("{}.M{number}P1.oracle", FIRST_NAME + number));
        let letter = |flag: &String| match flag.as_str() {
            "\\Draft" => Some('D'),
            "\\Flagged" => Some('F'),
            "\\Answered" => Some('R'),
            "\\Seen" => Some('S'),
            "\\Deleted" => Some('T'),
            _ => None,
        };
        let mut letters: Vec<char> = op.flags.iter().filter_map(letter).collect();
        letters.sort_unstable();
        let to = if letters.is_empty() {
            folder.join("new").join(&name)
        } else {
            folder.join("cur").join(format!("{name}:2,{}", letters.iter().collect::<String>()))
        };
        let tmp = folder.join("tmp").join(&name);
        fs::write(&tmp, text).expect("written");
        let file = fs::File::options().write(true).open(&tmp).expect("opened");
        file.set_modified(UNIX_EPOCH + Duration::from_secs(date)).expect("set");
        self.dovecot.own(&tmp);
        assert!(!to.exists(), "{} is there already", to.display());
        fs::rename(&tmp, &to).expect("delivered");
        if let Some(root) = imported {
            self.dovecot.own(&root);
            let source = format!("maildir:{}", root.display());
            let import = words(&["import", &source, "", "all"]);
            let output = self.doveadm(side, "yes").args(import).output().expect("runs");
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            fs::remove_dir_all(root).expect("removed");
        }
        // Looking gives it its UID.
        let imap = self.imap(side);
        imap.unselect();
        imap.select(&op.mailbox);
        let keywords: Vec<&str> =
            op.flags.iter().map(String::as_str).filter(|f| !f.starts_with('\\')).collect();
        if !keywords.is_empty() {
            let uid = self.uids(side, op).pop().expect("delivered");
            self.imap(side).command(&format!("UID STORE {uid} +FLAGS.SILENT ({})", keywords.join(" ")));
        }
    }

    /// UIDs of the messages of that tag; `nth` picks one.
    fn uids(&mut self, side: usize, op: &Op) -> Vec<u32> {
        let imap = self.imap(side);
        imap.select(&op.mailbox);
        let fetched = imap.command("UID FETCH 1:* (UID BODY.PEEK[HEADER.FIELDS (X-Oracle-Tag)])");
        let ours = fetched.iter().filter(|fetched| {
            let header = fetched.literals.first().map(|bytes| String::from_utf8_lossy(bytes).into_owned());
            header.is_some_and(|h| h.trim_end().strip_prefix("X-Oracle-Tag: ") == Some(op.msg.as_str()))
        });
        let mut uids: Vec<u32> = ours.filter_map(|fetched| number(&fetched.text, "UID ")).collect();
        uids.sort_unstable();
        assert!(!uids.is_empty(), "{}: no message {} in {}", self.scenario.title, op.msg, op.mailbox);
        op.nth.map_or(uids.clone(), |nth| vec![uids[nth]])
    }

    /// Where a mailbox lies in a Maildir++.
    fn maildir(&self, root: &Path, side: usize, mailbox: &str) -> PathBuf {
        let separator = [&self.scenario.separator_a, &self.scenario.separator_b][side].as_deref();
        let name = mutf7::encode(&mailbox.replace(separator.unwrap_or("/"), "."));
        if mailbox == "INBOX" { root.to_owned() } else { root.join(format!(".{name}")) }
    }

    fn path(&self, side: usize, mailbox: &str) -> PathBuf {
        let root = self.root(side);
        if self.setup.formats[side] == "maildir"
            && self.layout().is_empty()
            && (side == 1 || self.scenario.suffix_a.is_empty())
        {
            return self.maildir(&root, side, mailbox);
        }
        let output =
            self.doveadm(side, "yes").args(words(&["mailbox", "path", mailbox])).output().expect("runs");
        PathBuf::from(String::from_utf8_lossy(&output.stdout).trim())
    }

    fn file(&self, side: usize, op: &Op) -> PathBuf {
        let folder = self.path(side, &op.mailbox);
        let line = format!("X-Oracle-Tag: {}\n", op.msg);
        let files =
            ["cur", "new"].into_iter().flat_map(|sub| fs::read_dir(folder.join(sub)).expect("readable"));
        let mut paths = files.map(|entry| entry.expect("readable").path());
        paths.find(|path| fs::read_to_string(path).is_ok_and(|text| text.contains(&line))).expect("the file")
    }
}
