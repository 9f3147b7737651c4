//! Everything one brain can say to another.
//!
//! New variants and fields go last: the order is the format, and golden bytes pin it.

use bincode::{Decode, Encode};
use dsync_model::{
    AttributeKey, AttributeTime, AttributeValue, Digest, Filter, FlagSet, Generation, LastCommon,
    MailboxGuid, MailboxName, MailboxNode, MailboxStatus, MessageChange, MessageGuid, NameRules, Namespaces,
    StoreId, Timestamp, TreeLog, Uid,
};

/// One message between brains.
#[derive(Clone, PartialEq, Debug, Encode, Decode)]
pub enum Message {
    // --- of the session, in this order
    /// First word of each end.
    Handshake(Handshake),
    /// The bases that this end holds for the pair of stores; says also that it has locked its store.
    Bases(Vec<BaseRef>),
    /// Names of the account, ascending; ended by `End(List::Nodes)`.
    Nodes(Vec<(MailboxName, MailboxNode)>),
    End(List),
    /// This end has made its mail durable and would keep this base. Mailboxes that it cannot agree on are left out
    /// of the base.
    Committed(BaseRef),
    /// The base named by `Committed` is on the disk here.
    BaseWritten(Generation),
    /// All done here.
    Finish(Counters),
    /// This end stops; nothing follows.
    Failure(Failure),

    // --- of one mailbox, on its channel, in this order
    /// The mailbox as it stands at this end, opened for round `round` (from 0); the changes that follow are since the base if
    /// `since_base`, else all messages.
    Mailbox {
        status: MailboxStatus,
        since_base: bool,
        round: u8,
    },
    /// Ascending by UID; ended by `End(List::Changes)`.
    Changes(Vec<MessageChange>),
    /// Bodies wanted, ascending by the UID they get at the asking end; ended by `End(List::Requests)`.
    Requests(Vec<MailRequest>),
    /// Answers the oldest open request; if `found`, body pieces and a body end follow.
    Mail(MailHeader),
    /// How the mailbox stands at this end after all its work; behind all of its `NotKept`.
    Settled(Settled),
    /// This end cannot go on with this mailbox; nothing more comes on the channel, and what is still on its way there is for nobody. May
    /// come at any time before `Settled`, in place of the rest of a body too. Why, for people.
    Skip {
        /// Exit status that it is worth.
        status: u8,
        text: String,
    },

    // --- for options that few sessions have
    /// Of the session: the initiator's sync state, ascending by GUID, right behind its handshake.
    State(Vec<(MailboxGuid, LastCommon)>),
    /// On a channel, between `Changes` and their end: UIDs of messages that do not pass the filter, ascending.
    Filtered(Vec<Uid>),
    /// Of the session, before `Finish`, if [`Purpose`] is not to synchronise: what the responder would do.
    Planned {
        mailboxes: Vec<Planned>,
        notes: Vec<String>,
    },
    /// Of the session, to verify: messages of one mailbox of the responder, ascending by UID; ended by
    /// `End(List::Listing)` when all were listed.
    Listing(MailboxName, Vec<Listed>),
    /// Of the session, before the end of `Nodes`: mailboxes that this end has and cannot read, and why. They are no part of
    /// the session, and never taken for deleted.
    Unlisted(Vec<(MailboxName, String, u8)>),
    /// Of the session, before `End(List::Nodes)`: what this end's log tells of names that are gone; in as many pieces as it takes.
    Log(TreeLog),
    /// Of the session, between `Nodes` and their end: attributes of mailboxes, ascending; at least one such message if this
    /// end keeps any, even if it is empty.
    Attributes(Vec<(AttributeKey, AttributeValue)>),
    /// Of the session, before `End(List::Nodes)`: which names this end can hold, and which of them take part.
    Names(NameRules),
    /// Of the session, behind `Nodes` of both ends if attributes are not the same at both: what this end knows of when they came to be as
    /// they are, ascending; ended by `End(List::AttributeTimes)`.
    AttributeTimes(Vec<(AttributeKey, AttributeTime)>),
    /// Of the session, before `Finish`: something that this end could not do, where no other message tells of it.
    Problem(Problem),
    /// Of the session, behind `Nodes` of both ends: what of the merged tree is not so at this end. Next time it is merged anew.
    Undone(Undone),
    /// On a channel, before `Settled`: UIDs that this end could not bring to the agreed state, ascending. They are no part of the base, which
    /// remembers where their messages are (see [`dsync_model::NotKept`]). A message that was to be expunged, and that the base knows, is told by
    /// its own UID if it stays for now: the base keeps it as it was.
    NotKept(Vec<(Uid, Option<Uid>)>),
    /// Of the session, before `End(List::Saves)` of the first round, if this end is to delete mailboxes or directories: it says when it
    /// has, by `End(List::Deletions)`, and the base waits for that.
    Deleting,
}

