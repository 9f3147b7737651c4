use std::collections::BTreeMap;

use dsync_model::Flags;

use super::*;

fn uid(n: u32) -> Uid {
    Uid::new(n).unwrap()
}

/// `4:m1` a message, `4:m1+8` with flags, `-4:m1` an expunge with a GUID, `-4` one without, `4~m1+8` changed flags.
fn list(text: &str) -> Vec<MessageChange> {
    let change = |word: &str| {
        if let Some(word) = word.strip_prefix('-') {
            let (number, guid) = word.split_once(':').unwrap_or((word, ""));
            return MessageChange::Expunge {
                uid: uid(number.parse().unwrap()),
                guid: MessageGuid::new(guid),
            };
        }
        let (word, flags) = word.split_once('+').unwrap_or((word, "0"));
        let flags = FlagDelta::standing(FlagSet::system(Flags::from_bits(flags.parse().unwrap()).unwrap()));
        let (number, guid) = word.split_once([':', '~']).unwrap();
        let (uid, guid) = (uid(number.parse().unwrap()), MessageGuid::new(guid).unwrap());
        let modseq = ModSeq::new(1).unwrap();
        match word.contains('~') {
            true => MessageChange::Flags { uid, guid, modseq, flags },
            false => MessageChange::Save { uid, guid, modseq, flags, size: None },
        }
    };
    text.split_whitespace().map(change).collect()
}

fn terms(end: End, next: u32, peer_next: u32) -> Terms<'static> {
    Terms {
        end,
        uid_next: uid(next),
        peer_uid_next: uid(peer_next),
        peer_modseq: ModSeq::new(10).unwrap(),
        last_common: None,
        kept_back: None,
        hashes: None,
    }
}

fn told(plan: &Plan) -> String {
    let mut words: Vec<String> = Vec::new();
    for action in plan.actions.iter().chain(&plan.expunges) {
        words.push(match action {
            MessageAction::Renumber { from, to } => format!("{from}>{to}"),
            MessageAction::Flags { uid, add, remove, .. } => {
                format!("{uid}+{}-{}", add.system.bits(), remove.system.bits())
            }
            MessageAction::Expunge { uid, .. } => format!("-{uid}"),
        });
    }
    for save in &plan.saves {
        words.push(match save.from {
            From::Peer(from) => format!("{}:{}<{from}", save.uid, save.guid),
            From::Here(from) => format!("{}:{}={from}", save.uid, save.guid),
        });
    }
    format!("{} | {}", words.join(" "), plan.last_common)
}

#[test]
fn both_ends_number_alike() {
    // (master's list and UIDNEXT, slave's, what each does, last common UID)
    for (what, a, a_next, b, b_next, master, slave) in [
        ("capture 07", "2:g 4:m418", 5, "-1:x 2:g -3:y 4:m431", 5, "4>5 6:m431<4 | 6", "4>6 5:m418<4 | 6"),
        ("a new mail here", "1:a 2:b", 3, "1:a", 2, " | 2", "2:b<2 | 2"),
        ("a gap before a common mail", "1:a 2:b 3:c", 4, "1:a 3:c", 4, "-2 | 3", " | 3"),
        ("the last is restored", "1:a 2:b", 3, "1:a", 3, "2>3 | 3", "3:b<2 | 3"),
        ("unless the log knows", "1:a 2:b", 3, "1:a -2:b", 3, "-2 | 2", " | 2"),
        ("the log has another mail", "1:a 2:b 3:c", 4, "1:a -2:x 3:c", 4, "2>4 | 4", "4:b<2 | 4"),
        // Dovecot does not look into its log for what is gone at both ends when it has no message left.
        ("gone at both is no proof", "1:a -2:b", 3, "-2:b", 3, "1>3 | 3", "3:a<1 | 3"),
        ("same mail, other UIDs", "1:a 2:b", 3, "1:b 2:a", 3, "2>4 1>3 | 4", "2>3 1>4 | 4"),
        ("twice here", "1:a 2:a", 3, "1:a", 2, " | 2", "2:a<2 | 2"),
        ("empty", "", 1, "", 1, " | 0", " | 0"),
    ] {
        let (a, b) = (list(a), list(b));
        let ours = messages(&a, &b, &terms(End::Initiator, a_next, b_next)).unwrap();
        let theirs = messages(&b, &a, &terms(End::Responder, b_next, a_next)).unwrap();
        if !what.contains("other UIDs") && !what.contains("another mail") {
            assert_eq!((told(&ours), told(&theirs)), (master.into(), slave.into()), "{what}");
        }
        assert_eq!(outcome(&a, &ours), outcome(&b, &theirs), "{what}");
        assert_eq!(ours.last_common, theirs.last_common, "{what}");
    }
}

