//! Names that hold no mail: what one end removed of them goes at the other.

use std::fs;

use dsync_tests::dovecot::installed;
use dsync_tests::interop::{ALL, World};
use dsync_tests::peers::Ends;

/// The directories of an account of which `root` holds the mailboxes.
fn directories(world: &World, root: &str) -> String {
    let there = |name: &&str| fs::metadata(world.path(root).join(name)).is_ok_and(|meta| meta.is_dir());
    ["Keep", "Left", "Top", "Top/Sub"].into_iter().filter(there).collect::<Vec<_>>().join(" ")
}

#[test]
fn a_directory_that_one_end_removed_goes_at_the_other() {
    if !installed() {
        return;
    }
    for (format, suffix, below, separator) in
        [("mdbox", "", "mailboxes", '/'), ("maildir", ":LAYOUT=fs", "", '/'), ("sdbox", "", "mailboxes", '.')]
    {
        for ends in ALL {
            let world = World::with_separator(separator);
            let place = |name: &str| world.location(format, name) + suffix;
            let (a, b) = (place("a"), place("b"));
            let end = |end: &str| directories(&world, &format!("{end}/{below}"));
            let sync = |expected: &str, what: &str| {
                world.session(ends, &["sync"], &a, &b, &[0]);
                let seen = ["a", "b"].map(end);
                assert_eq!(seen, [expected, expected], "{ends:?} {format} {separator}: {what}");
            };
            let name = |name: &str| name.replace('/', &separator.to_string());
            world.dovecot.save(&a, "INBOX", "Subject: x\n\nx\n");
            world.session(Ends::Dovecots, &["backup"], &a, &b, &[0]);
            world.doveadm(&a, &name("mailbox|create|Keep/|Top/|Top/Sub/"));
            world.doveadm(&b, &name("mailbox|create|Left/"));
            sync("Keep Left Top Top/Sub", "made");
            // Dovecot logs what it removes with the separator of the files, and does not find it itself where names are spelled otherwise; we do, at our end.
            let found_at = |ours: Ends| separator == '/' || ends == ours;
            let (removed, stays) = if found_at(Ends::WeCall) {
                ("mailbox|delete|Top/Sub|Left", "Keep Top")
            } else {
                ("mailbox|delete|Left", "Keep Top Top/Sub")
            };
            world.doveadm(&a, &name(removed));
            assert_eq!(end("a"), stays);
            sync(stays, "removed at a");
            let (removed, stays) = match (separator, ends) {
                ('.', Ends::DovecotCalls) => ("mailbox|delete|Top/Sub|Keep", "Top"),
                _ => ("mailbox|delete|Keep", stays.trim_start_matches("Keep ")),
            };
            world.doveadm(&b, &name(removed));
            sync(stays, "removed at b");
            sync(stays, "again");
        }
    }
}
