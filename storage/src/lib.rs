//! Does: reads and writes mail storages. Blocking; decides nothing; knows no protocol.
//!
//! [`Storage`] is one account, [`Mailbox`] one open mailbox of it. Every implementation passes the suite
//! in `conformance`; [`memory`] is the reference. Formats with files share [`location`] (what the user says), [`layout`] (where
//! things lie) and [`account`] (what is kept once); each keeps its messages in a module of its own.
#![forbid(unsafe_code)]

pub mod account;
pub mod attributes;
mod body;
mod by_header;
pub mod compressed;
#[cfg(feature = "conformance")]
pub mod conformance;
pub mod dbox;
pub mod disk;
pub mod dry_run;
mod error;
pub mod filter;
mod halfway;
pub mod index;
pub mod layout;
mod list_index;
pub mod location;
mod lock;
pub mod mailbox_log;
pub mod maildir;
pub mod mbox;
pub mod memory;
pub mod namespaces;
mod status_cache;
mod subscriptions;

use std::path::Path;
use std::time::Duration;

use dsync_model::{
    AttributeChanges, AttributeList, AttributeLog, AttributeRecords, Changes, MailboxGuid, MailboxStatus,
    MailboxTree, MessageAction, MessageChange, MessageGuid, ModSeq, NameRules, Namespaces, NewMessage,
    NotKept, Since, StoreId, TreeChange, TreeLog, Uid, UidSet, UidValidity,
};

pub use body::Body;
pub use by_header::{ByHeader, HeaderHash, own_guid};
pub use disk::Fsync;
pub use error::{Result, StorageError};
pub use location::Location;
pub use lock::UserLock;

/// One account: its mailboxes, subscriptions, and the notes that dsync keeps with it.
pub trait Storage: Send {
    /// Where the account is, for people: `maildir:/home/alice/Maildir`.
    fn location(&self) -> String;

    fn capabilities(&self) -> Capabilities;

    /// Says whether a file is one that all mailboxes need (the map of mdbox, the list of names): no mailbox can be worked on without it.
    fn is_shared(&self, path: &Path) -> bool {
        let _ = path;
        false
    }

    /// Says whether no other mailbox can be worked on after this error.
    fn concerns_all(&self, error: &StorageError) -> bool {
        error.is_everywhere() || error.path().is_some_and(|path| self.is_shared(path))
    }

    /// Which names can be held here.
    fn rules(&self) -> NameRules {
        NameRules::default()
    }

    /// Says which namespaces are to take part, before anything is listed. An account that is only one takes no notice.
    fn choose(&mut self, namespaces: &Namespaces) -> Result<()> {
        let _ = namespaces;
        Ok(())
    }

    /// The random id of the store, made on first use. A store that was copied, restored or wiped has a
    /// new one (architecture 3b, "The base").
    fn store_id(&mut self) -> Result<StoreId>;

    /// Takes the one lock of the store, held until the guard is dropped. Waits at most `wait`.
    fn lock(&mut self, wait: Duration) -> Result<StoreLock>;

    /// Takes Dovecot's lock of the user whose mail this is, too, so that `doveadm sync -l` waits for us and we for it. `me` and
    /// `peer` are the ends of the session: one lock is enough for both, if they have the same home. Waits at most `wait`.
    fn lock_user(&mut self, me: StoreId, peer: StoreId, wait: Duration) -> Result<Option<UserLock>> {
        let _ = (me, peer, wait);
        Ok(None)
    }

    /// Lists all names with the status of each mailbox, INBOX always among them (made if it is missing) or among the problems.
    ///
    /// New messages get their UIDs here. Problems that concern one mailbox (it cannot be read, say) are
    /// reported in the second part, and its name is left out of the first.
    fn tree(&mut self) -> Result<(MailboxTree, Vec<MailboxProblem>)>;

    /// Says whether the names are still those of the last [`tree`](Self::tree). Whoever renames a mailbox while names are read may hide it: it is found
    /// under neither name then.
    fn is_steady(&mut self) -> Result<bool> {
        Ok(true)
    }

    /// What is known of mailboxes and names that were not in the last [`tree`](Self::tree) any more; empty where no log is kept.
    fn tree_log(&self) -> TreeLog {
        TreeLog::default()
    }

