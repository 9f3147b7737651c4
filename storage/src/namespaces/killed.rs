//! Moves into another namespace that are killed at every step, and what others do until the next run.

use std::fs;
use std::path::Path;

use dsync_model::{AttributeKey, Digest, FlagSet, Flags, MessageAction, MessageChange, ModSeq, Since, Uid};

use super::tests::{create, fill, name, namespace, rename, statuses};
use super::*;
use crate::{Goal, Storage, disk};

/// Formats of the user's mail and of the archive.
type Formats = [&'static str; 2];
const FORMATS: [Formats; 3] = [["maildir", "sdbox"], ["sdbox", "maildir"], ["mdbox", "sdbox"]];

fn location(directory: &Path, formats: Formats, at: usize) -> String {
    format!("{}:{}/{}", formats[at], directory.display(), ["main", "archive"][at])
}

fn account_with(directory: &Path, formats: Formats, choice: &Namespaces) -> Namespaced {
    let mut main = namespace("", location(directory, formats, 0));
    (main.inbox, main.usual) = (true, true);
    let archive = namespace("Archive/", location(directory, formats, 1));
    Namespaced::new(vec![main, archive], choice, Fsync::Never).unwrap()
}

fn account(directory: &Path, formats: Formats) -> Namespaced {
    account_with(directory, formats, &Namespaces::All)
}

fn prepared(formats: Formats) -> (tempfile::TempDir, Namespaced) {
    let directory = tempfile::tempdir().unwrap();
    let mut account = account(directory.path(), formats);
    create(&mut account, "Work", 1);
    fill(&mut account, 1, 5..8);
    (directory, account)
}

fn moved(account: &mut Namespaced) -> Result<bool> {
    rename(account, 1, "Work", "Archive/Old/Work")
}

fn steps_of(formats: Formats) -> u64 {
    let (_directory, mut account) = prepared(formats);
    let before = disk::crash_after(None);
    moved(&mut account).unwrap();
    let steps = disk::crash_after(None) - before;
    assert!(steps > 10, "{steps}");
    steps
}

/// An account whose move was killed after so many steps.
fn killed(formats: Formats, step: u64) -> tempfile::TempDir {
    let (directory, mut account) = prepared(formats);
    statuses(&mut account);
    disk::crash_after(Some(step));
    let outcome = moved(&mut account);
    disk::crash_after(None);
    drop((account, outcome));
    unlock(directory.path());
    directory
}

/// Removes the locks of a dead process, which are waited for until they are old enough.
fn unlock(directory: &Path) {
    for entry in fs::read_dir(directory).unwrap().flatten() {
        let path = entry.path();
        if entry.file_type().unwrap().is_dir() {
            unlock(&path);
        } else if path.extension().is_some_and(|end| end == "lock") {
            fs::remove_file(path).unwrap();
        }
    }
}

/// GUIDs of messages by their mailbox, but for INBOX.
fn messages(account: &mut Namespaced) -> BTreeMap<String, BTreeSet<String>> {
    let mut all = BTreeMap::new();
    for (mailbox, (guid, ..)) in statuses(account).into_iter().filter(|(name, _)| name != "INBOX") {
        let list = account.open(guid).unwrap().changes(Since::All).unwrap().list;
        let known = list.into_iter().filter_map(|change| match change {
            MessageChange::Save { guid, .. } => Some(guid.to_string()),
            _ => None,
        });
        all.insert(mailbox, known.collect());
    }
    all
}

/// The messages that the mailbox began with.
fn old() -> BTreeSet<String> {
    [5, 6, 7].map(|uid| format!("{uid:032x}")).into()
}

/// Does something to the mailbox in one of the namespaces, as another program does that knows nothing of us. `false`: there is none.
fn meanwhile(
    directory: &Path,
    formats: Formats,
    at: usize,
    change: impl FnOnce(&mut Namespaced, MailboxGuid, Uid) -> Result<()>,
) -> bool {
    let mut alone = namespace("", location(directory, formats, at));
    (alone.inbox, alone.usual) = (at == 0, true);
    let mut alone = Namespaced::new(vec![alone], &Namespaces::All, Fsync::Never).unwrap();
    let (tree, _) = alone.open[0].storage.tree().unwrap();
    let found = tree.get(&name(["Work", "Old/Work"][at])).and_then(|node| node.mailbox.clone());
    let Some(status) = found else { return false };
    alone.mailboxes.insert(status.guid, 0);
    // The directory of one that is half made, or half gone, takes nothing.
    change(&mut alone, status.guid, status.uid_next).is_ok()
}

fn flag_all(account: &mut Namespaced, guid: MailboxGuid, _: Uid) -> Result<()> {
    let mut mailbox = account.open(guid)?;
    let flags = || FlagSet::system(Flags::ANSWERED);
    let list = mailbox.changes(Since::All)?.list;
    let actions: Vec<_> = list
        .iter()
        .map(|change| MessageAction::Flags {
            uid: change.uid(),
            add: flags(),
            remove: FlagSet::default(),
            modseq_min: ModSeq::NONE,
        })
        .collect();
    mailbox.apply(&actions)?;
    let goal =
        Goal { uid_next_min: Uid::MIN, modseq_min: ModSeq::NONE, uid_validity: None, unfinished: false };
    mailbox.commit(goal).map(drop)
}

/// Exactly one mailbox is there and listed after the next run has looked, and the rename, if it is still wanted, can be made.
#[test]
fn a_move_that_is_killed_leaves_one_whole_mailbox() {
    for formats in FORMATS {
        let (mut undone, mut done) = (0, 0);
        for step in 0..steps_of(formats) {
            let directory = killed(formats, step);
            let mut next = account(directory.path(), formats);
            let found = statuses(&mut next);
            let what = format!("{formats:?} step {step}: {found:?}");
            assert_eq!(found.len(), 2, "INBOX and the mailbox: {what}");
            let (place, status) = found.iter().find(|(name, _)| *name != "INBOX").unwrap();
            assert_eq!((status.0, status.2.get()), (MailboxGuid([1; 16]), 8), "{what}");
            assert_eq!(messages(&mut next)[place], old(), "{what}");
            if place == "Work" {
                undone += 1;
                let (tree, _) = next.tree().unwrap();
                let names: Vec<_> = tree.keys().map(ToString::to_string).collect();
                assert_eq!(names, ["INBOX", "Work"], "nothing that was made for it: {what}");
                let before = *status;
                assert!(moved(&mut next).unwrap(), "{what}");
                let after = statuses(&mut next);
                assert_eq!(after.get("Archive/Old/Work"), Some(&before), "{what}");
                assert_eq!(after.len(), 2, "{what}");
            } else {
                done += 1;
            }
        }
        assert!(undone > 0 && done > 0, "{formats:?}: {undone} {done}");
    }
}

/// What comes to either of them until the next run is there afterwards, and so is all the rest. There are two only where both were changed.
#[test]
fn what_others_do_to_a_killed_move_is_kept() {
    for &formats in &FORMATS[..2] {
        let mut both_kept = 0;
        for step in 0..steps_of(formats) {
            // Each case meets every other step in one of the formats.
            for case in [["original", "copy"], ["both", "flags"]][(step % 2) as usize] {
                let directory = killed(formats, step);
                let mut expected = old();
                for end in (0..2).filter(|end| case == ["original", "copy"][*end] || case == "both") {
                    let message = format!("{:032x}", 0xdead_0000_u64 + end as u64);
                    let delivered = meanwhile(directory.path(), formats, end, |account, guid, uid_next| {
                        super::tests::save(&mut *account.open(guid)?, uid_next.get(), &message)
                    });
                    expected.extend(delivered.then_some(message));
                }
                if case == "flags" {
                    meanwhile(directory.path(), formats, 1, flag_all);
                }
                let mut next = account(directory.path(), formats);
                let found = messages(&mut next);
                let what = format!("{formats:?} step {step} {case}: {found:?}");
                let held: BTreeSet<String> = found.values().flatten().cloned().collect();
                assert_eq!(held, expected, "{what}");
                assert!(found.values().any(|mailbox| mailbox.is_superset(&old())), "one is whole: {what}");
                assert!(found.len() == 1 || (found.len() == 2 && case != "original"), "{what}");
                both_kept += u32::from(found.len() == 2);
                assert_eq!(messages(&mut next), found, "it is settled: {what}");
            }
        }
        assert!(both_kept > 0, "{formats:?}");
    }
}

/// A run that settles a move may be killed as well.
#[test]
fn a_run_that_settles_a_move_may_be_killed_too() {
    let formats = FORMATS[0];
    let steps = steps_of(formats);
    // From the copy's being whole on, and one of the time before.
    for first in (steps / 2..steps).step_by(3) {
        for second in 0.. {
            let directory = killed(formats, first);
            let mut next = account(directory.path(), formats);
            disk::crash_after(Some(second));
            let whole = next.tree().is_ok();
            disk::crash_after(None);
            drop(next);
            unlock(directory.path());
            let mut last = account(directory.path(), formats);
            let found = statuses(&mut last);
            assert_eq!(found.len(), 2, "{first} {second}: {found:?}");
            assert_eq!(messages(&mut last).values().map(BTreeSet::len).sum::<usize>(), 3, "{first} {second}");
            if whole {
                break;
            }
        }
    }
}

/// A run that may not write, and one that does not see where the mailbox was, take the copy for no mailbox, and leave it.
#[test]
fn an_unfinished_copy_is_no_mailbox_for_those_who_cannot_settle_it() {
    let formats = FORMATS[0];
    for step in 0..steps_of(formats) {
        let directory = killed(formats, step);
        let mut pretending = account(directory.path(), formats);
        let seen = {
            let _pretend = disk::Pretend::begin();
            let (tree, problems) = pretending.tree().unwrap();
            let mailboxes =
                tree.iter().filter(|(_, node)| node.mailbox.as_ref().is_some_and(|m| m.messages > 0));
            mailboxes.count() + problems.len()
        };
        assert_eq!(seen, 1, "step {step}");
        drop(pretending);
        let only = Namespaces::Only(vec!["Archive/".into()]);
        let mut archive = account_with(directory.path(), formats, &only);
        let (tree, problems) = archive.tree().unwrap();
        let listed = tree.values().filter_map(|node| node.mailbox.as_ref());
        let strange =
            listed.filter(|status| status.guid != MailboxGuid([1; 16]) && status.messages > 0).count();
        assert_eq!(strange, 0, "step {step}: {tree:?} {problems:?}");
        drop(archive);
        let mut next = account(directory.path(), formats);
        assert_eq!(statuses(&mut next).len(), 2, "step {step}");
    }
}

/// A file that holds the attributes of all namespaces has them still.
#[test]
fn attributes_in_one_file_stay_when_their_mailbox_moves() {
    let directory = tempfile::tempdir().unwrap();
    let dict = format!("file:{}/attributes", directory.path().display());
    let mut all = Vec::new();
    for (prefix, at) in [("", 0), ("Archive/", 1)] {
        let mut one = namespace(prefix, location(directory.path(), FORMATS[0], at));
        one.location = one.location.map(|location| location.with_attribute_dict(Some(dict.clone())));
        (one.inbox, one.usual) = (at == 0, true);
        all.push(one);
    }
    let mut account = Namespaced::new(all, &Namespaces::All, Fsync::Never).unwrap();
    create(&mut account, "Work", 1);
    let key = AttributeKey { key: "comment".into(), ..AttributeKey::first_of(MailboxGuid([1; 16])) };
    account.change_attributes(&[(key.clone(), Some(b"mine".to_vec()))].into()).unwrap();
    assert!(moved(&mut account).unwrap());
    assert_eq!(account.attributes().unwrap().unwrap().into_keys().collect::<Vec<_>>(), [key]);
    assert_eq!(statuses(&mut account)["Archive/Old/Work"].3, Digest::default());
}
