//! An account made of several namespaces, each with a prefix and mail of its own.
//!
//! Names outside have the prefix, names within one namespace have not. What is kept once (our notes, the store's id) is with the
//! namespace that has INBOX, or the first that takes part.

mod choice;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use dsync_model::{
    AttributeChanges, AttributeList, MailboxGuid, MailboxName, MailboxNode, MailboxTree, NameRules,
    NamespaceRules, Namespaces, StoreId, TreeChange, TreeLog, Uid,
};
use rand::RngExt;

use self::choice::{chosen, parts, subscriptions_of, texts};
use crate::{
    Capabilities, Fsync, Location, Mailbox, MailboxProblem, Purged, Result, Storage, StorageError, StoreLock,
    Support, UserLock,
};

/// One namespace, as the configuration has it.
#[derive(Debug)]
pub struct Namespace {
    /// With the separator at its end, or empty.
    pub prefix: String,
    pub separator: Option<char>,
    /// INBOX is in it.
    pub inbox: bool,
    /// It takes part where nobody says which ones do.
    pub usual: bool,
    /// Clients can see it.
    pub visible: bool,
    /// It keeps the subscriptions of its names; else those of the nearest namespace above do.
    pub subscriptions: bool,
    /// The error counts when it is to take part.
    pub location: Result<Location>,
}

/// Opens an account. One namespace without a prefix is that account itself.
pub fn open(namespaces: Vec<Namespace>, choice: &Namespaces, fsync: Fsync) -> Result<Box<dyn Storage>> {
    if let [only] = &namespaces[..]
        && only.prefix.is_empty()
        && let Ok(location) = &only.location
    {
        return location.clone().in_namespace(Vec::new(), only.separator, true).open(fsync);
    }
    Ok(Box::new(Namespaced::new(namespaces, choice, fsync)?))
}

/// Several namespaces as one account.
pub struct Namespaced {
    namespaces: Vec<Namespace>,
    fsync: Fsync,
    choice: Namespaces,
    rules: NameRules,
    open: Vec<Open>,
    /// Which of the open ones keeps what is kept once.
    main: usize,
    /// Where each mailbox is.
    mailboxes: BTreeMap<MailboxGuid, usize>,
    log: TreeLog,
    /// Which of the open ones a purge has come to, and where it goes on there.
    purging: (usize, u32),
}

/// A namespace that is in use.
struct Open {
    /// Its place among all.
    index: usize,
    storage: Box<dyn Storage>,
}

impl Namespaced {
    fn new(namespaces: Vec<Namespace>, choice: &Namespaces, fsync: Fsync) -> Result<Namespaced> {
        let mut account = Namespaced {
            namespaces,
            fsync,
            choice: choice.clone(),
            rules: NameRules::default(),
            open: Vec::new(),
            main: 0,
            mailboxes: BTreeMap::new(),
            log: TreeLog::default(),
            purging: (0, 0),
        };
        account.open_chosen()?;
        Ok(account)
    }

    fn open_chosen(&mut self) -> Result<()> {
        let mut rules = NameRules::default();
        for namespace in &self.namespaces {
            let prefix = parts(namespace)?;
            let layout = match &namespace.location {
                Ok(location) => location.layout().rules(),
                Err(_) => NamespaceRules { encoded: true, ..NamespaceRules::default() },
            };
            let mut separators = layout.separators.clone();
            separators.extend(namespace.separator.filter(|c| !separators.contains(c)));
            rules.namespaces.push(NamespaceRules {
                prefix,
                inbox: namespace.inbox,
                takes_part: false,
                separators,
                ..layout
            });
        }
        for index in chosen(&self.namespaces, &self.choice)? {
            rules.namespaces[index].takes_part = true;
        }
        let takes_part = |index: usize| rules.namespaces[index].takes_part;
        let mut needed: BTreeSet<usize> = (0..self.namespaces.len()).filter(|i| takes_part(*i)).collect();
        let above: Vec<usize> = needed
            .iter()
            .filter_map(|index| subscriptions_of(&self.namespaces, &rules, &rules.namespaces[*index].prefix))
            .collect();
        needed.extend(above);
        let (mut open, mut roots) = (Vec::new(), BTreeMap::new());
        for index in needed {
            let namespace = &self.namespaces[index];
            let location = match &namespace.location {
                Ok(location) => location.clone(),
                Err(error) => {
                    let what = format!("namespace {:?}: {error}", namespace.prefix);
                    return Err(StorageError::Location(what));
                }
            };
            if let Some(other) = roots.insert(location.root().to_owned(), &namespace.prefix) {
                let what = format!(
                    "namespaces {other:?} and {:?} have the same mail ({}); alias_for says so",
                    namespace.prefix,
                    location.root().display()
                );
                return Err(StorageError::Location(what));
            }
            let prefix = rules.namespaces[index].prefix.clone();
            let location = location.in_namespace(prefix, namespace.separator, namespace.inbox);
            open.push(Open { index, storage: location.open(self.fsync)? });
        }
        let inbox = open.iter().position(|open| self.namespaces[open.index].inbox && takes_part(open.index));
        self.main = inbox.or_else(|| open.iter().position(|open| takes_part(open.index))).unwrap_or(0);
        (self.open, self.rules) = (open, rules);
        self.mailboxes.clear();
        Ok(())
    }

