//! Where mail lies: `maildir:~/Maildir:LAYOUT=fs`, and the storage it stands for (storage formats reference, 2.1).

use std::path::{Path, PathBuf};

use crate::layout::{Format, Index, Kind, Layout};
use crate::maildir::Maildir;
use crate::{Fsync, Result, Storage, StorageError};

/// A parsed location.
#[derive(Clone, Debug)]
pub struct Location {
    layout: Layout,
}

impl Location {
    /// Reads a location as `mail_location` has it, variables expanded. `~/` is `home`.
    pub fn parse(text: &str, home: Option<&Path>) -> Result<Location> {
        let wrong = |what: String| StorageError::Location(format!("mail location {text:?}: {what}"));
        let mut pieces = split(text);
        let first = pieces.remove(0);
        let is_driver = !first.is_empty() && first.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
        let (driver, root) = if is_driver && !pieces.is_empty() {
            (first, pieces.remove(0))
        } else if is_driver {
            return Err(wrong("has no path; a Maildir is written maildir:/path".into()));
        } else {
            ("auto".into(), first)
        };
        match driver.as_str() {
            "maildir" | "auto" => {}
            "mbox" | "sdbox" | "mdbox" | "dbox" | "imapc" | "pop3c" | "imap" => {
                return Err(wrong(format!("the format {driver} is not supported yet; maildir is")));
            }
            _ => return Err(wrong(format!("unknown format {driver}"))),
        }
        if root.is_empty() {
            return Err(wrong("has no path".into()));
        }
        let path = |path: &str| absolute(path, home).map_err(|what| wrong(what.into()));
        let mut layout = Layout::new(Format::Maildir, path(&root)?);
        for piece in pieces.iter().filter(|piece| !piece.is_empty()) {
            match piece.split_once('=').unwrap_or((piece, "")) {
                ("UTF-8", "") => layout.utf8 = true,
                ("INDEX", "MEMORY") => layout.index = Index::Memory,
                ("LAYOUT", "maildir++" | "Maildir++") => layout.kind = Kind::MaildirPlusPlus,
                ("LAYOUT", "fs") => layout.kind = Kind::Fs,
                ("LAYOUT", other) => return Err(wrong(format!("the layout {other} is not supported yet"))),
                ("INDEX", value) => layout.index = Index::At(path(value)?),
                ("CONTROL", value) => layout.control = Some(path(value)?),
                ("INBOX", value) => layout.inbox = Some(path(value)?),
                ("SUBSCRIPTIONS", value) if !value.is_empty() && !value.contains('/') => {
                    layout.subscriptions = value.into()
                }
                // Files that only Dovecot itself has a use for.
                (
                    "VOLATILEDIR" | "INDEXCACHE" | "LISTINDEX" | "NO-NOSELECT" | "NO-FS-VALIDATION"
                    | "ITERINDEX",
                    _,
                ) => {}
                (key, _) => return Err(wrong(format!("the option {key} is unknown or not supported yet"))),
            }
        }
        if driver == "auto" && layout.root.exists() && !layout.root.join("cur").is_dir() {
            return Err(wrong("holds no Maildir, the one format that is found by itself yet; write maildir:/path for a new one".into()));
        }
        Ok(Location { layout })
    }

    /// The place where Dovecot looks first when it is told none: `~/Maildir`.
    pub fn detect(home: &Path) -> Option<Location> {
        let root = home.join("Maildir");
        root.join("cur")
            .is_dir()
            .then(|| Location::parse(&format!("maildir:{}", root.display()), None).ok())?
    }

    /// The mail root.
    pub fn root(&self) -> &Path {
        &self.layout.root
    }

    /// Opens the storage; a missing root is made.
    pub fn open(&self, fsync: Fsync) -> Result<Box<dyn Storage>> {
        Ok(Box::new(Maildir::open(self.layout.clone(), fsync)?))
    }
}

/// Splits at `:`; `::` stands for one literal colon.
fn split(text: &str) -> Vec<String> {
    let mut pieces = vec![String::new()];
    let mut rest = text;
    while let Some((piece, after)) = rest.split_once(':') {
        let last = pieces.last_mut().expect("never empty");
        last.push_str(piece);
        rest = match after.strip_prefix(':') {
            Some(glued) => {
                last.push(':');
                glued
            }
            None => {
                pieces.push(String::new());
                after
            }
        };
    }
    pieces.last_mut().expect("never empty").push_str(rest);
    pieces
}

fn absolute(path: &str, home: Option<&Path>) -> Result<PathBuf, &'static str> {
    let path = match path.strip_prefix('~') {
        None => PathBuf::from(path),
        Some(rest) if rest.is_empty() || rest.starts_with('/') => match home {
            Some(home) => home.join(rest.trim_start_matches('/')),
            None => return Err("~ stands for a home directory, and the user has none"),
        },
        Some(_) => return Err("~user is not supported"),
    };
    std::path::absolute(path).map_err(|_| "the current directory is gone")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locations() {
        let home = Path::new("/home/alice");
        let parse = |text: &str| Location::parse(text, Some(home)).map(|location| location.layout);
        let full = parse("maildir:~/Mail:LAYOUT=fs:INDEX=/i:CONTROL=/c:INBOX=/in:UTF-8:").unwrap();
        assert_eq!((full.kind, full.root.to_str(), full.utf8), (Kind::Fs, Some("/home/alice/Mail"), true));
        assert_eq!(full.control.as_deref(), Some(Path::new("/c")));
        assert_eq!(parse("maildir:/a::b").unwrap().root, Path::new("/a:b"));
        for bad in ["maildir:", "maildir", "mbox:~/mail", "what:/x", "maildir:/x:FOO=1", "maildir:~bob/x"] {
            let error = parse(bad).unwrap_err();
            assert_eq!(error.status(), 78, "{bad}: {error}");
        }
        assert!(Location::parse("maildir:~/x", None).is_err());
    }
}
