//! Whose value of an attribute counts when the peer is a Dovecot (protocol reference, 7.8): each end decides for itself what to take over.

/// What an end knows of one attribute.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Known {
    /// `None`: its log tells that it was removed.
    pub value: Option<Vec<u8>>,
    /// Seconds since 1970, and the modseq of the change; 0 where nobody knows.
    pub last_change: u64,
    pub modseq: u64,
}

/// Says whether this end takes over what the peer has. `own` is `None` if nothing here knows of the attribute; `last_common`, the modseq
/// of a saved state.
pub fn takes_over(own: Option<&Known>, peer: &Known, last_common: Option<u64>) -> bool {
    let Some(own) = own else { return peer.value.is_some() };
    if peer.value == own.value {
        return false;
    }
    if let Some(last) = last_common
        && (own.modseq > last) != (peer.modseq > last)
    {
        return peer.modseq > last;
    }
    let rank = |known: &Known| (known.last_change, known.modseq, known.value.clone());
    rank(peer) > rank(own)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `text`, `text@modseq`, `text@modseq!time`; `-` instead of the text: removed; `?`: not known.
    fn known(text: &str) -> Option<Known> {
        let (text, last_change) = text.split_once('!').unwrap_or((text, "0"));
        let (value, modseq) = text.split_once('@').unwrap_or((text, "0"));
        let number = |text: &str| text.parse().unwrap();
        let (last_change, modseq) = (number(last_change), number(modseq));
        match value {
            "?" => None,
            "-" => Some(Known { value: None, last_change, modseq }),
            value => Some(Known { value: Some(value.into()), last_change, modseq }),
        }
    }

    #[test]
    fn both_ends_come_to_the_same() {
        // (one end, the other, last common modseq, what both have in the end)
        for (a, b, common, end) in [
            ("?", "x@3", None, "x"),
            ("?", "-@3", None, "-"),
            ("-@3", "-@9", None, "-"),
            ("x@3", "x@9", None, "x"),
            ("private comment of A@3", "changed on B@6", None, "changed on B"),
            ("shared", "-@5", None, "-"),
            ("new@8", "-@5", None, "new"),
            ("a", "b", None, "b"),
            ("a@4", "-@4", None, "a"),
            ("a@9", "b@4!7", None, "b"),
            ("a@9!6", "b@4!7", None, "b"),
            ("a@4", "b@9!7", Some(5), "b"),
            ("a@9", "b@4!7", Some(5), "a"),
            ("a@9", "b@8", Some(5), "a"),
            ("a@3", "b@4", Some(5), "b"),
        ] {
            let (a, b) = (known(a), known(b));
            let value = |own: &Option<Known>, peer: &Option<Known>| {
                let taken = peer.as_ref().filter(|peer| takes_over(own.as_ref(), peer, common));
                taken.or(own.as_ref()).and_then(|known| known.value.clone())
            };
            let expected = known(end).unwrap().value;
            assert_eq!(
                (value(&a, &b), value(&b, &a)),
                (expected.clone(), expected),
                "{a:?} {b:?} {common:?}"
            );
        }
    }
}
