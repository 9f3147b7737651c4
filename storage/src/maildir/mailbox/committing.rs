//! The steps of a commit: lines, keywords, saves, renumbers, flags and expunges.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use dsync_model::{FlagSet, MessageAction, MessageGuid, NewMessage, Uid};

use super::{MaildirMailbox, Pending, TRIES};
use crate::maildir::filename::{self, Keywords};
use crate::maildir::indexed;
use crate::maildir::scan::{FileName, Scan, fresh_base, guid};
use crate::maildir::uidlist::Record;
use crate::{Committed, Goal, Result, StorageError, disk};

impl MaildirMailbox {
    /// Says whether a commit with this goal has anything to write.
    pub(super) fn is_idle(&self, goal: Goal) -> bool {
        let list = &self.scan.list;
        let validity = goal.uid_validity.is_none() || goal.uid_validity == list.uid_validity;
        let modseq = self.state().is_none_or(|state| goal.modseq_min.get() <= state.highest_modseq());
        let counters = modseq && goal.uid_next_min <= list.uid_next();
        self.pending.is_empty() && self.actions.is_empty() && validity && counters
    }

    /// Keywords of what is about to be written get letters. Says which messages have some that could not.
    pub(super) fn learn_keywords(&mut self, keywords: &mut Keywords) -> Vec<Uid> {
        let mut unkept = Vec::new();
        let mut used: Vec<u8> =
            self.scan.files.iter().flatten().flat_map(|file| filename::letters(&file.name)).collect();
        used.sort_unstable();
        used.dedup();
        let wanted = self.pending.iter().map(|pending| (pending.message.uid, &pending.message.flags));
        let added = self.actions.iter().filter_map(|action| match action {
            MessageAction::Flags { uid, add, .. } => Some((*uid, add)),
            _ => None,
        });
        for (uid, flags) in wanted.chain(added) {
            if !keywords.learn(flags.keywords.iter(), &used).is_empty() {
                unkept.push(uid);
            }
        }
        unkept
    }

    /// Lines of messages that are gone make room for what is to have their UID or their name again.
    pub(super) fn drop_dead_lines(&mut self) {
        let renumbered = self.actions.iter().filter_map(|action| match action {
            MessageAction::Renumber { to, .. } => Some(*to),
            _ => None,
        });
        let uids: BTreeSet<Uid> =
            self.pending.iter().map(|pending| pending.message.uid).chain(renumbered).collect();
        let bases: BTreeSet<&[u8]> =
            self.pending.iter().map(|pending| pending.message.guid.as_str().as_bytes()).collect();
        let Scan { list, files, .. } = &mut self.scan;
        let dead = |(record, file): (&Record, &Option<FileName>)| {
            file.is_none() && (uids.contains(&record.uid) || bases.contains(&*record.base))
        };
        let keep: Vec<bool> = list.records.iter().zip(&*files).map(|line| !dead(line)).collect();
        if keep.iter().all(|keep| *keep) {
            return;
        }
        list.keep_next();
        let mut kept = keep.iter();
        list.records.retain(|_| *kept.next().unwrap_or(&true));
        let mut kept = keep.iter();
        files.retain(|_| *kept.next().unwrap_or(&true));
        list.rewrite = true;
    }

    /// Moves what lies in `tmp` into `cur`, and gives each its line.
    pub(super) fn place_saves(
        &mut self,
        saved: &mut BTreeMap<u32, NewMessage>,
        committed: &mut Committed,
    ) -> Result<usize> {
        let mut appended = 0;
        let mut pending = std::mem::take(&mut self.pending);
        pending.sort_by_key(|pending| pending.message.uid);
        // Of the names that are there, those that a message could want: a commit is not to copy them all.
        let wanted: HashSet<&[u8]> =
            pending.iter().map(|pending| pending.message.guid.as_str().as_bytes()).collect();
        let there = self.scan.list.records.iter().map(|record| &record.base);
        let mut bases: HashSet<Box<[u8]>> = there.filter(|base| wanted.contains(&***base)).cloned().collect();
        drop(wanted);
        for Pending { message, path, size } in pending {
            let taken = self.scan.list.records.binary_search_by_key(&message.uid, |record| record.uid);
            let uid = match taken {
                Err(_) if !self.burned.contains(message.uid.get()) => message.uid,
                _ => {
                    let free = self.scan.list.uid_next();
                    committed.not_kept.insert(message.uid, Some(free));
                    free
                }
            };
            if uid.next().is_none() {
                return Err(StorageError::Impossible(format!(
                    "{}: UIDs are exhausted",
                    self.places.mail.display()
                )));
            }
            let record = self.record_for(uid, &message, size, &bases, committed);
            let base = record.base.clone();
            let name = filename::with_flags(b"", &base, &message.flags, &self.scan.keywords);
            let file = FileName { in_new: false, name: name.into() };
            disk::rename_new(&path, &file.path(&self.places.mail))?;
            bases.insert(base);
            if uid >= self.scan.list.uid_next() {
                self.scan.list.records.push(record);
                self.scan.files.push(Some(file));
                appended += 1;
            } else {
                let at = self.scan.list.records.partition_point(|record| record.uid < uid);
                self.scan.list.records.insert(at, record);
                self.scan.files.insert(at, Some(file));
                self.scan.list.rewrite = true;
            }
            saved.insert(uid.get(), message);
            committed.saved += 1;
            committed.bytes += size;
        }
        Ok(appended)
    }

