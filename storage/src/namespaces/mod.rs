//! An account made of several namespaces, each with a prefix and mail of its own.
//!
//! Names outside have the prefix, names within one namespace have not. What is kept once (our notes, the store's id) is with the
//! namespace that has INBOX, or the first that takes part.

mod choice;
#[cfg(test)]
mod killed;
mod moving;
mod note;
mod recovery;
mod storage;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use dsync_model::{
    MailboxGuid, MailboxName, MailboxNode, MailboxTree, NameRules, NamespaceRules, Namespaces, TreeChange,
    TreeLog,
};
use rand::RngExt;

use self::choice::{chosen, parts, subscribers, subscriptions_of, texts};
use crate::attributes::Place;
use crate::{Fsync, Location, MailboxProblem, Result, Storage, StorageError};

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

/// What one namespace lists.
type Listed = (MailboxTree, Vec<MailboxProblem>);

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
            let location = location.with_subscribers(subscribers(&self.namespaces, &rules, index));
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

    /// What each namespace lists.
    fn list(&mut self) -> Result<Vec<Listed>> {
        self.open.iter_mut().map(|open| open.storage.tree()).collect()
    }

    /// Two of the open ones.
    fn both(&mut self, one: usize, other: usize) -> Result<[&mut dyn Storage; 2]> {
        let both = self.open.get_disjoint_mut([one, other]);
        let [one, other] = both.map_err(|_| StorageError::Location("no namespace".into()))?;
        Ok([&mut *one.storage, &mut *other.storage])
    }

    /// Says whether two of the open ones have their attributes in one file.
    fn attributes_together(&self, one: usize, other: usize) -> bool {
        let file = |at: usize| {
            let location = self.namespaces[self.open[at].index].location.as_ref().ok()?;
            Some(&location.layout().attributes).filter(|place| matches!(place, Place::File(_)))
        };
        file(one).is_some() && file(one) == file(other)
    }

    /// Adds what one namespace lists.
    fn add(
        &mut self,
        at: usize,
        (listed, troubles): Listed,
        tree: &mut MailboxTree,
        problems: &mut Vec<MailboxProblem>,
    ) -> Result<()> {
        let index = self.open[at].index;
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