/// The lists that `End` can end.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Encode, Decode)]
pub enum List {
    Nodes,
    /// All saves of this end, in all mailboxes, are durable: no further request comes from it.
    Saves,
    Changes,
    Requests,
    /// Messages to verify, of all mailboxes.
    Listing,
    AttributeTimes,
    /// What `Deleting` announced: done, or `Undone`.
    Deletions,
}

/// Who began the session. Settles ties, so the ends must differ in it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Encode, Decode)]
pub enum Role {
    Initiator,
    Responder,
}

/// What the session is to do, seen from the initiator's end.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Encode, Decode)]
pub enum Direction {
    /// `sync`: changes of both ends arrive at both.
    TwoWay,
    /// `sync -1`: changes of the other end arrive in `into`, which keeps its own; the other is not written.
    OneWay { into: Terminus },
    /// `backup`: `into` becomes the same as the other end, which is not written.
    Mirror { into: Terminus },
}

/// One end of a session, named by its role.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Encode, Decode)]
pub enum Terminus {
    Initiator,
    Responder,
}

/// Options of the session; the initiator's count.
#[derive(Clone, PartialEq, Eq, Debug, Default, Encode, Decode)]
pub struct Options {
    /// `-f`: look into every mailbox, equal status or not.
    pub full: bool,
    /// `-m`: LIST patterns; empty: every mailbox.
    pub mailboxes: Vec<String>,
    /// `-x`: masks of mailboxes to leave alone.
    pub exclude: Vec<String>,
    /// `-l`: how long to wait for locks, in seconds, that of the user among them. 0: not said; the store alone is locked.
    pub lock_wait_secs: u32,
    /// `--allow-mass-delete`: what the guard takes for an accident is meant.
    pub allow_mass_delete: bool,
    /// `-g`: only mailboxes with these GUIDs; empty: any.
    pub guids: Vec<MailboxGuid>,
    /// `-m ''`: mailboxes and subscriptions only, no messages.
    pub tree_only: bool,
    /// `-t`, `-e`, `-I`, `-O`.
    pub filter: Box<Filter>,
    pub purpose: Purpose,
    /// `-P`: free what expunged messages take up in the responder's storage, when all is done.
    pub purge: bool,
    /// `-n`, `-N`: each end knows its own namespaces.
    pub namespaces: Namespaces,
    /// `--read-only-source`, with the responder as the source: it writes nothing at all.
    pub read_only_source: bool,
}

/// What a session is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Encode, Decode)]
pub enum Purpose {
    /// To make both ends equal.
    #[default]
    Sync,
    /// To tell what that would do: neither end writes anything.
    DryRun,
    /// To compare both ends message by message, with `bodies` their content too: neither end writes anything.
    Verify { bodies: bool },
}