    fn main(&self) -> Result<&dyn Storage> {
        let main = self.open.get(self.main).ok_or_else(|| StorageError::Location("no namespace".into()))?;
        Ok(&*main.storage)
    }

    fn main_mut(&mut self) -> Result<&mut Box<dyn Storage>> {
        let main = self.open.get_mut(self.main);
        Ok(&mut main.ok_or_else(|| StorageError::Location("no namespace".into()))?.storage)
    }

    /// The name outside of a name within a namespace.
    fn outer(&self, index: usize, name: &MailboxName) -> Option<MailboxName> {
        let namespace = &self.rules.namespaces[index];
        if namespace.prefix.is_empty() || (namespace.inbox && name.is_inbox()) {
            return Some(name.clone());
        }
        let prefix = namespace.prefix.iter().map(String::as_str);
        let parts: Vec<&str> = prefix.chain(name.parts().iter().map(|part| &**part)).collect();
        MailboxName::new(&parts).ok()
    }

    /// Where a name is, and what it is called there.
    fn place(&self, name: &MailboxName) -> Result<(usize, MailboxName)> {
        let place = self.rules.place(name).and_then(|(index, inner)| {
            let at = self.open.iter().position(|open| open.index == index)?;
            Some((at, MailboxName::new(inner).ok()?))
        });
        place.filter(|(at, _)| self.rules.namespaces[self.open[*at].index].takes_part).ok_or_else(|| {
            StorageError::Impossible(format!("mailbox name {name:?} is in no namespace of this session"))
        })
    }

    /// Adds what one namespace lists.
    fn add(&mut self, at: usize, tree: &mut MailboxTree, problems: &mut Vec<MailboxProblem>) -> Result<()> {
        let index = self.open[at].index;
        let (listed, troubles) = self.open[at].storage.tree()?;
        let takes_part = self.rules.namespaces[index].takes_part;
        for problem in troubles.into_iter().filter(|_| takes_part) {
            let name = MailboxName::parse(&problem.mailbox, '/').ok();
            let mailbox = name.and_then(|name| self.outer(index, &name)).map(|name| name.to_string());
            problems
                .push(MailboxProblem { mailbox: mailbox.unwrap_or(problem.mailbox), error: problem.error });
        }
        for (inner, mut node) in listed {
            let Some(name) = self.outer(index, &inner) else { continue };
            let owner = self.rules.place(&name);
            let keeper = subscriptions_of(&self.namespaces, &self.rules, &texts(&name));
            if node.subscribed
                && keeper == Some(index)
                && owner.is_some_and(|(owner, _)| self.rules.namespaces[owner].takes_part)
            {
                let known = tree.entry(name.clone()).or_default();
                known.subscribed = true;
                known.subscription_changed = node.subscription_changed;
            }
            let own = owner.is_some_and(|(owner, inner)| owner == index && !inner.is_empty());
            if !own || !takes_part {
                if let (Some(_), true) = (&node.mailbox, takes_part) {
                    let what = "its name is that of something in another namespace; left alone".to_owned();
                    let error = StorageError::Impossible(what);
                    problems.push(MailboxProblem { mailbox: name.to_string(), error });
                }
                continue;
            }
            if let Some(status) = &mut node.mailbox {
                if self.mailboxes.contains_key(&status.guid) {
                    tracing::warn!(
                        "{name}: has the GUID of a mailbox in another namespace, and gets a new one"
                    );
                    let (guid, uid_validity) = (MailboxGuid(rand::rng().random()), status.uid_validity);
                    let change = TreeChange::Identify { name: inner, guid, uid_validity };
                    self.open[at].storage.change_tree(&change)?;
                    status.guid = guid;
                }
                self.mailboxes.insert(status.guid, at);
            }
            let known = tree.entry(name).or_default();
            let (subscribed, changed) = (known.subscribed, known.subscription_changed);
            *known = MailboxNode { subscribed, subscription_changed: changed, ..node };
        }
        Ok(())
    }

