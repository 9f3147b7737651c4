//! The text of a location: driver, path, options.

use std::path::{Component, Path, PathBuf};

use super::detect::{self, Owner};
use crate::layout::{Format, Index, Kind, Layout};

/// Drivers of Dovecot's that keep no mail in files of ours to read.
const OTHER_DRIVERS: [&str; 6] = ["imapc", "imap", "pop3c", "obox", "cydir", "virtual"];

/// Reads a location; the error says what is wrong with it.
pub(super) fn layout(text: &str, owner: Owner<'_>) -> Result<Layout, String> {
    let mut pieces = split(text).into_iter();
    let first = pieces.next().unwrap_or_default();
    let rest = pieces.collect::<Vec<_>>();
    let is_driver = !first.is_empty() && first.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
    let (driver, root, options) = match rest.split_first() {
        Some((root, options)) if is_driver => (first.as_str(), root.as_str(), options),
        None if is_driver => return Err("has no path; a Maildir is written maildir:/path".into()),
        _ => ("auto", first.as_str(), &rest[..]),
    };
    let format = match driver {
        "maildir" => Some(Format::Maildir),
        "mbox" => Some(Format::Mbox),
        "sdbox" | "dbox" => Some(Format::Sdbox),
        "mdbox" => Some(Format::Mdbox),
        "auto" => None,
        driver if OTHER_DRIVERS.contains(&driver) => {
            return Err(format!("the format {driver} is not supported"));
        }
        _ => return Err(format!("unknown format {driver}")),
    };
    if root.is_empty() {
        return Err("has no path".into());
    }
    let root = absolute(root, owner.home)?;
    let mut layout = match format {
        Some(format) => Layout::new(format, root),
        // What is not there yet becomes a Maildir.
        None if !root.exists() => Layout::new(Format::Maildir, root),
        None => detect::at(&root, owner)
            .ok_or("holds no mail in a format that is known; write maildir:/path for a new Maildir")?,
    };
    for option in options.iter().filter(|option| !option.is_empty()) {
        set(&mut layout, option, owner.home)?;
    }
    check(&mut layout)?;
    Ok(layout)
}

/// Takes one option. An empty value is none.
fn set(layout: &mut Layout, option: &str, home: Option<&Path>) -> Result<(), String> {
    let (key, value) = match option.split_once('=') {
        Some((key, value)) => (key, Some(value)),
        None => (option, None),
    };
    let path = |value: &str| if value.is_empty() { Ok(None) } else { absolute(value, home).map(Some) };
    let name = |value: &str| match value {
        "" => Ok(None),
        "." | ".." => Err(format!("{key}={value} is no file name")),
        _ if value.contains(|c: char| c == '/' || c.is_control()) => {
            Err(format!("{key}={value} is no file name"))
        }
        _ => Ok(Some(value.to_owned())),
    };
    match (key, value) {
        ("UTF-8", None) => layout.utf8 = true,
        ("ALTNOCHECK", _) => layout.alt_no_check = true,
        // Names are shown, checked and listed here by our own rules.
        ("NO-NOSELECT" | "NO-FS-VALIDATION" | "ITERINDEX", _) => {}
        ("BROKENCHAR", Some(value)) if value.chars().count() <= 1 => {}
        ("INBOX", Some(value)) => layout.inbox = path(value)?,
        ("INDEX", Some("MEMORY")) => layout.index = Index::Memory,
        ("INDEX", Some(value)) => layout.index = path(value)?.map_or(Index::Beside, Index::At),
        ("INDEXCACHE", Some(value)) => layout.cache = path(value)?,
        ("CONTROL", Some(value)) => layout.control = path(value)?,
        ("ALT", Some(value)) => layout.alt = path(value)?,
        ("VOLATILEDIR", Some(value)) => layout.volatile = path(value)?,
        ("LAYOUT", Some(value)) => {
            layout.kind = match value.to_ascii_lowercase().as_str() {
                "maildir++" => Kind::MaildirPlusPlus,
                "fs" => Kind::Fs,
                "index" => Kind::Index,
                _ => return Err(format!("the layout {value} is not supported")),
            }
        }
        ("SUBSCRIPTIONS", Some(value)) => {
            if let Some(file) = name(value)? {
                layout.subscriptions = file;
            }
        }
        ("DIRNAME" | "FULLDIRNAME", Some(value)) => {
            if let Some(directory) = name(value)? {
                layout.dirname = Some(directory);
                layout.full_dirname = key == "FULLDIRNAME";
            }
        }
        ("MAILBOXDIR", Some(value)) => {
            if let Some(directory) = inner_path(value) {
                layout.mailbox_dir = Some(directory);
            } else if !value.is_empty() {
                return Err(format!("{key}={value} is no path below the root"));
            }
        }
        ("LISTINDEX", Some(value)) => {
            if value.starts_with(['/', '~']) {
                let path = absolute(value, home)?;
                layout.list_index = path.to_str().ok_or("LISTINDEX is not UTF-8")?.to_owned();
            } else if let Some(file) = inner_path(value) {
                layout.list_index = file;
            } else if !value.is_empty() {
                return Err(format!("{key}={value} is no path below the index root"));
            }
        }
        ("INDEXPVT", Some(_)) => return Err("private indexes (INDEXPVT) are not supported".into()),
        _ => return Err(format!("unknown option {option}")),
    }
    Ok(())
}

