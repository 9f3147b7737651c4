//! Maildirs in a temporary directory: deliveries, changes behind our back, and what lies on the disk in the end.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use dsync_session::proto::{Direction, Options, Terminus};
use dsync_session::storage::{Fsync, Location, Storage};
use dsync_session::{Brain, Job, Report, SessionError, local};

/// `backup` to the second store.
pub const BACKUP: Direction = Direction::Mirror { into: Terminus::Responder };

/// How long the second store's lock is waited for: a process that another test starts has it for an instant.
const LOCK_WAIT: Duration = Duration::from_millis(500);

/// One account, of Maildir unless it says otherwise.
#[derive(Clone, Debug)]
pub struct Account {
    pub format: &'static str,
    pub root: PathBuf,
    pub options: String,
}

impl Account {
    pub fn new(root: impl Into<PathBuf>) -> Account {
        Account::of("maildir", root)
    }

    /// An account of another format, with options as in `sdbox:LAYOUT=index`.
    pub fn of(format: &'static str, root: impl Into<PathBuf>) -> Account {
        let (format, options) = format.split_at(format.find(':').unwrap_or(format.len()));
        Account { format, root: root.into(), options: options.to_owned() }
    }

    /// Where it is, as users write it.
    pub fn location(&self) -> String {
        format!("{}:{}{}", self.format, self.root.display(), self.options)
    }

    /// Opens it as dsync does.
    pub fn open(&self) -> Box<dyn Storage> {
        let location = Location::parse(&self.location(), None).expect("a valid location");
        location.open(Fsync::Never).expect("opens")
    }

    /// The directory of a Maildir++ folder; `""` is INBOX.
    pub fn folder(&self, folder: &str) -> PathBuf {
        if folder.is_empty() { self.root.clone() } else { self.root.join(format!(".{folder}")) }
    }

    /// Delivers as an agent does: written to `tmp`, renamed into place. `name` may carry flags; it then goes to `cur`.
    pub fn deliver(&self, folder: &str, name: &str, body: &[u8]) {
        let folder = self.folder(folder);
        for directory in ["cur", "new", "tmp"] {
            fs::create_dir_all(folder.join(directory)).expect("made");
        }
        let tmp = folder.join("tmp").join(name);
        fs::write(&tmp, body).expect("written");
        let place = if name.contains(":2,") { "cur" } else { "new" };
        fs::rename(&tmp, folder.join(place).join(name)).expect("renamed");
    }

    /// The one file whose name begins so.
    pub fn find(&self, folder: &str, prefix: &str) -> PathBuf {
        let folder = self.folder(folder);
        let entries =
            ["cur", "new"].into_iter().flat_map(|d| fs::read_dir(folder.join(d)).expect("readable"));
        let mut paths = entries.map(|entry| entry.expect("readable").path());
        let found = paths
            .find(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(prefix)));
        found.unwrap_or_else(|| panic!("no {prefix} in {}", folder.display()))
    }

    /// What an IMAP client sees: per mailbox UIDVALIDITY, UIDNEXT, and per UID GUID, flags, date and body.
    pub fn view(&self) -> BTreeMap<String, Vec<String>> {
        let mut storage = self.open();
        let (tree, problems) = storage.tree().expect("lists");
        assert!(problems.is_empty(), "{problems:?}");
        let mut view = BTreeMap::new();
        for (name, node) in tree {
            let Some(status) = node.mailbox else {
                view.insert(name.to_string(), vec![format!("subscribed {}", node.subscribed)]);
                continue;
            };
            let mut lines = vec![format!(
                "{} {} {} {}",
                status.guid, status.uid_validity, status.uid_next, node.subscribed
            )];
            let mut mailbox = storage.open(status.guid).expect("opens");
            let changes = mailbox.changes(dsync_model::Since::All).expect("lists");
            for change in changes.list {
                // Without a base: what is there, and who is proven gone.
                let dsync_model::MessageChange::Save { uid, guid, flags, .. } = change else { continue };
                let mut body = mailbox.body(uid, Some(&guid)).expect("opens").expect("is there");
                let mut bytes = Vec::new();
                body.reader.read_to_end(&mut bytes).expect("reads");
                let (received, uidl, order) = (body.received, body.pop3_uidl, body.pop3_order);
                lines.push(format!(
                    "{uid} {guid} {:?} {received:?} {uidl:?} {order:?} {:?}",
                    flags.current,
                    String::from_utf8_lossy(&bytes)
                ));
            }
            view.insert(name.to_string(), lines);
        }
        view
    }

    /// Files left over: in `tmp`, locks, temporary files.
    pub fn leftovers(&self) -> Vec<PathBuf> {
        fn walk(path: &Path, found: &mut Vec<PathBuf>) {
            for entry in fs::read_dir(path).expect("readable").flatten() {
                let (path, name) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
                let in_tmp = path.parent().is_some_and(|parent| parent.ends_with("tmp"));
                if fs::symlink_metadata(&path).expect("is there").is_dir() {
                    walk(&path, found);
                } else if in_tmp || name.ends_with(".lock") || name.ends_with(".tmp") {
                    found.push(path);
                }
            }
        }
        let mut found = Vec::new();
        walk(&self.root, &mut found);
        found
    }
}

/// Synchronises two accounts in this process.
pub fn sync(a: &Account, b: &Account, direction: Direction) -> Result<(Report, Report), SessionError> {
    sync_with(a, b, direction, Options::default())
}

/// The same with options.
pub fn sync_with(
    a: &Account,
    b: &Account,
    direction: Direction,
    options: Options,
) -> Result<(Report, Report), SessionError> {
    let [mut one, mut two] = ends(a, b, direction, options);
    local::run(&mut one, &mut two, &mut |_| true)
}

/// The two ends of a session.
pub fn ends(a: &Account, b: &Account, direction: Direction, options: Options) -> [Brain; 2] {
    let options = Options { lock_wait_secs: options.lock_wait_secs.max(1), ..options };
    [Brain::initiator(a.open(), Job { direction, options }), Brain::responder(b.open(), LOCK_WAIT)]
}
