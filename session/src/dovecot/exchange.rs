//! One mailbox: each end's lists in their fixed order, the plan, the bodies, and what both agree on in the end.
//!
//! Both directions run at once: what comes in is always taken, what goes out waits for what the rules say it must wait for.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use dsync_merge::dovecot::{self, From, Save};
use dsync_merge::{Both, Direction, End, MailboxView};
use dsync_model::{
    AttributeChanges, AttributeKey, AttributeList, AttributeRecord, Changes, Filter, LastCommon, MailboxGuid,
    MailboxStatus, MessageAction, MessageChange, MessageGuid, ModSeq, NewMessage, Since, Timestamp, Uid,
    UidSet, UidValidity,
};
use dsync_proto::dovecot::codec::Event;
use dsync_proto::dovecot::items::{self, Item};
use dsync_storage::{Goal, Mailbox};

use super::attributes::Attributes;
use super::{Output, at, filtering, lines, unexpected};
use crate::{MailboxReport, Progress, SessionError, commits};

/// Lines of a list that are sent at once.
const BATCH: usize = 500;
/// Most entries that a peer may list, in each list.
const ENTRIES_MAX: usize = 20_000_000;

/// What is known before the exchange begins.
#[derive(Clone)]
pub(super) struct Terms {
    pub end: End,
    pub direction: Direction,
    /// Bodies are asked for; else all that is listed is sent.
    pub requests: bool,
    /// Attributes are listed.
    pub attributes: bool,
    /// What the state says; `None`: the lists are complete.
    pub known: Option<LastCommon>,
    /// What a message must be to be saved where it is missing.
    pub filter: Filter,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum List {
    Attributes,
    Changes,
    Requests,
    Mails,
    State,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    Both,
    Sender,
    Receiver,
}

impl Part {
    fn of(end: End, direction: Direction) -> Part {
        match direction.source() {
            None => Part::Both,
            Some(source) if source == end => Part::Sender,
            Some(_) => Part::Receiver,
        }
    }

