//! mdbox: Dovecot's accounts are read, ours are read by Dovecot, and no crash loses or doubles a message.

use std::path::Path;

use dsync_storage::dbox::Mdbox;
use dsync_storage::layout::{Format, Kind, Layout};
use dsync_storage::{Fsync, Storage};
use dsync_tests::formats::{Fixture, compare, touched};

fn open(fixture: &Fixture, change: impl Fn(&mut Layout)) -> Box<dyn Storage> {
    let mut layout = Layout::new(Format::Mdbox, fixture.home().join("mdbox"));
    change(&mut layout);
    let attachments = Some(fixture.home().join("att"));
    Box::new(Mdbox::open(layout, Fsync::Never, attachments).expect("opens"))
}

fn is_note(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(".dsync-"))
}

/// Opens the account twice: reading leaves no trace, and the second look is like the first.
fn check(name: &str, change: impl Fn(&Fixture, &mut Layout)) {
    let fixture = Fixture::unpack(name);
    let before = fixture.files();
    for look in ["first", "second"] {
        let mut storage = open(&fixture, |layout| change(&fixture, layout));
        let differences = compare(&mut *storage, &fixture.expected);
        assert!(differences.is_empty(), "{name}, {look} look:\n{}", differences.join("\n"));
    }
    let touched = touched(&before, &fixture.files());
    let touched: Vec<_> = touched.into_iter().filter(|path| !is_note(path)).collect();
    assert!(touched.is_empty(), "{name}: reading changed {touched:?}");
}

#[test]
fn accounts_of_dovecot_are_read_as_dovecot_reads_them() {
    check("mdbox", |_, _| {});
    check("mdbox-att", |fixture, layout| layout.alt = Some(fixture.home().join("alt")));
    check("mdbox-layoutindex", |_, layout| layout.kind = Kind::Index);
}
