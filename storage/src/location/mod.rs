//! Where mail lies: `maildir:~/Maildir:LAYOUT=fs`, and the storage it stands for (storage formats reference, 2.1).
//!
//! What the words of a location mean for paths is settled in [`layout`](crate::layout).

mod detect;

use std::path::{Component, Path, PathBuf};

use crate::attributes::Place;
use crate::dbox::{Dbox, Rotation};
use crate::layout::{Format, Index, Kind, Layout, Subscriber};
use crate::maildir::Maildir;
use crate::mbox::{Locking, Mbox};
use crate::{Fsync, Result, Storage, StorageError};
use detect::Owner;

/// A parsed location.
#[derive(Clone, Debug)]
pub struct Location {
    layout: Layout,
    attachments: Option<PathBuf>,
    rotation: Rotation,
    locking: Locking,
}

/// Drivers of Dovecot's that keep no mail in files of ours to read.
const OTHER_DRIVERS: [&str; 6] = ["imapc", "imap", "pop3c", "obox", "cydir", "virtual"];

impl Location {
    /// Reads a location as `mail_location` has it, variables expanded. `~/` is `home`.
    pub fn parse(text: &str, home: Option<&Path>) -> Result<Location> {
        Location::parse_for(text, home, None)
    }

    /// Reads the location of a user. Their name matters where an mbox account is found without its INBOX, which then is
    /// the file that mail for this name is delivered to.
    pub fn parse_for(text: &str, home: Option<&Path>, user: Option<&str>) -> Result<Location> {
        if text.starts_with("obox:") {
            let what = format!("mail location {text:?}: mail in obox can be read by Dovecot Pro alone");
            return Err(StorageError::Impossible(what));
        }
        let layout = layout(text, Owner { name: user, home });
        let layout =
            layout.map_err(|what| StorageError::Location(format!("mail location {text:?}: {what}")))?;
        Ok(Location { layout, attachments: None, rotation: Rotation::default(), locking: Locking::default() })
    }

    /// Looks for mail where it usually is in a home.
    pub fn detect(home: &Path, user: Option<&str>) -> Option<Location> {
        let layout = detect::in_home(Owner { name: user, home: Some(home) })?;
        Some(Location {
            layout,
            attachments: None,
            rotation: Rotation::default(),
            locking: Locking::default(),
        })
    }

    /// The same as the mail of a namespace: the parts of its prefix, its hierarchy separator if the configuration sets one, and
    /// whether the user's INBOX is in it.
    #[must_use]
    pub fn in_namespace(mut self, prefix: Vec<String>, separator: Option<char>, inbox: bool) -> Location {
        (self.layout.prefix, self.layout.separator, self.layout.has_inbox) = (prefix, separator, inbox);
        self
    }

    /// The same, which keeps the subscriptions of these namespaces too.
    #[must_use]
    pub fn with_subscribers(mut self, subscribers: Vec<Subscriber>) -> Location {
        self.layout.subscribers = subscribers;
        self
    }

    /// The same with the directory that holds attachments of dbox mail, if the configuration sets one (`mail_attachment_dir`).
    pub fn with_attachments(mut self, directory: Option<PathBuf>) -> Location {
        self.attachments = directory;
        self
    }

    /// The same with rules for the files of mdbox, if the configuration sets some.
    pub fn with_rotation(mut self, bytes: Option<u64>, secs: u64) -> Location {
        self.rotation = Rotation { bytes: bytes.unwrap_or(self.rotation.bytes), secs };
        self
    }

    /// The same with the dict of mailbox attributes, if the configuration sets one (`mail_attribute_dict`): `file:<path>`,
    /// locked by a file beside it. With any other, attributes stay where they are.
    pub fn with_attribute_dict(mut self, dict: Option<String>) -> Location {
        self.layout.attributes = match dict {
            None => Place::Usual,
            Some(dict) => match dict.strip_prefix("file:").filter(|path| path.starts_with('/')) {
                Some(path) if !path.contains(":lock=") => Place::File(path.into()),
                _ => Place::Elsewhere(dict),
            },
        };
        self
    }

    /// The same as the mail of a user with this home: [`Storage::lock_user`] locks it.
    pub fn with_home(mut self, home: Option<PathBuf>) -> Location {
        self.layout.home = home;
        self
    }