    /// The names of a (un)subscription by who keeps them.
    fn by_keeper(&self, names: &BTreeSet<MailboxName>) -> Result<BTreeMap<usize, BTreeSet<MailboxName>>> {
        let mut all: BTreeMap<usize, BTreeSet<MailboxName>> = BTreeMap::new();
        for name in names {
            let keeper = subscriptions_of(&self.namespaces, &self.rules, &texts(name));
            let kept = keeper.and_then(|index| {
                let at = self.open.iter().position(|open| open.index == index)?;
                let skip = if name.is_inbox() { 0 } else { self.rules.namespaces[index].prefix.len() };
                Some((at, MailboxName::new(name.parts().get(skip..)?).ok()?))
            });
            let Some((at, inner)) = kept else {
                let what = format!("{name}: no namespace keeps its subscription");
                return Err(StorageError::Impossible(what));
            };
            all.entry(at).or_default().insert(inner);
        }
        Ok(all)
    }
}

/// What all of them can do.
fn least(a: Support, b: Support) -> Support {
    match (a, b) {
        (Support::None, _) | (_, Support::None) => Support::None,
        (Support::Volatile, _) | (_, Support::Volatile) => Support::Volatile,
        (Support::Kept, Support::Kept) => Support::Kept,
    }
}

impl Storage for Namespaced {
    fn location(&self) -> String {
        let all: Vec<String> = self.open.iter().map(|open| open.storage.location()).collect();
        all.join(", ")
    }

    fn capabilities(&self) -> Capabilities {
        let all = self.open.iter().map(|open| open.storage.capabilities());
        let both = |a: Capabilities, b: Capabilities| Capabilities {
            modseq: least(a.modseq, b.modseq),
            log: a.log && b.log,
            keywords_max: [a.keywords_max, b.keywords_max].into_iter().flatten().min(),
            directories: a.directories && b.directories,
            message_guid: least(a.message_guid, b.message_guid),
        };
        all.reduce(both).unwrap_or(Capabilities {
            modseq: Support::None,
            log: false,
            keywords_max: None,
            directories: false,
            message_guid: Support::Kept,
        })
    }

    fn rules(&self) -> NameRules {
        self.rules.clone()
    }

    fn choose(&mut self, namespaces: &Namespaces) -> Result<()> {
        if self.choice != *namespaces {
            self.choice = namespaces.clone();
            self.open_chosen()?;
        }
        Ok(())
    }

    fn store_id(&mut self) -> Result<StoreId> {
        self.main_mut()?.store_id()
    }

    /// The locks of all, in the order of the configuration: no two sessions wait for each other.
    fn lock(&mut self, wait: Duration) -> Result<StoreLock> {
        let locks: Result<Vec<StoreLock>> =
            self.open.iter_mut().map(|open| open.storage.lock(wait)).collect();
        Ok(StoreLock(Box::new(locks?)))
    }

    fn lock_user(&mut self, me: StoreId, peer: StoreId, wait: Duration) -> Result<Option<UserLock>> {
        self.main_mut()?.lock_user(me, peer, wait)
    }

    fn tree(&mut self) -> Result<(MailboxTree, Vec<MailboxProblem>)> {
        self.mailboxes.clear();
        let (mut tree, mut problems) = (MailboxTree::new(), Vec::new());
        for at in 0..self.open.len() {
            self.add(at, &mut tree, &mut problems)?;
        }
        self.log = TreeLog { separator: self.main()?.tree_log().separator, ..TreeLog::default() };
        for open in self.open.iter().filter(|open| self.rules.namespaces[open.index].takes_part) {
            let log = open.storage.tree_log();
            self.log.deleted.extend(log.deleted);
            // Hashes of names that are spelled with another separator would mean other names.
            if log.separator == self.log.separator {
                self.log.directories.extend(log.directories);
                self.log.unsubscribed.extend(log.unsubscribed);
            }
        }
        // What was deleted in one namespace may be in another.
        self.log.deleted.retain(|guid, _| !self.mailboxes.contains_key(guid));
        Ok((tree, problems))
    }

    fn tree_log(&self) -> TreeLog {
        self.log.clone()
    }

