//! The accounts of a seed: messages of both ends under the same UIDs, copies with one GUID, gaps; and what users did to them.

use std::fmt::Write as _;
use std::fs;

use dsync_tests::maildirs::Account;
use dsync_tests::world::Dice;

use super::Case;

pub const MAILBOXES: [&str; 2] = ["INBOX", "Work"];

pub struct Message {
    pub uid: u32,
    pub guid: String,
    pub subject: String,
    pub size: usize,
}

/// One mailbox of one end.
#[derive(Default)]
pub struct Listed {
    pub messages: Vec<Message>,
    pub uid_next: u32,
}

impl Case<'_> {
    pub fn prepare(&mut self) {
        let large = self.dice.roll(40) == 0;
        let mut guid = {
            let mut dice = self.dice.clone();
            move || format!("{:016x}{:016x}", dice.roll(u64::MAX), dice.roll(u64::MAX))
        };
        self.dice.roll(2);
        let dice = &mut self.dice;
        let sizes = [(); 2].map(|()| [0, 300, 3_000, 12_000][dice.roll(4) as usize]);
        let mut lists: [[Listed; 2]; 2] = Default::default();
        for (mailbox, ends) in lists.iter_mut().enumerate() {
            let common = dice.roll(25) as u32;
            let mut others: Vec<(u32, String, String)> = Vec::new();
            for (end, list) in ends.iter_mut().enumerate() {
                let mut dice_of_common = Dice::new(self.seed * 2 + mailbox as u64);
                for uid in 1..=common {
                    let guid = format!("{:016x}{uid:016x}", dice_of_common.roll(u64::MAX));
                    let subject = format!("c{mailbox}.{uid}");
                    list.messages.push(Message { uid, guid, subject, size: 10 });
                }
                let mut uid = common + 1;
                if dice.roll(3) == 0 {
                    uid += dice.roll(8) as u32;
                }
                let count = if large && mailbox == end { 2_300 } else { dice.roll(30) as usize };
                for number in 0..count {
                    let size = if large && number < 2_100 { 0 } else { dice.roll(sizes[end] + 1) as usize };
                    let mut new =
                        Message { uid, guid: guid(), subject: format!("n{mailbox}.{end}.{number}"), size };
                    // At one UID of both ends it would say that they were synchronised.
                    let is_here =
                        |guid: &str| others.iter().any(|(at, other, _)| *at == uid && other == guid);
                    let earlier: Vec<_> = others.iter().filter(|(_, guid, _)| !is_here(guid)).collect();
                    if !large && dice.roll(10) == 0 && !earlier.is_empty() {
                        // Another message of either end with the same GUID.
                        let (_, guid, subject) = earlier[dice.roll(earlier.len() as u64) as usize];
                        (new.guid, new.subject) = (guid.clone(), subject.clone());
                    }
                    others.push((uid, new.guid.clone(), new.subject.clone()));
                    list.messages.push(new);
                    uid += 1 + if dice.roll(6) == 0 { dice.roll(4) as u32 } else { 0 };
                }
                list.uid_next = uid + if dice.roll(3) == 0 { dice.roll(12) as u32 } else { 0 };
            }
        }
        let [[a_inbox, b_inbox], [a_work, b_work]] = lists;
        let ends = [[a_inbox, a_work], [b_inbox, b_work]];
        for (end, lists) in ends.iter().enumerate() {
            let raw = self.raw(["raw-a", "raw-b"][end], lists);
            self.world.doveadm(&raw, &format!("backup|{}", self.location(end)));
        }
        self.work(&ends);
        self.keep();
    }

    /// A Maildir with these UIDs and GUIDs.
    pub fn raw(&self, name: &str, lists: &[Listed; 2]) -> String {
        let account = Account::new(self.world.path(name));
        for (index, (folder, list)) in ["", "Work"].iter().zip(lists).enumerate() {
            let mut uid_list = format!("3 V1700000001 N{} G{:032x}\n", list.uid_next, 7 + index);
            for message in &list.messages {
                let (uid, guid) = (message.uid, &message.guid);
                let base = format!("17000{uid:05}.M{uid}P1.{name}");
                let subject = &message.subject;
                let text =
                    format!("Subject: {subject}\nMessage-ID: <{guid}@x>\n\n{}\n", "x".repeat(message.size));
                account.deliver(folder, &format!("{base}:2,"), text.as_bytes());
                writeln!(uid_list, "{uid} G{guid} :{base}").expect("a string");
            }
            if list.messages.is_empty() {
                account.deliver(folder, "1.M1P1.none:2,", b"Subject: none\n\n");
                fs::remove_file(account.find(folder, "1.M1P1.none")).expect("removed");
            }
            fs::write(account.folder(folder).join("dovecot-uidlist"), uid_list).expect("written");
        }
        self.world.dovecot.own(&account.root);
        account.location()
    }

    /// What users do at both ends.
    fn work(&mut self, ends: &[[Listed; 2]; 2]) {
        for (end, lists) in ends.iter().enumerate() {
            for (mailbox, list) in MAILBOXES.iter().zip(lists) {
                let mut away: [Vec<u32>; 2] = Default::default();
                for message in &list.messages {
                    let end_of_list = message.uid + 3 > list.uid_next;
                    if self.dice.roll(if end_of_list { 4 } else { 12 }) == 0 {
                        away[usize::from(self.dice.roll(4) == 0)].push(message.uid);
                        if message.subject.starts_with('c') {
                            self.gone.insert(((*mailbox).to_owned(), message.subject.clone()));
                        }
                    }
                }
                let [expunged, moved] =
                    away.map(|uids| uids.iter().take(40).map(u32::to_string).collect::<Vec<_>>().join(","));
                let location = self.location(end);
                if !expunged.is_empty() {
                    self.world.doveadm(&location, &format!("expunge|mailbox|{mailbox}|uid|{expunged}"));
                }
                if !moved.is_empty() {
                    let to = if *mailbox == "INBOX" { "Work" } else { "INBOX" };
                    self.world.doveadm(&location, &format!("move|{to}|mailbox|{mailbox}|uid|{moved}"));
                }
            }
        }
    }
}
