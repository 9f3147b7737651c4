//! Compares both ends message by message, and changes nothing: the responder lists what it has, the initiator looks for what
//! differs.

use std::collections::{BTreeMap, VecDeque};

use dsync_merge::{Both, End};
use dsync_model::{MailboxGuid, MailboxName, MessageChange, Since};
use dsync_proto::{List, Listed, Message, Purpose};
use dsync_storage::filter::{Crlf, body_pieces};
use dsync_storage::{Mailbox, Storage as _, StorageError};

use super::scope::Scope;
use super::{Brain, Stage, at};
use crate::SessionError;

/// Messages that are read in one step, and told in one message.
const STEP_MESSAGES: usize = 50;
/// Most messages that a peer may list in one mailbox.
const LISTED_MAX: usize = 20_000_000;

/// How far the comparison is.
#[derive(Default)]
pub(super) struct Verifying {
    /// Mailboxes still to be read here, in the order of names.
    left: VecDeque<(MailboxName, MailboxGuid)>,
    reading: Option<Reading>,
    /// What the responder listed, by name; complete for all names before the last until its end.
    theirs: BTreeMap<MailboxName, Vec<Listed>>,
    theirs_done: bool,
    end_said: bool,
}

struct Reading {
    name: MailboxName,
    mailbox: Box<dyn Mailbox>,
    left: VecDeque<MessageChange>,
    mine: Vec<Listed>,
}

impl Brain {
    fn bodies(&self) -> Option<bool> {
        match self.job.as_ref().map(|job| job.options.purpose) {
            Some(Purpose::Verify { bodies }) => Some(bodies),
            _ => None,
        }
    }

    /// Both trees are here: what they say is compared first.
    pub(super) fn begin_verifying(&mut self) -> Result<bool, SessionError> {
        let options = self.job.as_ref().map(|job| job.options.clone()).unwrap_or_default();
        // What an end only calls otherwise is no difference.
        let trees = dsync_merge::common_trees(Both([&self.trees[0], &self.trees[1]]), self.rules());
        let trees = Both([&trees.0[0], &trees.0[1]]);
        let scope = Scope::new(trees, None, &options, &self.unlisted, Both([&self.rules[0], &self.rules[1]]));
        if let Some(missing) = scope.missing() {
            let text = format!("no mailbox of either end is {missing}");
            return Err(SessionError::Refused { status: 68, text });
        }
        let mut names: Vec<&MailboxName> = trees.0.iter().flat_map(|tree| tree.keys()).collect();
        names.sort();
        names.dedup();
        let mut differences = Vec::new();
        for name in names.into_iter().filter(|name| scope.has(name)) {
            let nodes = trees.0.map(|tree| tree.get(name));
            let subscribed = nodes.map(|node| node.is_some_and(|node| node.subscribed));
            if subscribed[0] != subscribed[1] {
                let ends = if subscribed[0] { ["", "not "] } else { ["not ", ""] };
                differences.push(format!("{name}: {}subscribed here, {}subscribed there", ends[0], ends[1]));
            }
            match nodes.map(|node| node.and_then(|node| node.mailbox.as_ref())) {
                [Some(a), Some(b)] => {
                    if a.guid != b.guid {
                        differences.push(format!("{name}: mailbox GUID {} here, {} there", a.guid, b.guid));
                    }
                    if a.uid_validity != b.uid_validity {
                        let (a, b) = (a.uid_validity, b.uid_validity);
                        differences.push(format!("{name}: UIDVALIDITY {a} here, {b} there"));
                    }
                    let mine = if self.end == End::Initiator { a.guid } else { b.guid };
                    self.verifying.left.push_back((name.clone(), mine));
                }
                [Some(_), None] => differences.push(format!("{name}: is not there")),
                [None, Some(_)] => differences.push(format!("{name}: is not here")),
                [None, None] => {}
            }
        }
        self.counters.mailboxes = self.verifying.left.len() as u64;
        self.progress.mailboxes = self.counters.mailboxes;
        if self.end == End::Initiator {
            self.report.differences = differences;
        }
        self.stage = Stage::Verifying;
        Ok(true)
    }

    pub(super) fn take_listing(
        &mut self,
        name: MailboxName,
        listed: Vec<Listed>,
    ) -> Result<(), SessionError> {
        let verifying = &mut self.verifying;
        let ascending = verifying.theirs.last_key_value().is_none_or(|(last, _)| *last <= name);
        let list = verifying.theirs.entry(name).or_default();
        let follows = list.last().zip(listed.first()).is_none_or(|(last, first)| last.uid < first.uid);
        if !ascending || !follows || verifying.theirs_done || list.len() + listed.len() > LISTED_MAX {
            return Err(SessionError::Peer("lists messages out of turn".into()));
        }
        list.extend(listed);
        Ok(())
    }

    pub(super) fn end_listing(&mut self) {
        self.verifying.theirs_done = true;
    }