    /// The same with other locks for mbox than those of Debian's Dovecot (`mbox_read_locks` and its kin).
    pub fn with_mbox_locks(mut self, locking: Locking) -> Location {
        self.locking = locking;
        self
    }

    /// The mail root.
    pub fn root(&self) -> &Path {
        &self.layout.root
    }

    /// Where everything lies.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Opens the storage; a missing root is made.
    pub fn open(&self, fsync: Fsync) -> Result<Box<dyn Storage>> {
        match self.layout.format {
            Format::Maildir => Ok(Box::new(Maildir::open(self.layout.clone(), fsync)?)),
            Format::Sdbox | Format::Mdbox => {
                let attachments = self.attachments.clone();
                Ok(Box::new(Dbox::open_rotating(self.layout.clone(), fsync, attachments, self.rotation)?))
            }
            Format::Mbox => Ok(Box::new(Mbox::open(self.layout.clone(), fsync, self.locking.clone())?)),
        }
    }
}

/// Reads a location; the error says what is wrong with it.
fn layout(text: &str, owner: Owner<'_>) -> Result<Layout, String> {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Layout> {
        Location::parse(text, Some(Path::new("/home/alice"))).map(|location| location.layout)
    }

    #[test]
    fn each_driver_has_its_usual_layout() {
        for (driver, format, kind, dirname, subscriptions) in [
            ("maildir", Format::Maildir, Kind::MaildirPlusPlus, None, "subscriptions"),
            ("mbox", Format::Mbox, Kind::Fs, None, ".subscriptions"),
            ("sdbox", Format::Sdbox, Kind::Fs, Some("dbox-Mails"), "subscriptions"),
            ("dbox", Format::Sdbox, Kind::Fs, Some("dbox-Mails"), "subscriptions"),
            ("mdbox", Format::Mdbox, Kind::Fs, Some("dbox-Mails"), "subscriptions"),
        ] {
            let layout = parse(&format!("{driver}:~/x")).unwrap();
            assert_eq!((layout.format, layout.kind), (format, kind), "{driver}");
            assert_eq!(layout.root, Path::new("/home/alice/x"));
            assert_eq!(layout.dirname.as_deref(), dirname);
            assert_eq!(layout.mailbox_dir.as_deref(), dirname.map(|_| "mailboxes"));
            assert_eq!(layout.subscriptions, subscriptions);
        }
    }

    #[test]
    fn each_option_does_its_own() {
        let at = |path: &str| Some(PathBuf::from(path));
        let home = |path: &str| Some(Path::new("/home/alice").join(path));
        type Change = Box<dyn Fn(&mut Layout)>;
        let cases: Vec<(&str, Change)> = vec![
            ("INBOX=~/in", Box::new(move |layout| layout.inbox = home("in"))),
            ("INDEX=/i", Box::new(|layout| layout.index = Index::At("/i".into()))),
            ("INDEX=/r", Box::new(|_| {})),
            ("INDEX=", Box::new(|_| {})),
            ("INDEXCACHE=/c", Box::new(move |layout| layout.cache = at("/c"))),
            ("CONTROL=/c::d", Box::new(move |layout| layout.control = at("/c:d"))),
            ("CONTROL=/r/", Box::new(|_| {})),
            ("ALT=~/alt", Box::new(move |layout| layout.alt = home("alt"))),
            ("ALTNOCHECK", Box::new(|layout| layout.alt_no_check = true)),
            ("LAYOUT=index", Box::new(|layout| (layout.kind, layout.dirname) = (Kind::Index, None))),
            ("LAYOUT=FS", Box::new(|_| {})),
            ("SUBSCRIPTIONS=subs", Box::new(|layout| layout.subscriptions = "subs".into())),
            ("DIRNAME=m", Box::new(|layout| layout.dirname = Some("m".into()))),
            (
                "FULLDIRNAME=m",
                Box::new(|layout| (layout.dirname, layout.full_dirname) = (Some("m".into()), true)),
            ),
            ("MAILBOXDIR=a/b/", Box::new(|layout| layout.mailbox_dir = Some("a/b".into()))),
            ("VOLATILEDIR=/run/x", Box::new(move |layout| layout.volatile = at("/run/x"))),
            ("LISTINDEX=l", Box::new(|layout| layout.list_index = "l".into())),
            ("LISTINDEX=~/l", Box::new(|layout| layout.list_index = "/home/alice/l".into())),
            ("BROKENCHAR=^", Box::new(|_| {})),
            ("ITERINDEX", Box::new(|_| {})),
            ("NO-NOSELECT", Box::new(|_| {})),
            ("NO-FS-VALIDATION", Box::new(|_| {})),
            ("UTF-8", Box::new(|layout| layout.utf8 = true)),
            ("", Box::new(|_| {})),
        ];
        for (option, change) in cases {
            let mut expected = Layout::new(Format::Sdbox, "/r");
            change(&mut expected);
            assert_eq!(parse(&format!("sdbox:/r:{option}")).unwrap(), expected, "{option}");
        }
        assert_eq!(parse("mbox:/r:INDEX=MEMORY").unwrap().index, Index::Memory);
    }

    #[test]
    fn several_options_and_colons() {
        let full = parse("maildir:~/Mail:LAYOUT=fs:INDEX=/i:CONTROL=/c:INBOX=/in:UTF-8:").unwrap();
        assert_eq!((full.kind, full.root.to_str(), full.utf8), (Kind::Fs, Some("/home/alice/Mail"), true));
        assert_eq!((full.control, full.index), (Some("/c".into()), Index::At("/i".into())));
        assert_eq!(parse("maildir:/a::b").unwrap().root, Path::new("/a:b"));
        assert_eq!(parse("maildir:/a::::b:::UTF-8").unwrap().root, Path::new("/a::b:"));
        assert_eq!(parse("maildir:~root/x").unwrap().root, Path::new("/root/x"));
        assert_eq!(parse("maildir:~").unwrap().root, Path::new("/home/alice"));
        assert_eq!(parse("/nowhere/to/be/found:LAYOUT=fs").unwrap().kind, Kind::Fs);
    }

    #[test]
    fn what_makes_no_sense_is_a_matter_of_configuration() {
        for bad in [
            "",
            "maildir:",
            "maildir",
            "what:/x",
            "imapc:/x",
            "maildir:/x:FOO=1",
            "maildir:/x:INDEX",
            "maildir:/x:UTF-8=yes",
            "maildir:/x:layout=fs",
            "maildir:/x:LAYOUT=imapdir",
            "maildir:/x:BROKENCHAR=ab",
            "maildir:/x:INDEXPVT=/p",
            "maildir:/x:SUBSCRIPTIONS=a/b",
            "maildir:/x:SUBSCRIPTIONS=..",
            "maildir:/x:DIRNAME=m",
            "maildir:/x:LAYOUT=fs:DIRNAME=../m",
            "maildir:/x:LAYOUT=fs:MAILBOXDIR=../m",
            "maildir:/x:LAYOUT=fs:MAILBOXDIR=/m",
            "maildir:/x:LISTINDEX=../m",
            "maildir:/x:ALT=/a",
            "maildir:~no-such-user/x",
            "sdbox:/x:INDEX=MEMORY",
            "mdbox:/x:INDEX=MEMORY",
            "sdbox:/x:LAYOUT=maildir++",
            "mbox:/x:LAYOUT=maildir++",
            "mbox:/x:DIRNAME=mbox",
            "mbox:/x:LAYOUT=index:INDEX=/i:DIRNAME=mbox",
            "auto:/proc",
        ] {
            let error = parse(bad).unwrap_err();
            assert_eq!(error.status(), 78, "{bad}: {error}");
        }
        assert!(Location::parse("maildir:~/x", None).is_err());
        assert_eq!(parse("obox:/x").unwrap_err().status(), 65, "mail that only other software can read");
    }

    #[test]
    fn a_format_that_is_not_named_is_found() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("m");
        std::fs::create_dir_all(root.join("mailboxes")).unwrap();
        for text in [format!("{}", root.display()), format!("auto:{}", root.display())] {
            let layout = parse(&format!("{text}:INDEX=/i")).unwrap();
            assert_eq!((layout.format, layout.index), (Format::Sdbox, Index::At("/i".into())));
        }
        assert!(Location::detect(directory.path(), None).is_none());
        std::fs::create_dir_all(directory.path().join("Maildir/cur")).unwrap();
        let found = Location::detect(directory.path(), Some("alice")).unwrap();
        assert_eq!(found.root(), directory.path().join("Maildir"));
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "(maildir|mbox|sdbox|mdbox|auto)?:?[/~a.:=A-Z0-9-]{0,40}") {
            let _ = parse(&text);
        }
    }
}
