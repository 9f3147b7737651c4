use dsync_model::{MailboxGuid, MailboxName};

use super::nodes::Nodes;
use super::*;
use crate::index::{Extension, Transaction};
use crate::layout::Format;

const A: MailboxGuid = MailboxGuid([0xaa; 16]);
const B: MailboxGuid = MailboxGuid([0xbb; 16]);

fn parts(name: &str) -> Vec<String> {
    name.split('/').map(str::to_owned).collect()
}

/// A list index on the disk, made by a transaction.
struct OnDisk {
    _dir: tempfile::TempDir,
    layout: Layout,
    list: ListIndex,
}

impl OnDisk {
    fn new(kind: Kind) -> OnDisk {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout { kind, ..Layout::new(Format::Sdbox, dir.path()) };
        OnDisk { _dir: dir, layout, list: ListIndex::default() }
    }

    fn paths(&self) -> Paths {
        paths(&self.layout.list_index_file().unwrap())
    }

    fn change(&self, make: impl FnOnce(&mut Nodes)) {
        let done = self.list.change(&self.layout, Fsync::Never, false, |nodes| {
            make(nodes);
            Ok(())
        });
        done.unwrap();
        // What we remember is what is there.
        let (remembered, there) = (self.remembered(), self.read());
        assert_eq!(remembered, there);
    }

    fn remembered(&self) -> Vec<String> {
        self.list.look(&self.layout, shown).unwrap().unwrap()
    }

    fn state(&self) -> Index {
        Index::open(self.paths()).unwrap().unwrap()
    }

    fn read(&self) -> Vec<String> {
        shown(&Nodes::of(self.state().state()))
    }
}

/// `A/B aaaa… 7`, or the name alone where it is of no mailbox.
fn shown(nodes: &Nodes) -> Vec<String> {
    let broken = nodes.broken().map(|uid| format!("broken {uid}"));
    let all = nodes.all().map(|(_, parts, node)| match node.mailbox() {
        Some(guid) => format!("{} {} {}", parts.join("/"), &guid.to_string()[..2], node.validity),
        None => parts.join("/"),
    });
    all.chain(broken).collect()
}

#[test]
fn mailboxes_come_go_and_get_other_names() {
    let disk = OnDisk::new(Kind::Index);
    disk.change(|nodes| nodes.set_mailbox(&parts("A/B"), A, 7));
    assert_eq!(disk.read(), ["A", "A/B aa 7"]);
    disk.change(|nodes| nodes.set_mailbox(&parts("A"), B, 8));
    assert_eq!(disk.read(), ["A bb 8", "A/B aa 7"]);
    // What is below stays where it is.
    disk.change(|nodes| nodes.rename(&parts("A"), &parts("C/D")));
    assert_eq!(disk.read(), ["A", "A/B aa 7", "C", "C/D bb 8"]);
    let uids = disk.state().state().uids.clone();
    disk.change(|nodes| nodes.rename(&parts("C/D"), &parts("E")));
    assert_eq!(disk.read(), ["A", "A/B aa 7", "C", "E bb 8"]);
    assert_eq!(disk.state().state().uids, uids, "the node stays what it is");
    disk.change(|nodes| nodes.rename(&parts("E"), &parts("E/below itself")));
    assert_eq!(disk.read(), ["A", "A/B aa 7", "C", "E", "E/below itself bb 8"]);
    disk.change(|nodes| nodes.rename(&parts("A/B"), &parts("E")));
    assert_eq!(disk.read(), ["A", "C", "E aa 7", "E/below itself bb 8"]);
    disk.change(|nodes| nodes.remove_mailbox(&parts("E")));
    assert_eq!(disk.read(), ["A", "C", "E", "E/below itself bb 8"]);
    disk.change(|nodes| nodes.remove_mailbox(&parts("E/below itself")));
    for (name, left) in [("A", &["C", "E"][..]), ("C", &["E"]), ("E", &[])] {
        disk.change(|nodes| nodes.remove_directory(&parts(name)));
        assert_eq!(disk.read(), left);
    }
}

#[test]
fn a_directory_is_made_and_a_mailbox_is_none() {
    let disk = OnDisk::new(Kind::Index);
    disk.change(|nodes| nodes.set_mailbox(&parts("A/B"), A, 7));
    disk.change(|nodes| nodes.set_directory(&parts("A")));
    disk.change(|nodes| nodes.set_directory(&parts("A/B")));
    disk.change(|nodes| nodes.remove_directory(&parts("A")));
    disk.change(|nodes| nodes.remove_directory(&parts("A/B")));
    assert_eq!(disk.read(), ["A", "A/B aa 7"]);
    assert_eq!(disk.state().state().flags, [0x10, 0], "\\Noselect, and a mailbox");
}