fn outcome(list: &[MessageChange], plan: &Plan) -> BTreeMap<u32, (String, u8)> {
    let mut mails: BTreeMap<u32, (String, u8)> = lists(list, None)
        .mails
        .iter()
        .map(|m| (m.uid.get(), (m.guid.to_string(), m.flags.current.system.bits())))
        .collect();
    for action in plan.actions.iter().chain(&plan.expunges) {
        match action {
            MessageAction::Renumber { from, to } => {
                let mail = mails.remove(&from.get()).expect("is there");
                assert!(mails.insert(to.get(), mail).is_none(), "{to} is taken");
            }
            MessageAction::Flags { uid, add, remove, .. } => {
                let mail = mails.get_mut(&uid.get()).expect("is there");
                mail.1 = (mail.1 | add.system.bits()) & !remove.system.bits();
            }
            MessageAction::Expunge { uid, .. } => drop(mails.remove(&uid.get()).expect("is there")),
        }
    }
    for save in &plan.saves {
        let mail = (save.guid.to_string(), save.flags.system.bits());
        assert!(mails.insert(save.uid.get(), mail).is_none(), "{} is taken", save.uid);
    }
    mails
}

/// A Dovecot that has no message left believes nothing of its log: what both ends take for common is not the same.
#[test]
fn what_the_peer_takes_for_common_may_be_less() {
    let hashes = |list: &[(u32, &str)]| {
        list.iter().map(|(number, hash)| (uid(*number), MessageGuid::new(hash).unwrap())).collect()
    };
    let hashes = Hashes { ours: hashes(&[(5, "e")]), theirs: hashes(&[(1, "a")]) };
    let terms = Terms { hashes: Some(&hashes), ..terms(End::Initiator, 6, 5) };
    let (own, peer) = (list("-1:x -2:b 5:e"), list("1:a -2:b"));
    assert_eq!(messages(&own, &peer, &terms).unwrap().common, 2);
    assert_eq!(common_there(&own, &peer, &terms, &hashes).unwrap(), 0);
}

#[test]
fn any_two_mailboxes_become_equal() {
    let mut seed = 0x6473_796e_6300_0001_u64;
    let mut chance = |below: u64| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed % below
    };
    for round in 0..20_000 {
        // Odd rounds: a past in common, and whole logs of what became of it. Even ones: anything, and no log.
        let past: Vec<u64> =
            if round % 2 == 1 { (0..chance(6)).map(|_| chance(6)).collect() } else { Vec::new() };
        let mut mailbox = || {
            let letter = |guid: u64| char::from(b'a' + guid as u8);
            let (mut text, mut uid) = (String::new(), 1);
            for guid in &past {
                let kept = chance(3) > 0;
                let flags = if kept { format!("+{}", chance(3)) } else { String::new() };
                text.push_str(&format!("{}{uid}:{}{flags} ", if kept { "" } else { "-" }, letter(*guid)));
                uid += 1;
            }
            for _ in 0..chance(5) {
                uid += if past.is_empty() { chance(3) } else { 0 };
                text.push_str(&format!("{uid}:{}+{} ", letter(chance(6)), chance(3)));
                uid += 1;
            }
            (text, uid as u32)
        };
        let ((a, a_next), (b, b_next)) = (mailbox(), mailbox());
        let (x, y) = (list(&a), list(&b));
        let ours = messages(&x, &y, &terms(End::Initiator, a_next, b_next)).unwrap();
        let theirs = messages(&y, &x, &terms(End::Responder, b_next, a_next)).unwrap();
        let (left, right) = (outcome(&x, &ours), outcome(&y, &theirs));
        let shape = |m: &BTreeMap<u32, (String, u8)>| -> Vec<(u32, String)> {
            m.iter().map(|(uid, mail)| (*uid, mail.0.clone())).collect()
        };
        assert_eq!(shape(&left), shape(&right), "round {round}: [{a}] {a_next} [{b}] {b_next}");
        assert_eq!(left, right, "round {round}: flags: [{a}] {a_next} [{b}] {b_next}");
    }
}