    /// One step: some messages are read, or a mailbox is compared.
    pub(super) fn verify(&mut self) -> Result<bool, SessionError> {
        let bodies = self.bodies().unwrap_or(false);
        let verifying = &mut self.verifying;
        if let Some(reading) = &mut verifying.reading {
            let batch: Vec<Listed> = (0..STEP_MESSAGES)
                .map_while(|_| reading.left.pop_front())
                .filter_map(|change| listed(&mut *reading.mailbox, change, bodies))
                .collect();
            self.progress.sent += batch.len() as u64;
            let name = reading.name.clone();
            if self.end == End::Responder {
                if reading.left.is_empty() {
                    verifying.reading = None;
                    self.progress.settled += 1;
                }
                if !batch.is_empty() {
                    self.say(Message::Listing(name, batch));
                }
                return Ok(true);
            }
            reading.mine.extend(batch);
            // The responder is done with a mailbox when it lists the next one.
            let last = verifying.theirs.last_key_value();
            let complete = verifying.theirs_done || last.is_some_and(|(last, _)| *last > name);
            if reading.left.is_empty() && complete {
                let mine = verifying.reading.take().map(|reading| reading.mine).unwrap_or_default();
                let theirs = verifying.theirs.remove(&name).unwrap_or_default();
                let before = self.report.differences.len();
                compare(&name, &mine, &theirs, &mut self.report.differences);
                self.progress.settled += 1;
                if self.report.differences.len() == before {
                    self.report.shown_equal += 1;
                }
                return Ok(true);
            }
            return Ok(!reading.left.is_empty());
        }
        if let Some((name, guid)) = verifying.left.pop_front() {
            let place = at(format!("{name}: cannot be read"));
            let opened = self.storage.open(guid).and_then(|mut mailbox| {
                let changes = mailbox.changes(Since::All)?;
                Ok((mailbox, changes))
            });
            let (mailbox, changes) = opened.map_err(place)?;
            self.progress.asked += changes.list.len() as u64;
            self.verifying.reading =
                Some(Reading { name, mailbox, left: changes.list.into(), mine: Vec::new() });
            return Ok(true);
        }
        if self.end == End::Initiator && !verifying.theirs_done {
            return Ok(false);
        }
        if self.end == End::Responder && !verifying.end_said {
            verifying.end_said = true;
            self.say(Message::End(List::Listing));
            return Ok(true);
        }
        self.stage = Stage::Finishing;
        Ok(true)
    }
}

/// One message as it lies here; `None` for what a log tells of messages that are gone.
fn listed(mailbox: &mut dyn Mailbox, change: MessageChange, bodies: bool) -> Option<Listed> {
    let MessageChange::Save { uid, guid, flags, .. } = change else { return None };
    let mut listed = Listed {
        uid,
        flags: flags.current,
        received: None,
        size: 0,
        content: None,
        problem: None,
        guid: guid.clone(),
    };
    let problem = match mailbox.body(uid, Some(&guid)) {
        Ok(Some(mut body)) => {
            listed.received = body.received;
            let (mut crlf, mut hash) = (Crlf::default(), blake3::Hasher::new());
            let read = body_pieces(&mut body, &mut |piece| {
                if bodies {
                    crlf.feed(piece, &mut |bytes| {
                        hash.update(bytes);
                    });
                } else {
                    crlf.count(piece);
                }
                true
            });
            listed.size = crlf.size;
            listed.content = bodies.then(|| *hash.finalize().as_bytes());
            read.err().map(|error| error.to_string())
        }
        Ok(None) => Some("is gone".to_owned()),
        Err(error) => Some(describe(&error)),
    };
    listed.problem = problem.map(|mut text| {
        text.truncate(text.floor_char_boundary(dsync_proto::TEXT_BYTES_MAX));
        text
    });
    Some(listed)
}

fn describe(error: &StorageError) -> String {
    super::mailbox::chain(error)
}

/// Tells what differs, a line for each.
fn compare(name: &MailboxName, mine: &[Listed], theirs: &[Listed], differences: &mut Vec<String>) {
    let (mut ours, mut others) = (mine.iter().peekable(), theirs.iter().peekable());
    let mut tell =
        |listed: &Listed, text: String| differences.push(format!("{name}: UID {}: {text}", listed.uid));
    loop {
        let (a, b) = match (ours.peek(), others.peek()) {
            (Some(a), Some(b)) if a.uid == b.uid => (*a, *b),
            (Some(a), b) if b.is_none_or(|b| a.uid < b.uid) => {
                tell(a, format!("is not there ({})", a.guid));
                ours.next();
                continue;
            }
            (_, Some(b)) => {
                tell(b, format!("is not here ({})", b.guid));
                others.next();
                continue;
            }
            _ => return,
        };
        ours.next();
        others.next();
        for (end, listed) in [("here", a), ("there", b)] {
            if let Some(problem) = &listed.problem {
                tell(listed, format!("cannot be read {end}: {}", problem.escape_debug()));
            }
        }
        if a.guid.bits() != b.guid.bits() {
            tell(a, format!("GUID {} here, {} there", a.guid, b.guid));
            continue;
        }
        if a.flags.system != b.flags.system {
            tell(a, format!("flags ({:?}) here, ({:?}) there", a.flags.system, b.flags.system));
        }
        if a.flags.keywords != b.flags.keywords {
            let text = |listed: &Listed| {
                listed.flags.keywords.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
            };
            tell(a, format!("keywords ({}) here, ({}) there", text(a), text(b)));
        }
        if a.problem.is_some() || b.problem.is_some() {
            continue;
        }
        if let (Some(one), Some(two)) = (a.received, b.received)
            && one != two
        {
            tell(a, format!("received {} here, {} there (seconds since 1970)", one.0, two.0));
        }
        if a.size != b.size {
            tell(a, format!("{} bytes here, {} there", a.size, b.size));
        } else if a.content != b.content {
            tell(a, "the contents differ".to_owned());
        }
    }
}
