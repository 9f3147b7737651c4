//! Where mail lies: `maildir:~/Maildir:LAYOUT=fs`, and the storage it stands for (storage formats reference, 2.1).
//!
//! What the words of a location mean for paths is settled in [`layout`](crate::layout).

mod detect;
mod parse;

use std::path::{Path, PathBuf};

use crate::attributes::Place;
use crate::dbox::{Dbox, Rotation};
use crate::layout::{Format, Layout, Subscriber};
use crate::maildir::Maildir;
use crate::mbox::{Locking, Mbox};
use crate::{Fsync, Result, Storage, StorageError};
use detect::Owner;
use parse::layout;

/// A parsed location.
#[derive(Clone, Debug)]
pub struct Location {
    layout: Layout,
    attachments: Option<PathBuf>,
    rotation: Rotation,
    locking: Locking,
}

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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::{Index, Kind};

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
