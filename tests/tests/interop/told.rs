//! What an end of a recorded session said: the job that it was given, and lines that can be compared.

use std::collections::{BTreeMap, BTreeSet};

use dsync_model::{
    Filter, FlagSet, Flags, Keyword, LastCommon, MailboxGuid, Namespaces, SyncState, Timestamp,
};
use dsync_proto::dovecot::items::{self, Item};
use dsync_proto::{Direction, Options, Terminus};
use dsync_session::Job;

use crate::recorded::{Said, Session};

/// What a recorded master was told to do.
pub fn job(stream: &[Said]) -> (Job, Option<SyncState>) {
    let line = stream.iter().find_map(|said| match &said.item {
        Item::Handshake(line) => Some(line),
        _ => None,
    });
    let line = line.expect("a handshake");
    let into = if line.backup_send { Terminus::Initiator } else { Terminus::Responder };
    let direction = match (line.backup_send || line.backup_recv, line.no_backup_overwrite) {
        (false, _) => Direction::TwoWay,
        (true, false) => Direction::Mirror { into },
        (true, true) => Direction::OneWay { into },
    };
    let text = |bytes: &Vec<u8>| String::from_utf8(bytes.clone()).expect("text");
    let exclude = line.exclude_mailboxes.iter().flat_map(|list| &list.0).map(text);
    let namespaces = match &line.sync_ns_prefix {
        Some(prefixes) => Namespaces::Only(text(prefixes).split('\n').map(str::to_owned).collect()),
        None if line.sync_visible_namespaces => Namespaces::All,
        None => Namespaces::Usual,
    };
    let options = Options {
        namespaces,
        full: line.sync_type.as_deref() == Some(b"f"),
        mailboxes: line.sync_box.iter().map(text).collect(),
        exclude: exclude.collect(),
        guids: line.sync_box_guid.into_iter().collect(),
        tree_only: line.no_mail_sync,
        filter: Box::new(filter(line)),
        lock_wait_secs: line.lock_timeout.unwrap_or(0),
        purge: line.purge_remote,
        allow_mass_delete: true,
        ..Options::default()
    };
    let known = stream.iter().take_while(|said| !matches!(said.item, Item::Node(_))).filter_map(|said| {
        match &said.item {
            Item::State(state) => Some((
                state.mailbox_guid,
                LastCommon {
                    uid_validity: state.last_uidvalidity,
                    uid: state.last_common_uid,
                    modseq: state.last_common_modseq,
                    private_modseq: state.last_common_pvt_modseq,
                    messages: state.last_messages_count.unwrap_or(0),
                },
            )),
            _ => None,
        }
    });
    let by_state = line.sync_type.as_deref() == Some(b"s");
    let state = by_state.then(|| SyncState(known.collect()));
    (Job { direction, options }, state)
}

fn filter(line: &items::Handshake) -> Filter {
    let time = |secs: Option<u64>| secs.map(|secs| Timestamp(i64::try_from(secs).expect("in range")));
    let mut filter = Filter {
        since: time(line.sync_since_timestamp),
        until: time(line.sync_until_timestamp),
        size_max: line.sync_max_size,
        ..Filter::default()
    };
    if let Some(flag) = &line.sync_flags {
        let word = std::str::from_utf8(flag).expect("text");
        let set = match word.trim_start_matches('-') {
            "\\Flagged" => FlagSet::system(Flags::FLAGGED),
            keyword => {
                FlagSet { keywords: [Keyword::new(keyword).expect("a keyword")].into(), ..FlagSet::default() }
            }
        };
        if word.starts_with('-') { filter.without = set } else { filter.with = set }
    }
    filter
}

