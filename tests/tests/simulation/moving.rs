//! Mail that one end moves, and the other flags, at any step of a session.

use std::time::Duration;

use dsync_model::{FlagSet, Flags, MailboxGuid, MailboxName, MessageGuid, UidValidity};
use dsync_session::proto::{Direction, Options};
use dsync_session::storage::memory::{StoredMailbox, StoredMessage};
use dsync_session::{Brain, Job, local};
use dsync_tests::world::{Faults, World};

#[test]
fn a_flag_finds_what_is_moved_meanwhile() {
    let [calm, work] = ["Calm", "Work"].map(|name| MailboxName::parse(name, '/').expect("valid"));
    let inbox = MailboxName::inbox();
    let guid = |text: &str| MessageGuid::new(text).expect("valid");
    let deliver = |world: &World, name: &MailboxName, text: &str| {
        let body = format!("Message-ID: {text}\n\n").into_bytes().into();
        let message = StoredMessage { guid: guid(text), flags: FlagSet::default(), received: None, body };
        let mut account = world.ends[0].account();
        account.mailboxes.get_mut(name).and_then(|mailbox| mailbox.deliver(message)).expect("delivered");
    };
    let mut lost = Vec::new();
    for step in 0.. {
        let mut world = World::new(1);
        world.ends.iter().for_each(|end| {
            let mut account = end.account();
            account.mailboxes.values_mut().for_each(|mailbox| mailbox.messages.clear());
        });
        for (name, byte) in [(&calm, 0x44), (&work, 0x45)] {
            let mailbox = StoredMailbox::new(MailboxGuid([byte; 16]), UidValidity::new(7).expect("above 0"));
            world.ends[0].account().mailboxes.insert(name.clone(), mailbox);
        }
        deliver(&world, &inbox, "moved");
        assert_eq!(world.sync(Direction::TwoWay, Faults::default()).expect("ends"), 0);
        for name in [&calm, &inbox, &work] {
            deliver(&world, name, &format!("new-{name}"));
        }
        let act = || {
            let mut there = world.ends[1].account();
            let from = there.mailboxes.get_mut(&inbox).expect("is there");
            let uid = *from.messages.iter().find(|(_, message)| message.guid == guid("moved"))?.0;
            let message = from.messages.remove(&uid)?;
            there.mailboxes.get_mut(&work)?.deliver(message)?;
            let mut here = world.ends[0].account();
            let messages = here.mailboxes.get_mut(&inbox)?.messages.values_mut();
            messages.into_iter().find(|message| message.guid == guid("moved"))?.flags =
                FlagSet::system(Flags::FLAGGED);
            Some(())
        };
        let job = Job { direction: Direction::TwoWay, options: Options::default() };
        let mut a = Brain::initiator(Box::new(world.ends[0].clone()), job);
        let mut b = Brain::responder(Box::new(world.ends[1].clone()), Duration::ZERO);
        let (mut steps, mut acted) = (0, None);
        let reports = local::run(&mut a, &mut b, &mut |_| {
            if steps == step {
                acted = Some(act().is_some());
            }
            steps += 1;
            true
        });
        reports.expect("ends");
        let Some(acted) = acted else { break };
        assert!(acted);
        for _ in 0..2 {
            if world.sync(Direction::TwoWay, Faults::default()).expect("ends") == 0 {
                break;
            }
        }
        let flags = world.ends.each_ref().map(|end| {
            let account = end.account();
            let flags_in = |name: &MailboxName| {
                let messages = account.mailboxes[name].messages.values();
                let flags = messages.filter(|message| message.guid == guid("moved"));
                flags.map(|message| message.flags.system).collect::<Vec<_>>()
            };
            assert!(flags_in(&inbox).is_empty(), "step {step}");
            let [flags] = flags_in(&work)[..] else { panic!("step {step}: it is there once") };
            flags
        });
        assert_eq!(flags[0], flags[1], "step {step}");
        if flags[0] != Flags::FLAGGED {
            lost.push(step);
        }
    }
    assert!(lost.is_empty(), "{lost:?}");
}
