//! The order in which a Dovecot gets what it asked for.

use std::fs;

use dsync_tests::dovecot::installed;
use dsync_tests::interop::World;
use dsync_tests::peers::Ends;

/// A Dovecot asks in the order of a hash table; it commits after each hundred messages only if they come by their UIDs.
#[test]
fn a_dovecot_gets_messages_by_ascending_uid_whatever_the_order_it_asks_in() {
    if !installed() {
        return;
    }
    let world = World::new();
    let (a, b) = (world.location("mdbox", "a"), world.location("mdbox", "b"));
    for number in 0..40 {
        world.dovecot.save(&b, "INBOX", &format!("Subject: {number}\n\n{number}\n"));
    }
    let raw = world.path("raw");
    world.session(Ends::DovecotCalls, &["backup", "-R", "-r", &raw.display().to_string()], &a, &b, &[0]);
    let raw = fs::read_to_string(raw).expect("read");
    // `SECONDS O: LINE` of what the Dovecot says, `I: ` of what it hears.
    let told = |tag: &str| -> Vec<String> {
        let lines = raw.lines().filter_map(|line| line.split_once(' ')?.1.strip_prefix(tag));
        lines.map(|line| line.split('\t').next().unwrap_or_default().to_owned()).collect()
    };
    let uids = |guids: Vec<String>| -> Vec<usize> {
        let listed = raw.lines().filter_map(|line| line.split_once(' ')?.1.strip_prefix("I: Cs\t"));
        let listed: Vec<&str> = listed.filter_map(|line| line.split('\t').nth(1)).collect();
        guids.iter().filter_map(|guid| listed.iter().position(|known| known == guid)).collect()
    };
    let (asked, sent) = (uids(told("O: R")), uids(told("I: M")));
    assert_eq!((asked.len(), sent.len()), (40, 40), "{raw}");
    assert!(!asked.is_sorted(), "asked in order: this shows nothing");
    assert!(sent.is_sorted(), "{sent:?}");
}