/// What the other end makes its decisions of, by part; lists in their order, mailboxes in that of their GUIDs.
pub fn said(stream: &[Said], end: usize, session: &Session) -> BTreeMap<String, Vec<String>> {
    let mut all: BTreeMap<(&str, Option<MailboxGuid>), Vec<String>> = BTreeMap::new();
    let mut current = None;
    let theirs: BTreeSet<MailboxGuid> = session.streams[1 - end].iter().filter_map(mailbox_of_node).collect();
    for Said { item, body } in stream {
        let (part, line) = match item {
            // Who we are, and how we would hash headers, is our own affair.
            Item::Handshake(line) if end == 0 => ("handshake", format!("{:?}", plain(line))),
            Item::Node(line) if line.mailbox_guid.is_some() || line.subscribed => {
                let name: Vec<_> = line.name.0.iter().map(|part| part.escape_ascii().to_string()).collect();
                let what = (line.mailbox_guid, line.uid_validity, line.uid_next, line.subscribed);
                ("names", format!("{} {what:?}", name.join("|")))
            }
            Item::Deletes(line) => {
                let guids = line.mailboxes.iter().flat_map(|text| text.split(' ').step_by(2));
                let known =
                    guids.filter(|guid| MailboxGuid::parse(guid).is_some_and(|guid| theirs.contains(&guid)));
                ("deleted", known.collect::<BTreeSet<_>>().into_iter().collect::<Vec<_>>().join(" "))
            }
            Item::Mailbox(line) => {
                current = Some(line.mailbox_guid);
                let counters = (line.uid_validity, line.uid_next, line.messages_count, line.highest_modseq);
                (
                    "counters",
                    format!("{counters:?} lost {} ignored {}", line.mailbox_lost, line.mailbox_ignore),
                )
            }
            Item::Attribute(line) => {
                let value =
                    line.value.as_ref().or(body.as_ref()).map(|value| value.escape_ascii().to_string());
                let (kind, key) = (line.kind.escape_ascii(), line.key.escape_ascii());
                ("attributes", format!("{kind}/{key} {value:?} {}", line.deleted))
            }
            Item::Change(line) => ("changes", change(line)),
            Item::Request(line) => (
                "requests",
                format!("{:?} {:?}", line.guid.as_ref().map(|g| g.escape_ascii().to_string()), line.uid),
            ),
            Item::Mail(line) => {
                let guid = line.guid.as_ref().map(|guid| guid.escape_ascii().to_string());
                let date = body.as_ref().and(line.received_date);
                (
                    "mails",
                    format!(
                        "{guid:?} {date:?} {:?}",
                        body.as_ref().map(|body| body.escape_ascii().to_string())
                    ),
                )
            }
            Item::State(line) if current.is_none() => ("state", format!("{line:?}")),
            Item::State(line) => ("agreed", format!("{line:?}")),
            Item::Finish(line) => {
                ("end", format!("{} {:?} {:?}", line.require_full_resync, line.error, line.mail_error))
            }
            Item::Handshake(_) | Item::Node(_) | Item::End | Item::Close => continue,
        };
        all.entry((part, current)).or_default().push(line);
    }
    let mut parts: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for ((part, mailbox), mut lines) in all {
        // Dovecot keeps these in hash tables: they come in no order.
        if ["names", "attributes", "requests", "mails", "state"].contains(&part) {
            lines.sort();
        }
        let mailbox = mailbox.filter(|_| part != "end").map(|guid| format!("{guid} ")).unwrap_or_default();
        let lines = lines.into_iter().filter(|line| !line.is_empty()).map(|line| format!("{mailbox}{line}"));
        parts.entry(part.to_owned()).or_default().extend(lines);
    }
    parts
}

fn mailbox_of_node(said: &Said) -> Option<MailboxGuid> {
    match &said.item {
        Item::Node(line) => line.mailbox_guid,
        _ => None,
    }
}

/// What a handshake asks for.
fn plain(line: &items::Handshake) -> items::Handshake {
    items::Handshake {
        hostname: Vec::new(),
        debug: false,
        no_notify: false,
        virtual_all_box: None,
        empty_hdr_workaround: false,
        import_commit_msgs_interval: None,
        hashed_headers: None,
        alt_char: None,
        lock_timeout: line.lock_timeout.filter(|secs| *secs > 0),
        ..line.clone()
    }
}

fn change(line: &items::Change) -> String {
    // \Recent is nobody's, and what was added and is gone again tells nothing.
    let flags = |hex: Option<items::Hex>| hex.map_or(0, |hex| hex.0 & 0x1f);
    let mut keywords: Vec<String> = line
        .keyword_changes
        .iter()
        .flat_map(|list| &list.0)
        .map(|word| word.escape_ascii().to_string())
        .collect();
    keywords.retain(|word| !word.starts_with('+'));
    keywords.sort();
    let guid = line.guid.as_ref().map(|guid| guid.escape_ascii().to_string());
    let (added, removed, last) = (flags(line.add_flags), flags(line.remove_flags), flags(line.final_flags));
    format!(
        "{} {} {guid:?} modseq {:?} +{added:x} -{removed:x} ={last:x} {keywords:?}",
        line.kind.escape_ascii(),
        line.uid,
        line.modseq
    )
}