    fn change_tree(&mut self, change: &TreeChange) -> Result<bool> {
        let mut change = change.clone();
        let mut made = None;
        let at = match &mut change {
            TreeChange::Rename { from, to, .. } => {
                let (at, old) = self.place(from)?;
                let (there, new) = self.place(to)?;
                if at != there {
                    let what = format!("mailbox {from} cannot be renamed to {to}: into another namespace");
                    return Err(StorageError::Impossible(what));
                }
                (*from, *to) = (old, new);
                at
            }
            TreeChange::Subscribe { names } | TreeChange::Unsubscribe { names } => {
                let all = self.by_keeper(names)?;
                let subscribe = matches!(change, TreeChange::Subscribe { .. });
                for (at, names) in all {
                    let change = match subscribe {
                        true => TreeChange::Subscribe { names },
                        false => TreeChange::Unsubscribe { names },
                    };
                    self.open[at].storage.change_tree(&change)?;
                }
                return Ok(true);
            }
            TreeChange::Create { name, guid, .. } | TreeChange::Identify { name, guid, .. } => {
                let (at, inner) = self.place(name)?;
                (*name, made) = (inner, Some(*guid));
                at
            }
            TreeChange::CreateDirectory { name }
            | TreeChange::Delete { name, .. }
            | TreeChange::DeleteDirectory { name } => {
                let (at, inner) = self.place(name)?;
                *name = inner;
                at
            }
        };
        let done = self.open[at].storage.change_tree(&change)?;
        self.mailboxes.extend(made.map(|guid| (guid, at)));
        Ok(done)
    }

    fn open(&mut self, mailbox: MailboxGuid) -> Result<Box<dyn Mailbox>> {
        let at = self.mailboxes.get(&mailbox).copied();
        let at = at.ok_or_else(|| StorageError::NoMailbox(mailbox.to_string()))?;
        self.open[at].storage.open(mailbox)
    }

    fn attributes(&mut self) -> Result<Option<AttributeList>> {
        let mut all = AttributeList::new();
        for open in &mut self.open {
            let Some(some) = open.storage.attributes()? else { return Ok(None) };
            all.extend(some);
        }
        Ok(Some(all))
    }

    fn change_attributes(&mut self, changes: &AttributeChanges) -> Result<()> {
        let mut all: BTreeMap<usize, AttributeChanges> = BTreeMap::new();
        for (key, value) in changes {
            let at = self.mailboxes.get(&key.mailbox).copied().unwrap_or(self.main);
            all.entry(at).or_default().insert(key.clone(), value.clone());
        }
        all.into_iter().try_for_each(|(at, changes)| self.open[at].storage.change_attributes(&changes))
    }

    fn notes(&mut self) -> Result<Vec<String>> {
        self.main_mut()?.notes()
    }

    fn read_note(&mut self, name: &str, bytes_max: usize) -> Result<Option<Vec<u8>>> {
        self.main_mut()?.read_note(name, bytes_max)
    }

    fn write_note(&mut self, name: &str, content: &[u8]) -> Result<()> {
        self.main_mut()?.write_note(name, content)
    }

    fn remove_note(&mut self, name: &str) -> Result<()> {
        self.main_mut()?.remove_note(name)
    }

    fn check(&mut self, mailbox: MailboxGuid, from: Uid) -> Result<bool> {
        match self.mailboxes.get(&mailbox) {
            Some(at) => self.open[*at].storage.check(mailbox, from),
            None => Ok(false),
        }
    }