#[test]
fn many_names_and_a_header_that_grows() {
    let disk = OnDisk::new(Kind::Index);
    let name = |n: u32| format!("a name of thirty letters, number {n}");
    // More than one update of 64 KiB can tell.
    let count = 3000;
    disk.change(|nodes| (0..count).for_each(|n| nodes.set_mailbox(&parts(&name(n)), guid(n), n + 1)));
    for n in 0..50 {
        disk.list
            .change(&disk.layout, Fsync::Never, false, |nodes| {
                nodes.rename(&parts(&name(n)), &[format!("other {n}")]);
                nodes.set_mailbox(&parts(&name(count + n)), guid(count + n), 1);
                Ok(())
            })
            .unwrap();
    }
    let there = disk.read();
    assert_eq!(disk.remembered(), there);
    assert_eq!(there.len(), count as usize + 50);
    assert!(there.iter().any(|line| line.starts_with("other 49 ")), "{there:?}");
    let index = disk.state();
    let header = &index.state().extension("list").unwrap().header;
    assert!(header.len() > 1 << 16 && header.len() < 1 << 19, "{}", header.len());
}

fn guid(n: u32) -> MailboxGuid {
    let mut guid = [1; 16];
    guid[..4].copy_from_slice(&n.to_le_bytes());
    MailboxGuid(guid)
}

#[test]
fn what_others_wrote_meanwhile_is_seen() {
    let disk = OnDisk::new(Kind::Index);
    disk.change(|nodes| nodes.set_mailbox(&parts("A"), A, 7));
    let other = ListIndex::default();
    let made = other.change(&disk.layout, Fsync::Never, false, |nodes| {
        nodes.set_mailbox(&parts("B"), B, 8);
        Ok(())
    });
    made.unwrap();
    assert_eq!(disk.remembered(), ["A aa 7", "B bb 8"]);
    disk.change(|nodes| nodes.remove_mailbox(&parts("A")));
    let failed = disk.list.change(&disk.layout, Fsync::Never, false, |nodes| {
        nodes.remove_mailbox(&parts("B"));
        Err(StorageError::Impossible("no".into()))
    });
    failed.unwrap_err();
    assert_eq!(disk.remembered(), ["B bb 8"], "what failed is not remembered");
}

#[test]
fn broken_nodes_are_told_and_stay() {
    let disk = OnDisk::new(Kind::Index);
    disk.change(|nodes| {
        nodes.set_mailbox(&parts("A/B/C"), A, 7);
        nodes.set_mailbox(&parts("D"), B, 8);
    });
    let mut index = disk.state();
    let list = index.state().extension("list").unwrap().clone();
    let mut log = Transaction::new();
    log.introduce(index.state().extension_id("list"), &list);
    // A below C, which is below A: a loop. And a D beside D.
    let mut record = list.row(0).to_vec();
    record[4..8].copy_from_slice(&3u32.to_le_bytes());
    log.ext_records([(1, &*record)]);
    log.append(&[(9, 0)]);
    log.introduce(index.state().extension_id("list"), &list);
    log.ext_records([(9, list.row(3))]);
    index.lock(patience()).unwrap().append(log, Fsync::Never).unwrap();
    assert_eq!(disk.remembered(), ["D bb 8", "broken 1", "broken 2", "broken 3", "broken 9"]);
    disk.change(|nodes| nodes.set_mailbox(&parts("E"), A, 9));
    assert_eq!(disk.read(), ["D bb 8", "E aa 9", "broken 1", "broken 2", "broken 3", "broken 9"]);
}

/// A list index as Dovecot has it for other layouts: with numbers of the mailboxes, and what their files looked like then.
fn with_numbers() -> OnDisk {
    let disk = OnDisk::new(Kind::Fs);
    let state = State::empty(1, 1);
    let mut nodes = Nodes::of(&state);
    for (name, guid) in [("A", A), ("A/B", B), ("C", guid(3))] {
        nodes.set_mailbox(&parts(name), guid, 7);
    }
    let mut first = nodes.transaction(&state, false);
    let seen = Extension::new("index sync", 0, 8, 4);
    first.introduce(None, &seen);
    first.ext_records((1..=3).map(|uid| (uid, &[9; 8][..])));
    Index::create(disk.paths(), 1, nodes.next_uid(), first).unwrap();
    disk
}