    /// Makes one change durable. `false`: it was not to be done any more (see [`TreeChange::Delete`]).
    fn change_tree(&mut self, change: &TreeChange) -> Result<bool>;

    /// Opens a mailbox of the last [`tree`](Self::tree), or one that was created since.
    fn open(&mut self, mailbox: MailboxGuid) -> Result<Box<dyn Mailbox>>;

    /// How a mailbox is now.
    fn status(&mut self, mailbox: MailboxGuid) -> Result<MailboxStatus> {
        self.open(mailbox)?.status()
    }

    /// Attributes (IMAP METADATA) of all mailboxes; `None`: the storage keeps none.
    fn attributes(&mut self) -> Result<Option<AttributeList>>;

    /// Sets and removes attributes, all of them or none. They may be of mailboxes that are still to be made.
    fn change_attributes(&mut self, changes: &AttributeChanges) -> Result<()>;

    /// Names of the notes kept in the control directory: regular files, `.dsync-` in front of the name.
    fn notes(&mut self) -> Result<Vec<String>>;

    /// Reads a note; `None` if there is none. At most `bytes_max` bytes, else an error.
    fn read_note(&mut self, name: &str, bytes_max: usize) -> Result<Option<Vec<u8>>>;

    /// Writes a note, atomically and durably.
    fn write_note(&mut self, name: &str, content: &[u8]) -> Result<()>;

    /// Removes a note, if it is there.
    fn remove_note(&mut self, name: &str) -> Result<()>;

    /// Looks into the messages from this UID on for one that only other software can read, and fails with the first.
    /// `false`: in this format a message that is listed is one that can be read.
    fn check(&mut self, mailbox: MailboxGuid, from: Uid) -> Result<bool> {
        let _ = (mailbox, from);
        Ok(false)
    }

    /// Frees what expunged messages still take up, a bounded piece at a time: begins at `from`, which is 0 or what the last
    /// call gave as [`Purged::next`]. `None`: with this format nothing is ever left to be freed.
    fn purge(&mut self, from: u32) -> Result<Option<Purged>> {
        let _ = from;
        Ok(None)
    }
}

/// What a purge did.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Purged {
    /// Files that are gone.
    pub files: u64,
    /// Messages that are gone with them, and their bytes.
    pub messages: u64,
    pub bytes: u64,
    /// Files that could not be purged: somebody was writing to them, or they are not what the map says.
    pub left: u64,
    /// Where to go on; `None`: all is done.
    pub next: Option<u32>,
}

impl Purged {
    /// Both pieces together.
    #[must_use]
    pub fn and(self, more: Purged) -> Purged {
        Purged {
            files: self.files + more.files,
            messages: self.messages + more.messages,
            bytes: self.bytes + more.bytes,
            left: self.left + more.left,
            next: more.next,
        }
    }
}

/// A mailbox that cannot take part, and why.
#[derive(Debug)]
pub struct MailboxProblem {
    pub mailbox: String,
    pub error: StorageError,
}

/// Held while a store is being synchronised; dropping it lets go.
pub struct StoreLock(pub Box<dyn Send>);

/// One open mailbox. What `save` and `apply` took is not visible to others before `commit`; dropped without
/// it, nothing has happened.
pub trait Mailbox: Send {
    /// Counters and digest as of now, with all changes of others taken in.
    fn status(&mut self) -> Result<MailboxStatus>;

    /// Reads a part of what [`changes`](Mailbox::changes) will need of the messages' files: of at most so many messages. `true`: nothing is
    /// left to read.
    fn read_ahead(&mut self, messages_max: usize) -> Result<bool> {
        let _ = messages_max;
        Ok(true)
    }

