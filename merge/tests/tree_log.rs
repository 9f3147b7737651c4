//! What the log of one end tells of mailboxes that are gone there, where no base does.

use dsync_merge::{Both, Direction, End, TreePlan, tree};
use dsync_model::{
    Digest, MailboxGuid, MailboxName, MailboxNode, MailboxStatus, MailboxTree, ModSeq, NameHash, NameRules,
    Timestamp, TreeChange, TreeLog, Uid, UidValidity,
};

const GUID: MailboxGuid = MailboxGuid([7; 16]);

fn name(text: &str) -> MailboxName {
    MailboxName::parse(text, '/').expect("a name")
}

fn mailbox(guid: MailboxGuid, changed: i64) -> MailboxNode {
    let status = MailboxStatus {
        guid,
        uid_validity: UidValidity::new(9).expect("not 0"),
        uid_next: Uid::new(3).expect("not 0"),
        messages: 2,
        highest_modseq: ModSeq::NONE,
        digest: Digest::default(),
    };
    MailboxNode { mailbox: Some(status), changed: Some(Timestamp(changed)), ..MailboxNode::default() }
}

/// The initiator deleted `Work` at 100; the responder has it, last changed then. Gives the responder's plan and the initiator's.
fn plans(changed: i64, direction: Direction) -> [TreePlan; 2] {
    let (left, right) = (MailboxTree::new(), MailboxTree::from([(name("Work"), mailbox(GUID, changed))]));
    let log = TreeLog { separator: '/', deleted: [(GUID, Timestamp(100))].into(), ..TreeLog::default() };
    let any = NameRules::default();
    let plan = |end| {
        tree(
            Both([&left, &right]),
            Both([&log, &TreeLog::default()]),
            Both([&any, &any]),
            None,
            direction,
            &|_| true,
            end,
        )
    };
    [plan(End::Responder), plan(End::Initiator)]
}

#[test]
fn what_was_deleted_there_and_left_alone_here_goes() {
    for direction in [Direction::TwoWay, Direction::OneWay { into: End::Responder }] {
        let [here, there] = plans(99, direction);
        assert!(matches!(&here.deletes[..], [TreeChange::Delete { guid: GUID, .. }]), "{here:?}");
        assert!(there.changes.is_empty() && here.pairs.is_empty(), "{there:?}");
    }
}

#[test]
fn what_changed_since_comes_back_and_is_told() {
    for changed in [100, 101] {
        let [here, there] = plans(changed, Direction::TwoWay);
        assert!(here.deletes.is_empty(), "{here:?}");
        assert!(matches!(&there.changes[..], [TreeChange::Create { guid: GUID, .. }]), "{there:?}");
        assert_eq!(there.revived, [name("Work")]);
    }
}

#[test]
fn a_source_loses_nothing_for_what_the_destination_deleted() {
    let [here, there] = plans(99, Direction::OneWay { into: End::Initiator });
    assert!(here.deletes.is_empty() && here.changes.is_empty(), "{here:?}");
    assert!(there.deletes.is_empty(), "{there:?}");
}

#[test]
fn an_unsubscription_counts_by_the_hash_of_the_name_and_its_time() {
    let node =
        MailboxNode { subscribed: true, subscription_changed: Some(Timestamp(50)), ..MailboxNode::default() };
    let (left, right) = (MailboxTree::new(), MailboxTree::from([(name("A/B"), node)]));
    let any = NameRules::default();
    for (at, goes) in [(49, false), (50, false), (51, true)] {
        let unsubscribed = [(NameHash::of(&name("A/B"), '.'), Timestamp(at))].into();
        let log = TreeLog { separator: '.', unsubscribed, ..TreeLog::default() };
        let logs = Both([&log, &TreeLog::default()]);
        let plan = tree(
            Both([&left, &right]),
            logs,
            Both([&any, &any]),
            None,
            Direction::TwoWay,
            &|_| true,
            End::Responder,
        );
        let unsubscribes = plan.changes.iter().any(|change| matches!(change, TreeChange::Unsubscribe { .. }));
        assert_eq!(unsubscribes, goes, "{at}");
    }
}
