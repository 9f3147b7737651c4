//! What fails in one mailbox of our end, and what is cut off: nothing is lost at either end, and the next run brings the rest.

use dsync_tests::dovecot::installed;
use dsync_tests::interop::World;
use dsync_tests::peers::Ends;

/// A Dovecot that is cut off keeps what has come. What it has not got, below that, would count as expunged in the next run.
#[test]
fn a_dovecot_that_is_cut_off_gets_the_rest_in_the_next_run() {
    if !installed() {
        return;
    }
    for ends in [Ends::WeCall, Ends::DovecotCalls] {
        let world = World::new();
        let (a, b) = (world.location("sdbox", "a"), world.location("sdbox", "b"));
        let ours = if ends == Ends::WeCall { &a } else { &b };
        for number in 0..30 {
            world.dovecot.save(ours, "INBOX", &format!("Subject: {number}\n\n{number:0900}\n"));
        }
        let all = world.messages(ours);
        // About a third of all bodies arrives.
        let (code, text) = world.cut_off(ends, &["sync"], &a, &b, 16_000);
        assert_ne!(code, 0, "{ends:?}: {text}");
        let theirs = if ends == Ends::WeCall { &b } else { &a };
        let arrived = world.messages(theirs).lines().count();
        assert!((2..30).contains(&arrived), "{ends:?}: {arrived} have arrived: this shows nothing: {text}");
        world.session(ends, &["sync"], &a, &b, &[0]);
        assert_eq!(world.messages(&a), all, "{ends:?}");
        assert_eq!(world.messages(&b), all, "{ends:?}");
    }
}