    /// The base name is the GUID where that makes a safe file name that is not in use; else a fresh one, and the GUID goes into the uidlist.
    fn record_for(
        &self,
        uid: Uid,
        message: &NewMessage,
        size: u64,
        used: &HashSet<Box<[u8]>>,
        committed: &mut Committed,
    ) -> Record {
        let guid = message.guid.as_str().as_bytes();
        let safe = guid.len() <= 200
            && !guid.iter().any(|b| matches!(b, b'/' | b':'))
            && guid[0] != b'.'
            && filename::size(guid).is_none_or(|told| told == size)
            && !used.contains(guid);
        let mut fields: Vec<(u8, Box<[u8]>)> = Vec::new();
        let base: Box<[u8]> = if safe {
            if filename::size(guid).is_none() {
                fields.push((b'S', size.to_string().into_bytes().into()));
            }
            guid.into()
        } else {
            if guid.contains(&b' ') {
                committed.not_kept.insert(message.uid, Some(uid));
            } else {
                fields.push((b'G', guid.into()));
            }
            format!("{},S={size}", fresh_base()).into_bytes().into()
        };
        let plain = |text: &str| !text.bytes().any(|b| b <= b' ' || b == 0x7f);
        if let Some(uidl) = message.pop3_uidl.as_deref().filter(|uidl| plain(uidl)) {
            fields.push((b'P', uidl.as_bytes().into()));
        }
        if let Some(order) = message.pop3_order {
            fields.push((b'O', order.to_string().into_bytes().into()));
        }
        Record { uid, fields, base }
    }

    /// Says whether the message has its new UID.
    pub(super) fn renumber(&mut self, from: Uid, to: Uid, committed: &mut Committed) -> bool {
        let free = self.scan.list.records.binary_search_by_key(&to, |record| record.uid).is_err();
        let found = self
            .scan
            .index_of(from)
            .filter(|_| free && !self.burned.contains(to.get()) && to.next().is_some());
        let Some(index) = found else {
            committed.not_kept.insert(to, Some(from));
            return false;
        };
        let mut record = self.scan.list.records.remove(index);
        let file = self.scan.files.remove(index);
        record.uid = to;
        let at = self.scan.list.records.partition_point(|record| record.uid < to);
        self.scan.list.records.insert(at, record);
        self.scan.files.insert(at, file);
        self.scan.list.rewrite = true;
        true
    }

    pub(super) fn set_flags(&mut self, uid: Uid, add: &FlagSet, remove: &FlagSet) -> Result<()> {
        for _ in 0..TRIES {
            let Some(index) = self.scan.index_of(uid) else { return Ok(()) };
            let Some(file) = &self.scan.files[index] else { return Ok(()) };
            let known = indexed::flags_of(&self.scan, self.state(), uid).unwrap_or_default();
            let flags = known.minus(remove).union(add);
            let base = &self.scan.list.records[index].base;
            let name = filename::with_flags(&file.name, base, &flags, &self.scan.keywords);
            let renamed = FileName { in_new: false, name: name.into() };
            let (from, to) = (file.path(&self.places.mail), renamed.path(&self.places.mail));
            if from == to {
                return Ok(());
            }
            match disk::rename_new(&from, &to) {
                Ok(()) => {
                    self.scan.files[index] = Some(renamed);
                    return Ok(());
                }
                Err(StorageError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
                    let (now, _) = Scan::look(&self.places)?;
                    self.scan.files = now.files;
                    if self.scan.files.len() != self.scan.list.records.len() {
                        return Ok(());
                    }
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    pub(super) fn expunge(&mut self, uid: Uid, wanted: Option<&MessageGuid>) -> Result<()> {
        for _ in 0..TRIES {
            let Some(index) = self.scan.index_of(uid) else { return Ok(()) };
            let same = |guid: &MessageGuid| guid.bits() == self::guid(&self.scan.list.records[index]).bits();
            if !wanted.is_none_or(same) {
                return Ok(());
            }
            let Some(file) = &self.scan.files[index] else { return Ok(()) };
            let path = file.path(&self.places.mail);
            if path.symlink_metadata().is_ok() {
                disk::remove(&path)?;
                self.scan.files[index] = None;
                return Ok(());
            }
            let (now, _) = Scan::look(&self.places)?;
            if now.files.len() == self.scan.files.len() {
                self.scan.files = now.files;
            }
        }
        Ok(())
    }
}
