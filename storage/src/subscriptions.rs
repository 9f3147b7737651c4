//! The `subscriptions` file, versions 1 and 2 (storage formats reference, 3.2).

use std::collections::BTreeSet;
use std::fs;

use dsync_model::{MailboxName, mutf7};

use crate::layout::{Layout, Subscriber};
use crate::lock::{DotLock, patience};
use crate::{Fsync, Result, StorageError, disk};

/// What the file holds: names, and lines that are no valid names, which are kept.
struct Content {
    version_2: bool,
    names: Vec<(MailboxName, String)>,
    other: Vec<String>,
}

/// Names that are subscribed.
pub fn read(layout: &Layout) -> Result<BTreeSet<MailboxName>> {
    Ok(content(layout)?.names.into_iter().map(|(name, _)| name).collect())
}

fn content(layout: &Layout) -> Result<Content> {
    let path = layout.subscriptions_file();
    let bytes = match fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Ok(Content { version_2: true, names: Vec::new(), other: Vec::new() });
        }
        Err(error) => return Err(StorageError::io(&path)(error)),
    };
    let text = String::from_utf8_lossy(&bytes);
    let version_2 = text.starts_with("V\t2");
    let mut content = Content { version_2, names: Vec::new(), other: Vec::new() };
    for line in text.lines().skip(if version_2 { 2 } else { 0 }).filter(|line| !line.is_empty()) {
        let parts: Vec<String> = if version_2 {
            line.split('\t').map(unescape).collect()
        } else {
            line.split(layout.stored_separator()).map(str::to_owned).collect()
        };
        match name_of(layout, &parts) {
            Some(name) => content.names.push((name, line.to_owned())),
            None => content.other.push(line.to_owned()),
        }
    }
    Ok(content)
}

/// Adds and removes names.
pub fn change(
    layout: &Layout,
    add: &BTreeSet<MailboxName>,
    remove: &BTreeSet<MailboxName>,
    policy: Fsync,
) -> Result<()> {
    let path = layout.subscriptions_file();
    // The lock file receives the new content in Dovecot; ours holds our name, and the content comes beside it.
    let lock = DotLock::take(&path, patience())?;
    let mut content = content(layout)?;
    content.names.retain(|(name, _)| !remove.contains(name));
    for name in add {
        if content.names.iter().all(|(known, _)| known != name) {
            content.names.push((name.clone(), line_of(layout, name, content.version_2)));
        }
    }
    let mut text = String::from(if content.version_2 { "V\t2\n\n" } else { "" });
    for line in content.names.iter().map(|(_, line)| line).chain(&content.other) {
        text.push_str(line);
        text.push('\n');
    }
    let temporary =
        path.with_file_name(format!(".dsync-{}.tmp", layout.subscriptions.trim_start_matches('.')));
    disk::replace(&path, &temporary, text.as_bytes(), policy)?;
    drop(lock);
    Ok(())
}

/// The name in a line. Dovecot writes that of another namespace as `<prefix><stored name>`, and divides it where ours would be.
fn name_of(layout: &Layout, fields: &[String]) -> Option<MailboxName> {
    let whole = fields.join(&layout.stored_separator().to_string());
    let fitting = layout
        .subscribers
        .iter()
        .filter(|one| whole.strip_prefix(&one.prefix).is_some_and(|rest| !rest.is_empty()));
    let Some(other) = fitting.max_by_key(|one| one.prefix.len()) else {
        return layout.name_of_parts(&fields.iter().map(String::as_str).collect::<Vec<_>>());
    };
    let mut parts = other.parts.clone();
    for part in whole[other.prefix.len()..].split(other.separator) {
        parts.push(if other.utf8 { part.to_owned() } else { mutf7::decode(part)? });
    }
    MailboxName::new(&parts).ok()
}

fn line_of(layout: &Layout, name: &MailboxName, version_2: bool) -> String {
    let ours = layout.stored_separator();
    let below = |one: &&Subscriber| {
        name.parts().len() > one.parts.len() && name.parts().iter().zip(&one.parts).all(|(a, b)| **a == **b)
    };
    let whole = match layout.subscribers.iter().filter(below).max_by_key(|one| one.parts.len()) {
        None => layout.stored_name(name),
        Some(other) => {
            let inner = name.parts()[other.parts.len()..].iter();
            let stored = inner.map(|part| if other.utf8 { part.to_string() } else { mutf7::encode(part) });
            other.prefix.clone() + &stored.collect::<Vec<_>>().join(&other.separator.to_string())
        }
    };
    if version_2 { whole.replace(ours, "\t") } else { whole }
}

fn unescape(part: &str) -> String {
    let mut out = String::with_capacity(part.len());
    let mut chars = part.chars();
    while let Some(c) = chars.next() {
        out.push(match c {
            '\u{1}' => match chars.next() {
                Some('1') => '\u{1}',
                Some('t') => '\t',
                Some('n') => '\n',
                Some('r') => '\r',
                Some('0') => '\0',
                Some(other) => other,
                None => break,
            },
            c => c,
        });
    }
    out
}