/// Refuses what does not go together, and brings the rest to one form.
fn check(layout: &mut Layout) -> Result<(), String> {
    let format = layout.format;
    let dbox = matches!(format, Format::Sdbox | Format::Mdbox);
    if layout.index == Index::At(layout.root.clone()) {
        layout.index = Index::Beside;
    }
    layout.control.take_if(|control| *control == layout.root);
    layout.cache.take_if(|cache| match &layout.index {
        Index::At(index) => index == cache,
        Index::Beside => *cache == layout.root,
        Index::Memory => true,
    });
    match layout.kind {
        Kind::MaildirPlusPlus if format != Format::Maildir => {
            return Err(format!("LAYOUT=maildir++ is not supported for {format}"));
        }
        Kind::MaildirPlusPlus if layout.dirname.is_some() => {
            return Err("DIRNAME is not possible with LAYOUT=maildir++; use LAYOUT=fs".into());
        }
        // Dovecot then has the indexes beside the mailboxes, under the same names.
        Kind::Index if format == Format::Mbox && layout.dirname.is_some() => {
            return Err("DIRNAME is not possible with mbox and LAYOUT=index".into());
        }
        // Mailboxes of this layout hold nothing but their mail.
        Kind::Index => layout.dirname = None,
        Kind::MaildirPlusPlus | Kind::Fs => {}
    }
    if layout.alt.is_some() && !dbox {
        return Err(format!("ALT is not possible with {format}"));
    }
    if dbox && layout.index == Index::Memory {
        return Err(format!("INDEX=MEMORY is not possible with {format}: the index is the mailbox"));
    }
    if format == Format::Mbox && layout.dirname.is_some() && !matches!(layout.index, Index::At(_)) {
        return Err("DIRNAME needs INDEX=path with mbox".into());
    }
    Ok(())
}

/// A relative path that leads nowhere else, without a slash at its end; `None` if it is not one.
fn inner_path(value: &str) -> Option<String> {
    let inner = Path::new(value).components().all(|part| matches!(part, Component::Normal(_)));
    let value = value.trim_end_matches('/');
    (inner && !value.is_empty() && !value.contains(char::is_control)).then(|| value.to_owned())
}

/// Splits at `:`; `::` stands for one literal colon.
fn split(text: &str) -> Vec<String> {
    let mut pieces = Vec::new();
    let mut last = String::new();
    let mut rest = text;
    while let Some((piece, after)) = rest.split_once(':') {
        last.push_str(piece);
        rest = match after.strip_prefix(':') {
            Some(glued) => {
                last.push(':');
                glued
            }
            None => {
                pieces.push(std::mem::take(&mut last));
                after
            }
        };
    }
    last.push_str(rest);
    pieces.push(last);
    pieces
}

/// Makes a path absolute. `~` stands for `home`, `~bob` for the home of a system user.
fn absolute(path: &str, home: Option<&Path>) -> Result<PathBuf, String> {
    if path.contains('\0') {
        return Err("a path has a null byte".into());
    }
    let path = match path.strip_prefix('~') {
        None => PathBuf::from(path),
        Some(rest) => {
            let (user, below) = rest.split_once('/').unwrap_or((rest, ""));
            let home = match home {
                _ if !user.is_empty() => system_home(user)?,
                Some(home) => home.to_owned(),
                None => return Err("~ stands for a home directory, and the user has none".into()),
            };
            home.join(below.trim_start_matches('/'))
        }
    };
    std::path::absolute(path).map_err(|_| "the current directory is gone".into())
}

fn system_home(user: &str) -> Result<PathBuf, String> {
    match nix::unistd::User::from_name(user) {
        Ok(Some(found)) => Ok(found.dir),
        Ok(None) => Err(format!("~{user}: no such system user")),
        Err(errno) => Err(format!("~{user}: the system users cannot be asked: {errno}")),
    }
}
