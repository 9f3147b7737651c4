//! A source looks into the next mailbox while the other end is busy: that saves time, and changes nothing else.

use std::collections::VecDeque;
use std::io::Read as _;
use std::time::Duration;

use dsync_model::{FlagSet, MailboxGuid, MailboxName, MessageGuid, StoreId, Timestamp, Uid, UidValidity};
use dsync_proto::dovecot::codec::Event;
use dsync_proto::{Direction, Options, Terminus};
use dsync_session::Job;
use dsync_session::dovecot::{Brain, Output};
use dsync_storage::memory::{MemoryStorage, StoredMailbox, StoredMessage};

const MESSAGES: u32 = 200;
const MAILBOXES: [&str; 3] = ["INBOX", "Work", "Zoo"];

fn message(text: &str) -> StoredMessage {
    StoredMessage {
        guid: MessageGuid::new(text).expect("a GUID"),
        flags: FlagSet::default(),
        received: Some(Timestamp(1_780_000_000)),
        body: format!("Subject: {text}\r\n\r\n{text}\r\n").into_bytes().into(),
    }
}

fn account(number: u8, messages: u32) -> MemoryStorage {
    let validity = UidValidity::new(7).expect("is none");
    let storage = MemoryStorage::new(StoreId([number; 16]), MailboxGuid([1; 16]), validity);
    for (place, name) in MAILBOXES.into_iter().enumerate().filter(|_| messages > 0) {
        let mut mailbox = StoredMailbox::new(MailboxGuid([place as u8 + 1; 16]), validity);
        for number in 0..messages {
            mailbox.deliver(message(&format!("{name}-{number}"))).expect("there are UIDs");
        }
        let name = MailboxName::new(&[name]).expect("a name");
        storage.account().mailboxes.insert(name, mailbox);
    }
    storage
}

/// What an end has still to hear.
type Inbox = VecDeque<Event>;

/// Works until there is nothing more to do. Says whether the session is over.
fn work(brain: &mut Brain, inbox: &mut Inbox, peer: &mut Inbox) -> bool {
    loop {
        if brain.is_hungry()
            && let Some(event) = inbox.pop_front()
        {
            brain.handle(event).expect("understood");
        }
        match brain.poll().expect("no error") {
            Output::Item(item) => peer.push_back(Event::Item(item)),
            Output::Body(mut body) => {
                let mut bytes = Vec::new();
                body.reader.read_to_end(&mut bytes).expect("in memory");
                peer.extend([Event::Body(bytes[..].into()), Event::BodyEnd]);
            }
            Output::Working => {}
            Output::Idle if inbox.is_empty() => return false,
            Output::Idle => {}
            Output::Done(_) => return true,
        }
    }
}

/// A whole `backup` of `from` into `into`. `idle` is called with the source whenever it has nothing to do.
fn backup(from: &MemoryStorage, into: &MemoryStorage, calls: bool, idle: &mut dyn FnMut(&mut Brain)) {
    let terminus = if calls { Terminus::Responder } else { Terminus::Initiator };
    let job = Job { direction: Direction::Mirror { into: terminus }, options: Options::default() };
    let (caller, called) = if calls { (from, into) } else { (into, from) };
    let mut brains = [
        Brain::master(Box::new(caller.clone()), job, None, "caller"),
        Brain::slave(Box::new(called.clone()), Duration::ZERO, "called"),
    ];
    let mut inboxes = [Inbox::from([Event::Version(5)]), Inbox::from([Event::Version(5)])];
    let mut over = [false, false];
    for _ in 0..1_000 {
        for end in [0, 1] {
            let [master, slave] = &mut inboxes;
            let (inbox, peer) = if end == 0 { (master, slave) } else { (slave, master) };
            over[end] = over[end] || work(&mut brains[end], inbox, peer);
            if (end == 0) == calls {
                idle(&mut brains[end]);
            }
        }
        if over == [true, true] {
            return;
        }
        if brains[0].waits_for_peer() {
            brains[0].go_first();
        }
    }
    panic!("no end");
}

#[test]
fn what_changes_after_a_source_looked_ahead_is_told_as_it_is_in_its_turn() {
    for calls in [true, false] {
        let (from, into) = (account(1, MESSAGES), account(2, 0));
        let mut looked = 0;
        backup(&from, &into, calls, &mut |brain| {
            let before = from.account().calls;
            while brain.can_look_ahead() {
                brain.look_ahead();
            }
            let calls = from.account().calls - before;
            if calls == 0 {
                return;
            }
            assert!(calls >= u64::from(MESSAGES), "{calls}: not all messages were looked at");
            looked += 1;
            // Users go on with all mailboxes meanwhile; those that are done already will have the rest in the next run.
            for (name, mailbox) in &mut from.account().mailboxes {
                mailbox.messages.remove(&Uid::new(looked).expect("a UID"));
                mailbox.deliver(message(&format!("{name}-late-{looked}"))).expect("there are UIDs");
            }
        });
        assert!(looked >= 2, "looked ahead {looked} times");
        let same = |place: usize| {
            let [one, other] = [&from, &into].map(|storage| {
                let account = storage.account();
                let mailbox = account.mailboxes.values().nth(place).expect("is at both ends");
                (mailbox.uid_next, mailbox.messages.clone())
            });
            one == other
        };
        // The last one had its turn after all that was done to it.
        assert!(same(2) && !same(0), "we call: {calls}");
        backup(&from, &into, calls, &mut |_| {});
        assert!((0..3).all(same), "we call: {calls}");
    }
}