fn forget(disk: &OnDisk, names: &[&str]) -> Vec<Vec<u8>> {
    let names: Vec<MailboxName> = names.iter().map(|name| MailboxName::parse(name, '/').unwrap()).collect();
    disk.list.forget(&disk.layout, &names.iter().collect::<Vec<_>>(), &[], Fsync::Never).unwrap();
    let index = disk.state();
    let seen = index.state().extension("index sync").unwrap();
    (0..3).map(|row| seen.row(row).to_vec()).collect()
}

fn is_bidden(disk: &OnDisk) -> bool {
    disk.state().state().extension("list").unwrap().header.first() == Some(&1)
}

#[test]
fn what_is_forgotten_of_a_name_and_what_is_not() {
    let disk = with_numbers();
    assert!(!is_bidden(&disk));
    let seen = forget(&disk, &["A/B", "not listed yet"]);
    assert_eq!(seen, [vec![9; 8], vec![0; 8], vec![9; 8]]);
    assert_eq!(disk.read(), ["A aa 7", "A/B", "C 03 7"], "names stay: Dovecot looks at the disk itself");
    assert!(is_bidden(&disk), "and is told to");
    let index = disk.state();
    assert!(index.state().extension("list").unwrap().header[1..].starts_with(b"\x01\0\0\0A\0\x02"));
}

#[test]
fn what_is_gone_is_told_to_be_no_mailbox() {
    let disk = with_numbers();
    let (gone, below) = (MailboxName::parse("A", '/').unwrap(), MailboxName::parse("A/B", '/').unwrap());
    disk.list.forget(&disk.layout, &[&below], &[&gone], Fsync::Never).unwrap();
    assert_eq!(disk.state().state().flags, [0x04, 0, 0], "\\NonExistent, and what Dovecot looks at itself");
    assert!(is_bidden(&disk));
}

#[test]
fn what_was_forgotten_once_is_not_written_again() {
    let disk = with_numbers();
    forget(&disk, &["A"]);
    let end = disk.state().position();
    forget(&disk, &["A"]);
    assert_eq!(disk.state().position(), end);
    forget(&disk, &["C"]);
    assert_ne!(disk.state().position(), end);
}

#[test]
fn where_dovecot_has_no_list_nothing_is_forgotten_and_none_is_made() {
    let disk = OnDisk::new(Kind::Fs);
    disk.list.forget(&disk.layout, &[&MailboxName::inbox()], &[], Fsync::Never).unwrap();
    assert!(!disk.paths().log().exists());
    Index::create(disk.paths(), 1, 1, Transaction::new()).unwrap();
    let end = disk.state().position();
    disk.list.forget(&disk.layout, &[&MailboxName::inbox()], &[], Fsync::Never).unwrap();
    assert_eq!(disk.state().position(), end, "it has listed nothing yet");
}

#[test]
fn a_list_of_other_layouts_is_not_made_and_one_that_is_broken_is_put_aside() {
    let disk = OnDisk::new(Kind::Index);
    disk.change(|nodes| nodes.set_mailbox(&parts("A"), A, 7));
    let log = disk.paths().log();
    std::fs::write(&log, "no log").unwrap();
    let again = ListIndex::default();
    assert_eq!(again.look(&disk.layout, shown).unwrap().unwrap(), Vec::<String>::new());
    assert_eq!(std::fs::read(log.with_file_name("dovecot.list.index.log.broken")).unwrap(), b"no log");
}

#[test]
fn numbers_at_their_limits_are_damage() {
    let disk = OnDisk::new(Kind::Index);
    disk.change(|nodes| nodes.set_mailbox(&parts("A"), A, 7));
    let mut limits = Transaction::new();
    limits.header(28, &u32::MAX.to_le_bytes());
    let mut index = disk.state();
    index.lock(patience()).unwrap().append(limits, Fsync::Never).unwrap();
    let made = disk.list.change(&disk.layout, Fsync::Never, false, |nodes| {
        nodes.set_mailbox(&parts("B"), B, 7);
        Ok(())
    });
    assert!(matches!(made, Err(StorageError::Corrupt { .. })));
    assert_eq!(disk.read(), ["A aa 7"]);
}