    /// What this part says, in its order.
    fn lists(self, terms: &Terms) -> VecDeque<List> {
        let all: &[List] = match self {
            Part::Both => &[List::Attributes, List::Changes, List::Requests, List::Mails, List::State],
            Part::Sender => &[List::Attributes, List::Changes, List::Mails, List::State],
            Part::Receiver => &[List::Requests, List::State],
        };
        let said = |list: &&List| match list {
            List::Attributes => terms.attributes,
            List::Requests => terms.requests,
            _ => true,
        };
        all.iter().filter(said).copied().collect()
    }
}

/// What this end does, whoever planned it.
#[derive(Default)]
struct Plan {
    saves: Vec<Save>,
    expunges: Vec<MessageAction>,
    last_common: u32,
    uid_next_min: u32,
    modseq_min: u64,
}

/// A body that is coming in.
enum Incoming {
    /// For these saves; the first one takes it.
    Wanted(Vec<Save>),
    /// Of nothing that we asked for.
    Other,
}

/// What both ends were told, and what came of it.
pub(super) struct Outcome {
    pub guid: MailboxGuid,
    pub common: LastCommon,
    pub disturbed: bool,
    pub problems: Vec<(String, u8)>,
    pub notes: Vec<String>,
    pub report: MailboxReport,
    pub bytes: u64,
}

/// One mailbox under way.
pub(super) struct Exchange {
    name: String,
    mailbox: Box<dyn Mailbox>,
    ours: items::Mailbox,
    theirs: items::Mailbox,
    terms: Terms,
    part: Part,
    status: MailboxStatus,
    attributes: Attributes,
    /// What we say, without what came since we told our counters.
    own: Vec<MessageChange>,
    told: usize,
    reading: VecDeque<List>,
    writing: VecDeque<List>,
    peer: Vec<MessageChange>,
    /// Of the peer's messages those that the filter keeps back.
    kept_back: UidSet,
    /// GUIDs that are no text as we have it, as the peer spells them.
    spelled: BTreeMap<Uid, Vec<u8>>,
    uid_validity: Option<UidValidity>,
    plan: Option<Plan>,
    requests: VecDeque<items::Request>,
    /// By [`key`].
    wanted: BTreeMap<Vec<u8>, Vec<Save>>,
    incoming: Option<Incoming>,
    /// Saves of a message that is here, or will be.
    copies: Vec<(MessageGuid, Save, Uid)>,
    unsaved: (u64, u64),
    /// UIDs that are still to come, bodies and copies.
    to_come: BTreeSet<Uid>,
    /// Actions that wait for saves below the UIDs that they give.
    waiting: Vec<MessageAction>,
    asked: VecDeque<items::Request>,
    listed: BTreeSet<MessageGuid>,
    not_kept: Vec<Uid>,
    disturbed: bool,
    said: Option<items::State>,
    heard: Option<items::State>,
    problems: Vec<(String, u8)>,
    report: MailboxReport,
    bytes: u64,
}

impl Exchange {
    /// Begins, both ends having told their counters.
    pub fn begin(
        name: String,
        mut mailbox: Box<dyn Mailbox>,
        ours: items::Mailbox,
        theirs: items::Mailbox,
        terms: Terms,
        attributes: Option<&AttributeList>,
    ) -> Result<Exchange, SessionError> {
        let part = Part::of(terms.end, terms.direction);
        check_guids(&name, &ours, &theirs, part)?;
        let Changes { status, mut list } = mailbox.changes(Since::All).map_err(at(name.clone()))?;
        // What came since we told our counters is not mentioned: the peer reckons with the counters.
        list.retain(|change| change.uid().get() < ours.uid_next);
        let listed = list.iter().filter_map(|change| match change {
            MessageChange::Save { guid, .. } => Some(guid.clone()),
            MessageChange::Flags { .. } | MessageChange::Expunge { .. } => None,
        });
        let peer_part = Part::of(terms.end.other(), terms.direction);
        let uid_validity = uid_validity(&ours, &theirs, part);
        let attributes = match attributes {
            None => Attributes::default(),
            Some(all) => {
                let log = mailbox.attribute_log().map_err(at(name.clone()))?.first;
                let last_common = terms.known.map(|known| known.modseq);
                Attributes::new(ours.mailbox_guid, all, log, last_common)
            }
        };
        Ok(Exchange {
            attributes,
            listed: listed.collect(),
            report: MailboxReport { name: name.clone(), ..MailboxReport::default() },
            name,
            mailbox,
            reading: peer_part.lists(&terms),
            writing: part.lists(&terms),
            ours,
            theirs,
            terms,
            part,
            status,
            own: list,
            told: 0,
            peer: Vec::new(),
            kept_back: UidSet::new(),
            spelled: BTreeMap::new(),
            uid_validity,
            plan: None,
            requests: VecDeque::new(),
            wanted: BTreeMap::new(),
            incoming: None,
            copies: Vec::new(),
            unsaved: (0, 0),
            to_come: BTreeSet::new(),
            waiting: Vec::new(),
            asked: VecDeque::new(),
            not_kept: Vec::new(),
            disturbed: false,
            said: None,
            heard: None,
            problems: Vec::new(),
            bytes: 0,
        })
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// What is to be changed here, once the peer has told all its attributes; told once.
    pub fn attribute_changes(&mut self) -> AttributeChanges {
        let told = !self.reading.contains(&List::Attributes);
        if told { self.attributes.changes() } else { AttributeChanges::new() }
    }

    /// Notes in the mailbox's log that its attributes were changed.
    pub fn log_attributes(&mut self, changes: &AttributeChanges) -> dsync_storage::Result<()> {
        let record = |(key, value): (&AttributeKey, &Option<Vec<u8>>)| {
            (key.clone(), AttributeRecord::now(value.as_ref()))
        };
        self.mailbox.log_attributes(&changes.iter().map(record).collect())
    }

    /// Whether the peer was told attributes, which it may not be able to keep.
    pub fn told_attributes(&self) -> bool {
        self.attributes.were_told()
    }

    pub fn has_read_all(&self) -> bool {
        self.reading.is_empty()
    }

    pub fn is_done(&self) -> bool {
        self.reading.is_empty() && self.writing.is_empty()
    }

    /// Takes one event of the peer.
    pub fn take(&mut self, event: Event, progress: &mut Progress) -> Result<(), SessionError> {
        let item = match event {
            Event::Item(item) => item,
            Event::Body(piece) => return self.piece(&piece, progress),
            Event::BodyEnd => return self.end_body(progress),
            Event::Version(_) => return Err(SessionError::Peer("names its version twice".into())),
        };
        match (self.reading.front(), item) {
            (Some(List::Attributes), Item::Attribute(line)) => {
                self.attributes.take(self.ours.mailbox_guid, *line)?;
            }
            (Some(List::Changes), Item::Change(line)) => {
                let change = lines::read_change(&line)?;
                if self.peer.len() >= ENTRIES_MAX {
                    return Err(SessionError::Peer(format!(
                        "lists more than {ENTRIES_MAX} messages in {}",
                        self.name
                    )));
                }
                if let (MessageChange::Save { guid, uid, .. }, Some(spelled)) = (&change, &line.guid)
                    && guid.as_str().as_bytes() != &spelled[..]
                {
                    self.spelled.insert(*uid, spelled.clone());
                }
                if let MessageChange::Save { uid, flags, .. } = &change
                    && !filtering::passes(&self.terms.filter, &line, &flags.current)?
                {
                    self.kept_back.insert(uid.get());
                }
                self.peer.push(change);
            }
            (Some(List::Requests), Item::Request(request)) => {
                if self.asked.len() >= ENTRIES_MAX {
                    return Err(SessionError::Peer(format!(
                        "asks for more than {ENTRIES_MAX} messages of {}",
                        self.name
                    )));
                }
                progress.asked += 1;
                self.asked.push_back(*request);
            }
            (Some(List::Mails), Item::Mail(mail)) => self.begin_body(*mail)?,
            (Some(List::State), Item::State(state)) => {
                if state.mailbox_guid != self.ours.mailbox_guid {
                    return Err(SessionError::Peer("ends another mailbox than the one it began".into()));
                }
                self.disturbed |= state.changes_during_sync;
                self.heard = Some(*state);
                self.reading.pop_front();
            }
            (Some(List::State) | None, item) => return Err(unexpected(&item, "the state of a mailbox")),
            (Some(list), Item::End) => {
                let list = *list;
                self.reading.pop_front();
                match list {
                    List::Changes => self.decide(progress)?,
                    List::Mails => self.all_came()?,
                    List::Attributes | List::Requests | List::State => {}
                }
            }
            (Some(list), item) => {
                return Err(SessionError::Peer(format!("sends {:?} in the list of {list:?}", item.tag())));
            }
        }
        Ok(())
    }

    /// Both lists are here: what is to be done?
    fn decide(&mut self, progress: &mut Progress) -> Result<(), SessionError> {
        let name = self.name.clone();
        let wrong = |error: dsync_merge::Desync| SessionError::Peer(format!("lists {name} wrongly: {error}"));
        let next = |line: &items::Mailbox| Uid::new(line.uid_next).unwrap_or(Uid::MIN);
        let modseq = ModSeq::new(self.theirs.highest_modseq)
            .ok_or_else(|| SessionError::Peer(format!("has a modseq of 2^63 or more in {}", self.name)))?;
        let mirror = matches!(self.terms.direction, Direction::Mirror { .. });
        let (plan, actions) = match self.part {
            // One way without overwriting, the receiver's own changes count as they do in both directions.
            Part::Both | Part::Receiver if !mirror => {
                let terms = dovecot::Terms {
                    end: self.terms.end,
                    uid_next: next(&self.ours),
                    peer_uid_next: next(&self.theirs),
                    peer_modseq: modseq,
                    last_common: self.terms.known.map(|known| known.uid),
                    kept_back: Some(&self.kept_back),
                };
                let plan = dovecot::messages(&self.own, &self.peer, &terms).map_err(wrong)?;
                let decided = Plan {
                    saves: plan.saves,
                    expunges: plan.expunges,
                    last_common: plan.last_common,
                    uid_next_min: plan.last_common.saturating_add(1).max(self.theirs.uid_next),
                    modseq_min: self.theirs.highest_modseq,
                };
                (decided, plan.actions)
            }
            Part::Receiver => self.decide_alone(modseq)?,
            Part::Both | Part::Sender => {
                return Err(SessionError::Peer("lists messages where it only receives".into()));
            }
        };
        self.act(plan, actions, progress)
    }

    /// A mirror, which we are: our own rules, as both ends of our own would have them. Dovecot makes a mailbox anew where we repair it.
    fn decide_alone(&mut self, modseq: ModSeq) -> Result<(Plan, Vec<MessageAction>), SessionError> {
        if let Some(known) = self.terms.known {
            complete(&mut self.peer, &self.own, known.uid);
        }
        let mut mine = self.status.clone();
        mine.uid_next = Uid::new(self.ours.uid_next).unwrap_or(Uid::MIN);
        let theirs = MailboxStatus {
            guid: self.theirs.mailbox_guid,
            uid_validity: UidValidity::new(self.theirs.uid_validity).unwrap_or(mine.uid_validity),
            uid_next: Uid::new(self.theirs.uid_next).unwrap_or(Uid::MIN),
            messages: self.theirs.messages_count,
            highest_modseq: modseq,
            digest: dsync_model::Digest::default(),
        };
        let views = [
            MailboxView { status: &mine, changes: &self.own, filtered: &UidSet::new() },
            MailboxView { status: &theirs, changes: &self.peer, filtered: &self.kept_back },
        ];
        let views = if self.terms.end == End::Initiator { views } else { [views[1], views[0]] };
        let plan = dsync_merge::messages(Both(views), None, self.terms.direction, self.terms.end)
            .map_err(|error| SessionError::Peer(format!("lists {} wrongly: {error}", self.name)))?;
        let saves = plan.fetches.iter().filter_map(|fetch| {
            let (uid, guid) = (fetch.uid, fetch.guid.clone()?);
            let from = From::Peer(fetch.from);
            Some(Save { uid, guid, flags: fetch.flags.clone(), modseq: fetch.modseq, from })
        });
        let decided = Plan {
            saves: saves.collect(),
            expunges: plan.expunges,
            last_common: self.theirs.uid_next.saturating_sub(1),
            uid_next_min: plan.uid_next_min.get(),
            modseq_min: plan.modseq_min.get().max(self.theirs.highest_modseq),
        };
        Ok((decided, plan.actions))
    }

    /// Does at once what needs no body, and asks for the bodies.
    fn act(
        &mut self,
        plan: Plan,
        actions: Vec<MessageAction>,
        progress: &mut Progress,
    ) -> Result<(), SessionError> {
        for action in &actions {
            match action {
                MessageAction::Flags { .. } => self.report.flags += 1,
                MessageAction::Renumber { .. } => self.report.renumbered += 1,
                MessageAction::Expunge { .. } => {}
            }
        }
        for save in &plan.saves {
            match save.from {
                From::Here(uid) => self.copies.push((save.guid.clone(), save.clone(), uid)),
                From::Peer(uid) => {
                    let guid = self.spelled.get(&uid).cloned();
                    let guid = guid.unwrap_or_else(|| save.guid.as_str().as_bytes().to_vec());
                    // In an mbox, messages without the usual headers share one GUID, whatever they hold: each is asked for by its UID.
                    let guid = self.theirs.have_save_guids.then_some(guid);
                    let request = items::Request { guid, uid: Some(uid.get()) };
                    let group = self.wanted.entry(key(request.guid.as_deref(), request.uid)).or_default();
                    if group.is_empty() {
                        progress.wanted += 1;
                        self.requests.push_back(request);
                    }
                    group.push(save.clone());
                }
            }
        }
        self.to_come = plan.saves.iter().map(|save| save.uid).collect();
        self.plan = Some(plan);
        let first = self.to_come.first();
        let behind = |action: &MessageAction| matches!(action, MessageAction::Renumber { to, .. } if first.is_some_and(|first| to > first));
        // UIDs are given in ascending order: an index tells a UID below UIDNEXT only by being made anew, and what its log knew of
        // expunges and changed flags is lost. A mirror has to make room first.
        let mirrors = matches!(self.terms.direction, Direction::Mirror { .. });
        if !mirrors && actions.iter().any(behind) {
            self.waiting = actions;
        } else if !actions.is_empty() || self.uid_validity.is_some() {
            self.mailbox.apply(&actions).map_err(at(self.name.clone()))?;
            self.commit()?;
        }
        Ok(())
    }

    fn goal(&self) -> Goal {
        let (uid_next, modseq) =
            self.plan.as_ref().map_or((0, 0), |plan| (plan.uid_next_min, plan.modseq_min));
        // UIDNEXT moves past what is still to come only when it has come.
        let uid_next = if self.to_come.is_empty() { uid_next } else { 0 };
        Goal {
            uid_next_min: Uid::new(uid_next).unwrap_or(Uid::MIN).max(self.status.uid_next),
            modseq_min: ModSeq::new(modseq).unwrap_or_default().max(self.status.highest_modseq),
            uid_validity: self.uid_validity,
        }
    }

    fn commit(&mut self) -> Result<(), SessionError> {
        let next = self.to_come.first();
        let (now, later) = std::mem::take(&mut self.waiting).into_iter().partition(|action| match action {
            MessageAction::Renumber { to, .. } => next.is_none_or(|next| to < next),
            MessageAction::Flags { .. } | MessageAction::Expunge { .. } => next.is_none(),
        });
        self.waiting = later;
        self.mailbox.apply(&Vec::from_iter(now)).map_err(at(self.name.clone()))?;
        let goal = self.goal();
        let committed = self.mailbox.commit(goal).map_err(at(self.name.clone()))?;
        self.report.saved += committed.saved;
        self.bytes += committed.bytes;
        self.not_kept.extend(committed.not_kept);
        self.unsaved = (0, 0);
        Ok(())
    }

    fn begin_body(&mut self, mail: items::Mail) -> Result<(), SessionError> {
        if self.incoming.is_some() {
            return Err(SessionError::Peer("begins a message in the middle of another".into()));
        }
        let asked = self.wanted.remove(&key(mail.guid.as_deref(), mail.uid));
        let Some(group) = asked.filter(|group| !group.is_empty()) else {
            self.incoming = mail.stream.then_some(Incoming::Other);
            return Ok(());
        };
        if !mail.stream {
            // Expunged meanwhile: the next run tells us so.
            for save in &group {
                self.to_come.remove(&save.uid);
            }
            self.disturbed = true;
            return Ok(());
        }
        let time = |secs: Option<u64>| secs.and_then(|secs| i64::try_from(secs).ok()).map(Timestamp);
        let text =
            |bytes: &[u8]| std::str::from_utf8(bytes).ok().filter(|text| !text.is_empty()).map(Into::into);
        let message = |save: &Save| NewMessage {
            received: time(mail.received_date),
            saved: time(mail.saved_date),
            pop3_uidl: mail.pop3_uidl.as_deref().and_then(text),
            pop3_order: mail.pop3_order.filter(|order| *order > 0),
            ..new_message(save)
        };
        if let Some(first) = group.first() {
            let message = message(first);
            self.mailbox.begin_save(message).map_err(at(format!("{}: UID {}", self.name, first.uid)))?;
        }
        self.incoming = Some(Incoming::Wanted(group));
        Ok(())
    }

    fn piece(&mut self, piece: &[u8], progress: &mut Progress) -> Result<(), SessionError> {
        match &self.incoming {
            Some(Incoming::Wanted(_)) => {
                progress.bytes_received += piece.len() as u64;
                self.unsaved.1 += piece.len() as u64;
                self.mailbox.write(piece).map_err(at(self.name.clone()))
            }
            Some(Incoming::Other) => Ok(()),
            None => {
                self.attributes.piece(piece);
                Ok(())
            }
        }
    }

    fn end_body(&mut self, progress: &mut Progress) -> Result<(), SessionError> {
        if self.attributes.end_body()? {
            return Ok(());
        }
        let Some(Incoming::Wanted(group)) = self.incoming.take() else { return Ok(()) };
        self.mailbox.end_save().map_err(at(self.name.clone()))?;
        progress.received += 1;
        self.unsaved.0 += 1;
        let mut group = group.into_iter();
        if let Some(first) = group.next() {
            self.to_come.remove(&first.uid);
            // The peer sends one body, however many messages have it.
            self.copies.extend(group.map(|save| (save.guid.clone(), save, first.uid)));
        }
        if commits::is_due(self.unsaved, self.own.len() as u64 + self.report.saved) {
            self.commit()?;
        }
        Ok(())
    }

    fn all_came(&mut self) -> Result<(), SessionError> {
        let missing = self.wanted.values().flatten().next();
        match missing.filter(|_| self.terms.requests) {
            Some(save) => Err(SessionError::Peer(format!(
                "never sent UID {} of {}, which we asked for",
                save.uid, self.name
            ))),
            None => Ok(()),
        }
    }

    /// Says what there is to say. `false` if that must wait.
    pub fn write(
        &mut self,
        out: &mut VecDeque<Output>,
        progress: &mut Progress,
    ) -> Result<bool, SessionError> {
        let Some(list) = self.writing.front().copied() else { return Ok(false) };
        let mut say = |item: Item| out.push_back(Output::Item(item));
        match list {
            List::Attributes => {
                let batch = self.attributes.tell(BATCH);
                if !batch.is_empty() {
                    batch.into_iter().for_each(|line| say(line.into()));
                    return Ok(true);
                }
            }
            List::Changes => {
                let known = self.terms.known.map(|known| (known.uid, known.modseq));
                let rest = &self.own[self.told..];
                let batch = &rest[..rest.len().min(BATCH)];
                for change in batch {
                    let Some(mut line) = lines::change(change, known) else { continue };
                    filtering::complete(&self.terms.filter, &mut *self.mailbox, change, &mut line)
                        .map_err(at(self.name.clone()))?;
                    say(line.into());
                }
                self.told += batch.len();
                if self.told < self.own.len() {
                    return Ok(true);
                }
                if !self.terms.requests {
                    self.ask_for_all();
                }
            }
            List::Requests => {
                if self.plan.is_none() {
                    return Ok(false);
                }
                let batch = self.requests.len().min(BATCH);
                self.requests.drain(..batch).for_each(|request| say(request.into()));
                if !self.requests.is_empty() {
                    return Ok(true);
                }
            }
            List::Mails => {
                if self.reading.contains(&List::Requests) {
                    return Ok(false);
                }
                if let Some(request) = self.asked.pop_front() {
                    self.send(request, out, progress)?;
                    return Ok(true);
                }
            }
            List::State => {
                if self.reading.iter().any(|list| *list != List::State) {
                    return Ok(false);
                }
                let state = self.close()?;
                say(state.clone().into());
                self.said = Some(state);
                self.writing.pop_front();
                return Ok(true);
            }
        }
        say(Item::End);
        self.writing.pop_front();
        Ok(true)
    }

    /// The master asks for nothing: it gets everything that is listed.
    fn ask_for_all(&mut self) {
        let known = self.terms.known.map_or(0, |known| known.uid);
        let all = self.own.iter().filter_map(|change| match change {
            MessageChange::Save { uid, guid, .. } if uid.get() > known => {
                Some(items::Request { guid: Some(guid.as_str().into()), uid: Some(uid.get()) })
            }
            _ => None,
        });
        self.asked = all.collect();
    }

    fn send(
        &mut self,
        request: items::Request,
        out: &mut VecDeque<Output>,
        progress: &mut Progress,
    ) -> Result<(), SessionError> {
        let guid = request.guid.as_deref().map(MessageGuid::of_bytes);
        if guid.as_ref().is_some_and(|guid| !self.listed.contains(guid)) {
            return Err(SessionError::Peer(format!(
                "asks for a message of {} that we never listed",
                self.name
            )));
        }
        let uid = request.uid.and_then(Uid::new).or_else(|| {
            let found = self.own.iter().find(|change| {
                matches!(change, MessageChange::Save { guid: known, .. } if Some(known) == guid.as_ref())
            });
            found.map(MessageChange::uid)
        });
        let uid = uid.ok_or_else(|| SessionError::Peer(format!("asks for no message of {}", self.name)))?;
        let mut mail = items::Mail {
            // By which of the two it was asked for.
            guid: Some(request.guid.unwrap_or_default()),
            uid: if guid.is_none() { Some(uid.get()) } else { None },
            ..items::Mail::default()
        };
        match self.mailbox.body(uid, guid.as_ref()) {
            Ok(Some(body)) => {
                let time = |time: Option<Timestamp>| time.and_then(|time| u64::try_from(time.0).ok());
                mail.pop3_uidl = Some(body.pop3_uidl.as_deref().unwrap_or_default().into());
                mail.pop3_order = body.pop3_order.filter(|order| *order > 0);
                mail.received_date = time(body.received).or(Some(0));
                mail.saved_date = time(body.saved).or(mail.received_date);
                mail.stream = true;
                self.report.sent += 1;
                progress.sent += 1;
                progress.bytes_sent += body.size.unwrap_or(0);
                out.push_back(Output::Item(mail.into()));
                out.push_back(Output::Body(body));
            }
            // Without a body it counts as expunged meanwhile.
            Ok(None) => out.push_back(Output::Item(mail.into())),
            Err(error) => {
                let text = format!("{}: UID {uid}: {}", self.name, super::chain(&error));
                self.problems.push((text, error.status()));
                out.push_back(Output::Item(mail.into()));
            }
        }
        Ok(())
    }

    /// Makes durable what came, then removes what is to go; and tells how this end stands.
    fn close(&mut self) -> Result<items::State, SessionError> {
        let mut state = items::State {
            mailbox_guid: self.ours.mailbox_guid,
            last_uidvalidity: self.ours.uid_validity,
            last_common_uid: self.ours.uid_next.saturating_sub(1),
            last_common_modseq: self.ours.highest_modseq,
            last_messages_count: Some(self.ours.messages_count),
            ..items::State::default()
        };
        let Some(plan) = &mut self.plan else { return Ok(state) };
        let (expunges, last_common) = (std::mem::take(&mut plan.expunges), plan.last_common);
        self.to_come = self.copies.iter().map(|(_, save, _)| save.uid).collect();
        let goal = self.goal();
        let behind = goal.uid_next_min > self.status.uid_next || goal.modseq_min > self.status.highest_modseq;
        if self.unsaved.0 > 0 || !self.to_come.is_empty() || !self.waiting.is_empty() || behind {
            self.commit()?;
        }
        self.copy()?;
        if !expunges.is_empty() {
            self.report.expunged += expunges.len() as u64;
            self.mailbox.apply(&expunges).map_err(at(self.name.clone()))?;
            self.commit()?;
        }
        let status = self.mailbox.status().map_err(at(self.name.clone()))?;
        let untroubled = self.not_kept.is_empty() && !self.disturbed;
        state.last_messages_count = Some(status.messages);
        if untroubled {
            state.last_common_uid = last_common;
            state.last_common_modseq = self.theirs.highest_modseq;
        } else {
            state.last_common_uid = last_common.min(state.last_common_uid);
            state.changes_during_sync = true;
            self.disturbed = true;
        }
        Ok(state)
    }

    /// Saves what has its body in this mailbox.
    fn copy(&mut self) -> Result<(), SessionError> {
        let mut copies = std::mem::take(&mut self.copies);
        if copies.is_empty() {
            return Ok(());
        }
        copies.sort_by_key(|(_, save, _)| save.uid);
        for (guid, save, from) in copies {
            let below = |action: &MessageAction| matches!(action, MessageAction::Renumber { to, .. } if *to < save.uid);
            if self.waiting.iter().any(below) {
                self.commit()?;
            }
            self.to_come.remove(&save.uid);
            let context = || format!("{}: UID {}", self.name, save.uid);
            match self.mailbox.body(from, Some(&guid)).map_err(at(context()))? {
                Some(body) => {
                    let message = NewMessage {
                        received: body.received,
                        saved: body.saved,
                        size: body.size,
                        ..new_message(&save)
                    };
                    self.mailbox.save(message, body).map_err(at(context()))?;
                }
                None => self.disturbed = true,
            }
        }
        self.commit()
    }

    /// Keeps what has come whole.
    pub fn make_safe(&mut self) -> Result<(), SessionError> {
        self.mailbox.abandon_save();
        if self.unsaved.0 > 0 { self.commit() } else { Ok(()) }
    }

    /// What came of it, both ends having told how they stand.
    pub fn into_outcome(self) -> Outcome {
        let low = |value: fn(&items::State) -> u64| {
            let values = [&self.said, &self.heard].into_iter().flatten().map(value);
            values.min().unwrap_or(0)
        };
        let known_to_both = [&self.said, &self.heard]
            .iter()
            .all(|state| state.as_ref().is_some_and(|state| state.last_uidvalidity != 0));
        let common = LastCommon {
            uid_validity: self.uid_validity.map_or(self.ours.uid_validity, UidValidity::get),
            uid: if known_to_both { low(|state| state.last_common_uid.into()) as u32 } else { 0 },
            modseq: if known_to_both { low(|state| state.last_common_modseq) } else { 0 },
            private_modseq: 0,
            messages: self.said.as_ref().and_then(|state| state.last_messages_count).unwrap_or(0),
        };
        Outcome {
            guid: self.ours.mailbox_guid,
            common,
            disturbed: self.disturbed,
            problems: self.problems,
            notes: self.attributes.notes,
            report: self.report,
            bytes: self.bytes,
        }
    }
}

/// By what a body is told from others: its GUID, or its UID if it was asked for by that. No GUID has a zero byte.
fn key(guid: Option<&[u8]>, uid: Option<u32>) -> Vec<u8> {
    match guid {
        Some(guid) if !guid.is_empty() => guid.to_vec(),
        _ => format!("\0{}", uid.unwrap_or(0)).into_bytes(),
    }
}

fn new_message(save: &Save) -> NewMessage {
    NewMessage {
        uid: save.uid,
        guid: save.guid.clone(),
        flags: save.flags.clone(),
        modseq: save.modseq,
        received: None,
        saved: None,
        pop3_uidl: None,
        pop3_order: None,
        size: None,
    }
}

/// Messages without GUIDs that last could only be compared by a hash of their headers; Dovecot 2.3.19 doubles mail in doing so, or crashes.
fn check_guids(
    name: &str,
    ours: &items::Mailbox,
    theirs: &items::Mailbox,
    part: Part,
) -> Result<(), SessionError> {
    let cannot = |who: &str| {
        let text = format!(
            "{name}: {who} cannot keep the GUIDs of messages (mbox, most likely): mail would be doubled, or Dovecot 2.3.19 crash; \
             make it the source of a backup, or convert it to another format first"
        );
        Err(SessionError::Refused { status: 65, text })
    };
    match part {
        Part::Both if !ours.have_save_guids => cannot("the mailbox here"),
        Part::Receiver if !ours.have_save_guids => cannot("the mailbox here"),
        Part::Both | Part::Sender if !theirs.have_save_guids => cannot("the mailbox of the other end"),
        Part::Receiver if !theirs.have_guids => cannot("the mailbox of the other end"),
        Part::Both | Part::Sender | Part::Receiver => Ok(()),
    }
}

/// The UIDVALIDITY to take over: that of the end with more messages, of equal ones the higher; one way that of the source.
fn uid_validity(ours: &items::Mailbox, theirs: &items::Mailbox, part: Part) -> Option<UidValidity> {
    let rank = |line: &items::Mailbox| (line.messages_count, line.uid_validity);
    let taken = match part {
        Part::Both => rank(theirs) > rank(ours),
        Part::Receiver => true,
        Part::Sender => false,
    };
    let other = theirs.uid_validity != ours.uid_validity;
    UidValidity::new(theirs.uid_validity).filter(|_| taken && other)
}

/// Makes a complete list of one that tells only what changed: up to the last common UID the peer had what we have.
fn complete(peer: &mut Vec<MessageChange>, own: &[MessageChange], last: u32) {
    let mut all: BTreeMap<Uid, MessageChange> = own
        .iter()
        .filter(|change| change.uid().get() <= last && matches!(change, MessageChange::Save { .. }))
        .map(|change| (change.uid(), change.clone()))
        .collect();
    for change in std::mem::take(peer) {
        match change {
            MessageChange::Flags { uid, guid, modseq, flags } => {
                if all.contains_key(&uid) {
                    all.insert(uid, MessageChange::Save { uid, guid, modseq, flags, size: None });
                }
            }
            MessageChange::Expunge { uid, .. } => drop(all.insert(uid, change)),
            MessageChange::Save { uid, .. } => drop(all.insert(uid, change)),
        }
    }
    peer.extend(all.into_values());
}