    /// One namespace after the other; what is handed out to go on with means nothing but that there is more.
    fn purge(&mut self, from: u32) -> Result<Option<Purged>> {
        if from == 0 {
            self.purging = (0, 0);
        }
        while let Some(open) = self.open.get_mut(self.purging.0) {
            let (at, from) = self.purging;
            let Some(purged) = open.storage.purge(from)? else {
                self.purging = (at + 1, 0);
                continue;
            };
            self.purging = purged.next.map_or((at + 1, 0), |next| (at, next));
            let more = self.purging.0 < self.open.len();
            return Ok(Some(Purged { next: more.then_some(1), ..purged }));
        }
        Ok(if from == 0 { None } else { Some(Purged::default()) })
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use dsync_model::UidValidity;

    use super::*;

    fn name(text: &str) -> MailboxName {
        MailboxName::parse(text, '/').unwrap()
    }

    fn namespace(prefix: &str, location: String) -> Namespace {
        Namespace {
            prefix: prefix.into(),
            separator: Some('/'),
            inbox: false,
            usual: false,
            visible: true,
            subscriptions: true,
            location: Location::parse(&location, None),
        }
    }

    /// The user's mail with this prefix, an archive that keeps no subscriptions, and something that nobody can read.
    fn account(directory: &std::path::Path, prefix: &str) -> Namespaced {
        let at = |format: &str, place: &str| format!("{format}:{}/{place}", directory.display());
        let mut main = namespace(prefix, at("maildir", "main"));
        (main.inbox, main.usual) = (true, true);
        let archive = Namespace { subscriptions: false, ..namespace("Archive/", at("sdbox", "archive")) };
        let broken = namespace("Virtual/", at("virtual", "x"));
        Namespaced::new(
            vec![main, archive, Namespace { visible: false, ..broken }],
            &Namespaces::All,
            Fsync::Never,
        )
        .unwrap()
    }

    fn create(account: &mut Namespaced, mailbox: &str, guid: u8) {
        let (guid, uid_validity) = (MailboxGuid([guid; 16]), UidValidity::new(7).unwrap());
        let change = TreeChange::Create { name: name(mailbox), guid, uid_validity, uid_next: Uid::MIN };
        account.change_tree(&change).unwrap();
    }

    fn listed(account: &mut Namespaced) -> Vec<String> {
        let (tree, problems) = account.tree().unwrap();
        assert!(problems.is_empty(), "{problems:?}");
        let mark = |node: &MailboxNode| match (&node.mailbox, node.subscribed) {
            (Some(_), true) => "+",
            (None, true) => "-",
            _ => "",
        };
        tree.iter().map(|(name, node)| format!("{}{name}", mark(node))).collect()
    }

    #[test]
    fn each_namespace_has_its_own_mail_and_one_the_subscriptions() {
        let directory = tempfile::tempdir().unwrap();
        let mut account = account(directory.path(), "");
        for (mailbox, guid) in [("Work", 1), ("Archive/Old/2020", 2), ("Archive/INBOX", 3)] {
            create(&mut account, mailbox, guid);
        }
        let names = ["Work", "Archive/INBOX", "Archive/Gone"].map(name).into();
        account.change_tree(&TreeChange::Subscribe { names }).unwrap();
        let all = ["-Archive/Gone", "+Archive/INBOX", "Archive/Old", "Archive/Old/2020", "INBOX", "+Work"];
        assert_eq!(listed(&mut account), all);
        let kept = fs::read_to_string(directory.path().join("main/subscriptions")).unwrap();
        assert!(kept.contains("Archive\tINBOX"), "{kept}");
        assert!(!directory.path().join("archive/subscriptions").exists());
        assert!(directory.path().join("archive/mailboxes/Old/2020/dbox-Mails").exists());
        assert!(account.open(MailboxGuid([2; 16])).is_ok());
        let moved =
            TreeChange::Rename { guid: MailboxGuid([1; 16]), from: name("Work"), to: name("Archive/Work") };
        assert_eq!(account.change_tree(&moved).unwrap_err().status(), 65);
        account.choose(&Namespaces::Usual).unwrap();
        assert_eq!(listed(&mut account), ["INBOX", "+Work"]);
        assert!(account.rules().is_apart(&name("Archive/x")) && !account.rules().is_apart(&name("Arch")));
        account.choose(&Namespaces::Only(vec!["Archive/".into()])).unwrap();
        let archive = ["-Archive/Gone", "+Archive/INBOX", "Archive/Old", "Archive/Old/2020"];
        assert_eq!(listed(&mut account), archive, "its subscriptions are with the other's");
        assert!(account.choose(&Namespaces::Only(vec!["Virtual/".into()])).is_err());
    }

    #[test]
    fn a_prefix_in_front_of_all_but_inbox() {
        let directory = tempfile::tempdir().unwrap();
        let mut account = account(directory.path(), "INBOX/");
        create(&mut account, "INBOX/Work", 1);
        let names = ["INBOX", "INBOX/Work"].map(name).into();
        account.change_tree(&TreeChange::Subscribe { names }).unwrap();
        assert!(directory.path().join("main/.Work/cur").exists());
        assert_eq!(listed(&mut account), ["+INBOX", "+INBOX/Work"]);
        let rules = account.rules();
        let held = ["Sent", "INBOX/INBOX", "INBOX/a.b", "Archive", "Archive/a.b"]
            .map(|text| rules.hold(&name(text)));
        let expected = ["INBOX/Sent", "INBOX/_INBOX", "INBOX/a_b", "Archive/_Archive", "Archive/a.b"];
        assert_eq!(held.each_ref().map(ToString::to_string), expected);
        let names = [name("Archive/x")].into();
        let error = account.change_tree(&TreeChange::Subscribe { names }).unwrap_err();
        assert_eq!(error.status(), 65, "nobody keeps it");
    }

    #[test]
    fn mail_in_two_namespaces_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let mail = format!("maildir:{}", directory.path().display());
        let both = vec![namespace("", mail.clone()), namespace("old/", mail)];
        let error = open(both, &Namespaces::All, Fsync::Never).err().unwrap();
        assert_eq!((error.status(), error.to_string().contains("alias_for")), (78, true));
    }
}
