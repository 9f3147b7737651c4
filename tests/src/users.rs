//! What users do to an account of any format, through its storage, while nobody synchronises it.

use dsync_model::{
    FlagSet, Flags, Keyword, MailboxGuid, MailboxName, MailboxStatus, MessageAction, MessageChange,
    MessageGuid, ModSeq, NewMessage, Since, Timestamp, TreeChange, UidValidity,
};
use dsync_storage::{Goal, Mailbox, Storage};
use sha2::{Digest, Sha256};

/// A user at work in one account.
pub struct User {
    storage: Box<dyn Storage>,
}

impl User {
    pub fn of(storage: Box<dyn Storage>) -> User {
        User { storage }
    }

    fn status(&mut self, mailbox: &str) -> Option<MailboxStatus> {
        let (tree, problems) = self.storage.tree().expect("lists");
        assert!(problems.is_empty(), "{problems:?}");
        tree.get(&name(mailbox))?.mailbox.clone()
    }

    fn open(&mut self, mailbox: &str) -> (Box<dyn Mailbox>, MailboxStatus) {
        if self.status(mailbox).is_none() {
            self.create(mailbox);
        }
        let status = self.status(mailbox).expect("was made");
        let mut mailbox = self.storage.open(status.guid).expect("opens");
        mailbox.changes(Since::All).expect("lists");
        (mailbox, status)
    }

    /// Makes an empty mailbox, the same wherever it is made.
    pub fn create(&mut self, mailbox: &str) {
        let sum = Sha256::digest(mailbox);
        let mut guid = [0; 16];
        guid.copy_from_slice(&sum[..16]);
        self.change(&TreeChange::Create {
            name: name(mailbox),
            guid: MailboxGuid(guid),
            uid_validity: UidValidity::new(1_700_000_000).expect("not 0"),
            uid_next: dsync_model::Uid::MIN,
        });
    }

    pub fn rename(&mut self, from: &str, to: &str) {
        let guid = self.status(from).expect("is there").guid;
        self.change(&TreeChange::Rename { guid, from: name(from), to: name(to) });
    }

    pub fn delete(&mut self, mailbox: &str) {
        let MailboxStatus { guid, uid_next, .. } = self.status(mailbox).expect("is there");
        self.change(&TreeChange::Delete { name: name(mailbox), guid, uid_next });
    }

    fn change(&mut self, change: &TreeChange) {
        assert!(self.storage.change_tree(change).expect("is made"), "{change:?}");
    }

    /// Saves a message with this subject, which also names it; the mailbox is made if it is missing.
    pub fn save(&mut self, mailbox: &str, subject: &str, flags: FlagSet) {
        let (mut mailbox, status) = self.open(mailbox);
        let sum = Sha256::digest(subject);
        let guid: String = sum[..16].iter().map(|byte| format!("{byte:02x}")).collect();
        let message = NewMessage {
            uid: status.uid_next,
            guid: MessageGuid::new(&guid).expect("valid"),
            flags,
            modseq: ModSeq::NONE,
            received: Some(Timestamp(1_700_000_000)),
            saved: None,
            pop3_uidl: None,
            pop3_order: None,
            size: None,
        };
        mailbox.begin_save(message).expect("begins");
        mailbox.write(format!("Subject: {subject}\n\nText of {subject}.\n").as_bytes()).expect("written");
        mailbox.end_save().expect("ends");
        commit(&mut *mailbox, status);
    }

    /// Adds and removes flags of the message that is `n`th in its mailbox.
    pub fn flag(&mut self, mailbox: &str, n: usize, add: FlagSet, remove: FlagSet) {
        self.act(mailbox, n, |change| MessageAction::Flags {
            uid: change.uid(),
            add,
            remove,
            modseq_min: ModSeq::NONE,
        });
    }

    /// Expunges the message that is `n`th in its mailbox.
    pub fn expunge(&mut self, mailbox: &str, n: usize) {
        self.act(mailbox, n, |change| MessageAction::Expunge { uid: change.uid(), guid: None });
    }

    fn act(&mut self, mailbox: &str, n: usize, action: impl FnOnce(&MessageChange) -> MessageAction) {
        let (mut mailbox, status) = self.open(mailbox);
        let list = mailbox.changes(Since::All).expect("lists").list;
        let mut messages = list.iter().filter(|change| matches!(change, MessageChange::Save { .. }));
        let change = messages.nth(n).expect("there are as many messages");
        mailbox.apply(&[action(change)]).expect("taken");
        commit(&mut *mailbox, status);
    }
}

fn commit(mailbox: &mut dyn Mailbox, status: MailboxStatus) {
    let goal = Goal {
        uid_next_min: status.uid_next,
        modseq_min: status.highest_modseq,
        uid_validity: None,
        unfinished: false,
    };
    let committed = mailbox.commit(goal).expect("commits");
    assert!(committed.not_kept.is_empty(), "{committed:?}");
}

/// A set of flags, and one keyword or none (`""`).
pub fn flags(system: Flags, keyword: &str) -> FlagSet {
    FlagSet { system, keywords: Keyword::new(keyword).into_iter().collect() }
}

fn name(text: &str) -> MailboxName {
    MailboxName::parse(text, '/').expect("valid")
}