#[test]
fn flags_go_by_log_then_by_modseq_then_to_the_master() {
    let (none, seen) = (FlagSet::default(), FlagSet::system(Flags::SEEN));
    let guid = MessageGuid::new("g").unwrap();
    let check = |ours: &FlagDelta, our: u64, theirs: &FlagDelta, their: u64, expected: &FlagSet| {
        let mail = |flags, modseq| Mail {
            uid: uid(1),
            guid: &guid,
            identity: &guid,
            modseq: ModSeq::new(modseq).unwrap(),
            flags,
        };
        let (a, b) = (mail(ours, our), mail(theirs, their));
        assert_eq!(merge_flags(&a, &b, End::Initiator), *expected, "{ours:?} {our} {theirs:?} {their}");
        assert_eq!(merge_flags(&b, &a, End::Responder), *expected, "{ours:?} {our} {theirs:?} {their}");
    };
    let standing = |flags: &FlagSet| FlagDelta::standing(flags.clone());
    let (set, cleared) = (FlagDelta::between(&none, seen.clone()), FlagDelta::between(&seen, none.clone()));
    check(&set, 1, &standing(&none), 9, &seen);
    check(&cleared, 1, &standing(&seen), 9, &none);
    check(&set, 1, &cleared, 9, &none);
    check(&set, 9, &cleared, 1, &seen);
    check(&standing(&seen), 2, &standing(&none), 1, &seen);
    check(&standing(&seen), 1, &standing(&none), 1, &seen);
    check(&standing(&none), 1, &standing(&seen), 1, &none);
}

#[test]
fn with_a_state_only_what_the_lists_name_changes() {
    let known = Terms { last_common: Some(3), ..terms(End::Responder, 5, 6) };
    let own = list("1:a 2:b 4:d");
    let plan = messages(&own, &list("1~a+8 -2:b 5:e"), &known).unwrap();
    assert_eq!(told(&plan), "1+8-0 4>6 -2 5:e<5 | 6");
    let other = messages(&own, &list("1~x+8 -2:x"), &known).unwrap();
    assert_eq!(told(&other), "4>6 | 6", "other messages than ours");
}

#[test]
fn lists_that_cannot_be_are_refused() {
    let check = |peer: &str| messages(&[], &list(peer), &terms(End::Initiator, 1, 5)).unwrap_err();
    assert_eq!(check("2:a 2:b"), Desync::Order(uid(2)));
    assert_eq!(check("5:a"), Desync::Uid(uid(5)));
    assert_eq!(check("1~a+8"), Desync::Uid(uid(1)));
    let full = terms(End::Initiator, u32::MAX, 2);
    let own = list(&format!("1:x {}:y", u32::MAX - 1));
    assert!(matches!(messages(&own, &list("1:a"), &full), Err(Desync::Exhausted(_))));
}

/// Words with a hash: `4:guid/hash`.
fn hashed(text: &str) -> (Vec<MessageChange>, BTreeMap<Uid, MessageGuid>) {
    let words: Vec<_> =
        text.split_whitespace().map(|word| word.split_once('/').unwrap_or((word, ""))).collect();
    let changes = list(&words.iter().map(|(word, _)| *word).collect::<Vec<_>>().join(" "));
    let named = changes
        .iter()
        .zip(&words)
        .filter_map(|(change, (_, hash))| Some((change.uid(), MessageGuid::new(hash)?)));
    let hashes = named.collect();
    (changes, hashes)
}

#[test]
fn without_guids_hashes_at_one_uid_are_compared() {
    for (what, a, a_next, b, b_next, master, slave) in [
        ("other GUIDs", "1:a/x 2:b/y", 3, "1:p/x 2:q/y", 3, " | 2", " | 2"),
        ("one more here", "1:a/x 2:b/y", 3, "1:p/x", 2, " | 2", "2:b<2 | 2"),
        ("a gap before a common mail", "1:a/x 2:b/y 3:c/z", 4, "1:p/x 3:r/z", 4, "-2 | 3", " | 3"),
        ("the log names another GUID", "1:a/x 2:b/y 3:c/z", 4, "1:p/x -2:q 3:r/z", 4, "-2 | 3", " | 3"),
        ("the log names this GUID", "1:a/x 2:b/y", 3, "1:p/x -2:b", 3, "-2 | 2", "3:b<2 | 3"),
        ("new at both ends", "1:a/x 2:b/z", 3, "1:p/x 2:q/y", 3, "2>4 3:q<2 | 4", "2>3 4:b<2 | 4"),
        ("one GUID, other headers", "1:a/x 2:a/y", 3, "", 1, " | 2", "1:a<1 2:a<2 | 2"),
        ("the same at other UIDs", "1:a/x", 2, "1:p/y 2:q/x", 3, "1>3 2:q<2 4:p<1 | 4", "1>4 3:a<1 | 4"),
    ] {
        let ((a, a_hashes), (b, b_hashes)) = (hashed(a), hashed(b));
        let ours = Hashes { ours: a_hashes.clone(), theirs: b_hashes.clone() };
        let theirs = Hashes { ours: b_hashes, theirs: a_hashes };
        let ours = messages(&a, &b, &Terms { hashes: Some(&ours), ..terms(End::Initiator, a_next, b_next) });
        let theirs =
            messages(&b, &a, &Terms { hashes: Some(&theirs), ..terms(End::Responder, b_next, a_next) });
        assert_eq!((told(&ours.unwrap()), told(&theirs.unwrap())), (master.into(), slave.into()), "{what}");
    }
}
