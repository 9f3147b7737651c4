//! Which namespaces take part, and which one keeps a subscription. Pure.

use std::collections::BTreeSet;

use dsync_model::{MailboxName, NameRules, Namespaces};

use super::Namespace;
use crate::layout::{Layout, Subscriber};
use crate::{Location, Result, StorageError};

/// The parts of the prefix.
pub(super) fn parts(namespace: &Namespace) -> Result<Vec<String>> {
    if namespace.prefix.is_empty() {
        return Ok(Vec::new());
    }
    let usual = || match &namespace.location {
        Ok(location) => location.layout().stored_separator(),
        Err(_) => '/',
    };
    let separator = namespace.separator.unwrap_or_else(usual);
    let name = namespace.prefix.strip_suffix(separator).and_then(|prefix| {
        // Not as a name: the prefix of the namespace with INBOX may be called so.
        let parts: Vec<String> = prefix.split(separator).map(str::to_owned).collect();
        MailboxName::new(&parts).ok().map(|_| parts)
    });
    name.ok_or_else(|| {
        let what =
            format!("namespace prefix {:?} is no name with {separator:?} at its end", namespace.prefix);
        StorageError::Location(what)
    })
}

/// Which namespaces take part.
pub(super) fn chosen(namespaces: &[Namespace], choice: &Namespaces) -> Result<Vec<usize>> {
    let all = namespaces.iter().enumerate();
    let which = |filter: &dyn Fn(&Namespace) -> bool| -> Vec<usize> {
        all.clone().filter(|(_, namespace)| filter(namespace)).map(|(index, _)| index).collect()
    };
    let found = match choice {
        Namespaces::Usual => which(&|namespace| namespace.usual),
        Namespaces::All => which(&|namespace| namespace.visible),
        Namespaces::Only(prefixes) => {
            let bare = |prefix: &str| prefix.trim_end_matches(['/', '.']).to_owned();
            let mut found = BTreeSet::new();
            for prefix in prefixes {
                let mut named = which(&|namespace| bare(&namespace.prefix) == bare(prefix));
                if named.is_empty() {
                    named = which(&|namespace| namespace.prefix.is_empty());
                }
                if named.is_empty() {
                    return Err(StorageError::NoMailbox(format!("namespace {prefix:?}")));
                }
                found.extend(named);
            }
            found.into_iter().collect()
        }
    };
    if found.is_empty() {
        return Err(StorageError::Location("no namespace of the configuration takes part".into()));
    }
    Ok(found)
}

/// The namespace that keeps the subscription of a name: the nearest one at or above it that keeps any.
pub(super) fn subscriptions_of(
    namespaces: &[Namespace],
    rules: &NameRules,
    name: &[String],
) -> Option<usize> {
    let inbox = matches!(name, [only] if only == "INBOX");
    let keeps = |index: &usize| {
        let prefix = &rules.namespaces[*index].prefix;
        namespaces[*index].subscriptions && (name.starts_with(prefix) || (inbox && namespaces[*index].inbox))
    };
    (0..namespaces.len()).filter(keeps).max_by_key(|index| match inbox && namespaces[*index].inbox {
        true => usize::MAX,
        false => rules.namespaces[*index].prefix.len(),
    })
}

/// The namespaces whose subscriptions are kept by that at `keeper`, as its files have them.
pub(super) fn subscribers(namespaces: &[Namespace], rules: &NameRules, keeper: usize) -> Vec<Subscriber> {
    let above = &namespaces[keeper].prefix;
    let kept = |(index, namespace): (usize, &Namespace)| {
        let parts = &rules.namespaces[index].prefix;
        let others = !namespace.subscriptions && subscriptions_of(namespaces, rules, parts) == Some(keeper);
        let prefix = namespace.prefix.strip_prefix(above.as_str()).filter(|_| others)?;
        let layout = namespace.location.as_ref().ok().map(Location::layout);
        Some(Subscriber {
            prefix: prefix.to_owned(),
            parts: parts.get(rules.namespaces[keeper].prefix.len()..)?.to_vec(),
            separator: layout.map_or('/', Layout::stored_separator),
            utf8: layout.is_some_and(|layout| layout.utf8),
        })
    };
    namespaces.iter().enumerate().filter_map(kept).collect()
}

pub(super) fn texts(name: &MailboxName) -> Vec<String> {
    name.parts().iter().map(|part| part.to_string()).collect()
}