    /// Lists what changed, and the status of the same instant. The base, if given, is of this UIDVALIDITY.
    fn changes(&mut self, since: Since<'_>) -> Result<Changes>;

    /// The digest, as of now, of those messages whose UID is in `uids`.
    fn digest_of(&mut self, uids: &UidSet) -> Result<dsync_model::Digest>;

    /// The messages by their GUIDs' 128 bits. Where those are only in the messages' files, the last `files_max` messages alone.
    fn guids(&mut self, files_max: usize) -> Result<Vec<(Uid, [u8; 16])>> {
        let _ = files_max;
        let list = self.changes(Since::All)?.list.into_iter();
        let known = list.filter_map(|change| match change {
            MessageChange::Save { uid, guid, .. } => Some((uid, guid.bits())),
            MessageChange::Flags { .. } | MessageChange::Expunge { .. } => None,
        });
        Ok(known.collect())
    }

    /// Opens the message with this UID and, if given, GUID; if the UID is gone or is another message's, any with
    /// the GUID. `None`: expunged meanwhile.
    fn body(&mut self, uid: Uid, guid: Option<&MessageGuid>) -> Result<Option<Body>>;

    /// Whether one message may be unreadable while others are not: each has a file of its own, or a place in one that another names.
    fn may_miss_bodies(&self) -> bool {
        true
    }

    /// Saves a message whose body is at hand as a whole, under a UID that `changes` or the last `commit` left free; see
    /// [`Committed`] for what happens if a delivery got it meanwhile, even if that message is gone again.
    fn save(&mut self, message: NewMessage, body: Body) -> Result<()>;

    /// Begins to save a message whose body comes in pieces; one at a time.
    fn begin_save(&mut self, message: NewMessage) -> Result<()>;

    /// Takes the next piece of the message begun last.
    fn write(&mut self, piece: &[u8]) -> Result<()>;

    /// Ends the message begun last. It lies beside the mailbox now, and is neither durable nor visible.
    fn end_save(&mut self) -> Result<()>;

    /// Forgets the message begun last, if one is.
    fn abandon_save(&mut self);

    /// Takes note of changes to be made by `commit`, in their order; flags of different messages in any.
    fn apply(&mut self, actions: &[MessageAction]) -> Result<()>;

    /// Makes saves durable, then visible, then carries out the actions in their order; raises UIDNEXT and
    /// HIGHESTMODSEQ to at least these values, and sets UIDVALIDITY if another is given (the messages keep
    /// their UIDs). May be called again after more saves or actions.
    ///
    /// On an error before anything became visible, nothing has happened; later, a prefix has.
    fn commit(&mut self, goal: Goal) -> Result<Committed>;

    /// Last changes of attributes, as far back as the log of the mailbox reaches.
    fn attribute_log(&mut self) -> Result<AttributeLog> {
        Ok(AttributeLog::default())
    }

    /// Notes in the log which attributes of this mailbox [`Storage::change_attributes`] changed, which raises HIGHESTMODSEQ;
    /// does nothing where no log is kept.
    fn log_attributes(&mut self, records: &AttributeRecords) -> Result<()> {
        let _ = records;
        Ok(())
    }
}

/// Where a commit is to bring the counters of a mailbox.
#[derive(Clone, Copy, Debug)]
pub struct Goal {
    pub uid_next_min: Uid,
    pub modseq_min: ModSeq,
    pub uid_validity: Option<UidValidity>,
    /// More of the same is still to come: `modseq_min` and UIDNEXT are raised by the commit that ends it.
    pub unfinished: bool,
}

/// What came of a commit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Committed {
    /// UIDs (as asked for) that are not as they were to be, and where their messages are: taken by a delivery meanwhile (what was to be saved
    /// got the next free UID, what was to be renumbered kept its own), gone before it got that UID (told by the one it had), or with
    /// flags or keywords that the format could not keep. Not a message whose flags were
    /// to change and that is gone: that is a change since what was agreed; taken out of it, the other end's message would look new.
    pub not_kept: NotKept,
    /// Messages saved, bytes written.
    pub saved: u64,
    pub bytes: u64,
}

/// What a format can keep.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Support {
    None,
    /// Only within this session.
    Volatile,
    Kept,
}

/// What a storage can do. Asked once.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Capabilities {
    /// Modseqs of messages and mailboxes.
    pub modseq: Support,
    /// Can list expunges and flag changes from a log of its own.
    pub log: bool,
    /// Keywords that one mailbox can hold: 26 for Maildir letters.
    pub keywords_max: Option<u16>,
    /// Directories without mail can exist.
    pub directories: bool,
    /// GUIDs of messages. `Volatile`: tells some, and does not keep those that messages come with; a session with such an end knows
    /// messages by their headers ([`ByHeader`]).
    pub message_guid: Support,
    /// Saves a message by cloning the file that holds it ([`Body::path`]), and then does not read it.
    pub clones: bool,
}