/// First word of each end.
#[derive(Clone, PartialEq, Debug, Encode, Decode)]
pub struct Handshake {
    pub role: Role,
    pub store: StoreId,
    /// The initiator's counts; the responder sends it back.
    pub direction: Direction,
    pub options: Options,
    /// Where the mail is, for people: `maildir:/srv/mail/alice`.
    pub location: String,
    /// This end's storage keeps the GUIDs that messages come with. If one does not, lists of both name messages by a hash of their
    /// headers, and digests leave GUIDs out.
    pub keeps_guids: bool,
}

/// A base, by generation and content.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Encode, Decode)]
pub struct BaseRef {
    pub generation: Generation,
    pub digest: Digest,
}

/// A body that is wanted.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub struct MailRequest {
    /// UID at the end that is asked.
    pub uid: Uid,
    /// GUID, where the asking end knows it.
    pub guid: Option<MessageGuid>,
}

/// What precedes a body.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub struct MailHeader {
    /// As in the request.
    pub uid: Uid,
    /// `None`: the message is gone, or cannot be read (`problem` says why); no body follows.
    pub guid: Option<MessageGuid>,
    pub received: Option<Timestamp>,
    pub saved: Option<Timestamp>,
    pub pop3_uidl: Option<String>,
    pub pop3_order: Option<u32>,
    pub size: Option<u64>,
    pub problem: Option<Problem>,
}

/// What an end could not do; the session goes on.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub struct Problem {
    /// Exit status that it is worth.
    pub status: u8,
    /// For people; one line.
    pub text: String,
}

/// A change to the tree that an end could not make.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub enum Undone {
    /// Of the mailbox that was to have this name.
    Mailbox(MailboxName),
    /// These are not subscribed, or still are.
    Subscriptions { names: Vec<MailboxName>, subscribed: bool },
    /// This mailbox was not deleted, and has this name now.
    Deletion { mailbox: MailboxGuid, name: MailboxName },
    /// This directory was not removed.
    Directory(MailboxName),
}

/// How a mailbox stands after all work on it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Encode, Decode)]
pub struct Settled {
    pub guid: MailboxGuid,
    /// Of the messages that both ends agreed on.
    pub digest: Digest,
}

/// What a session did at one end.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Encode, Decode)]
pub struct Counters {
    pub mailboxes: u64,
    pub mailboxes_changed: u64,
    pub saved: u64,
    pub bytes: u64,
    pub flags: u64,
    pub renumbered: u64,
    pub expunged: u64,
    /// Mailboxes that could not be brought to agree: the session ends with status 2.
    pub disturbed: u64,
    /// Bytes that a purge freed; `None`: none was asked for, or the format never leaves anything to free.
    pub freed: Option<u64>,
}

/// What an end would do to one mailbox.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub struct Planned {
    pub name: String,
    /// "created", "renamed from X", "deleted" and the like.
    pub tree: Option<String>,
    pub saved: u64,
    pub flags: u64,
    pub renumbered: u64,
    pub expunged: u64,
}

/// One message as it lies at an end.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub struct Listed {
    pub uid: Uid,
    pub guid: MessageGuid,
    pub flags: FlagSet,
    pub received: Option<Timestamp>,
    /// Lines ended by CRLF.
    pub size: u64,
    /// BLAKE3 of the content, lines ended by CRLF.
    pub content: Option<[u8; 32]>,
    /// Why it cannot be read, if so.
    pub problem: Option<String>,
}

/// Why an end stops.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub struct Failure {
    pub blame: Blame,
    /// Exit status that the end which reports to a person should have.
    pub status: u8,
    /// For people; one line.
    pub text: String,
}

/// What another end's word for an exit status counts here: as it is if it is one of sysexits.h (64 to 78), else 75. It is never success.
pub fn status_told(status: u8) -> u8 {
    if (64..=78).contains(&status) { status } else { 75 }
}

/// Who must act.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Encode, Decode)]
pub enum Blame {
    /// The other end misbehaved or is incompatible.
    Peer,
    /// The storage of the end that stops.
    Storage,
    Settings,
    Link,
    /// The end was told to stop.
    Stopped,
}
