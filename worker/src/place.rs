//! Where a user's mail is and how it is kept: settled from settings and user, opened by whoever does the work.

use std::path::PathBuf;
use std::time::Duration;

use bincode::{Decode, Encode};
use dsync_accounts::{Mail, MboxLocks, Settings, User, location_for};
use dsync_session::model::Namespaces;
use dsync_session::storage::disk::Pretend;
use dsync_session::storage::dry_run::DryRun;
use dsync_session::storage::mbox::Locking;
use dsync_session::storage::namespaces::{self, Namespace};
use dsync_session::storage::{Fsync, Location, Storage, StorageError};
use dsync_session::{SessionError, chain};

/// All that a process needs to know to open a user's mail. It holds no secret.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Place {
    user: String,
    home: Option<PathBuf>,
    /// Variables expanded; `None`: where it usually is in the home.
    location: Option<String>,
    namespaces: Vec<Within>,
    attachments: Option<PathBuf>,
    attribute_dict: Option<String>,
    mbox_locks: (Option<String>, Option<String>, Option<Duration>, Option<Duration>),
    rotate_bytes: Option<u64>,
    rotate_secs: u64,
    fsync: When,
    /// What is told if it is not there; without, it is made.
    must_exist: Option<String>,
    /// The user's home is locked, too, as Dovecot does.
    locks_home: bool,
    /// Nothing at all is written there.
    read_only: bool,
}

/// One namespace of the user's ([`dsync_accounts::Namespace`], as it travels).
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
struct Within {
    prefix: String,
    separator: Option<char>,
    inbox: bool,
    usual: bool,
    visible: bool,
    private: bool,
    subscriptions: bool,
    mail: Where,
}

#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
enum Where {
    Users,
    Own(String),
    /// It may be there, but not take part; why.
    Unsupported(String),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
enum When {
    Always,
    Optimized,
    Never,
}

impl Place {
    /// As said on the command line, else as configured, else where mail usually is.
    pub fn of(settings: &Settings, user: &User, said: Option<&str>) -> Result<Place, SessionError> {
        if let Some(place) = settings.encrypts() {
            let text = format!(
                "{place}: mail_plugins: mail that Dovecot's plugin mail_crypt encrypts can be read by Dovecot alone (if this mail is not encrypted: -o mail_plugins=)"
            );
            return Err(SessionError::Refused { status: 65, text });
        }
        let location = match said {
            Some(text) => Some(location_for(text, user).map_err(|error| refused(error.status(), &error))?),
            None => settings.mail_location(user).map_err(|error| refused(error.status(), &error))?,
        };
        let conf = |error: dsync_accounts::ConfError| refused(error.status(), &error);
        let MboxLocks { read, write, timeout, dotlock_change_timeout } =
            settings.mbox_locks().map_err(conf)?;
        Ok(Place {
            user: user.name.clone(),
            home: user.home.clone(),
            location,
            namespaces: settings.namespaces(user).map_err(conf)?.into_iter().map(Within::from).collect(),
            attachments: settings.mail_attachment_dir(user).map_err(conf)?,
            attribute_dict: settings.mail_attribute_dict(user).map_err(conf)?,
            mbox_locks: (read, write, timeout, dotlock_change_timeout),
            rotate_bytes: settings.mdbox_rotate_size().map_err(conf)?,
            rotate_secs: settings.mdbox_rotate_interval().map_err(conf)?,
            fsync: match settings.mail_fsync().map_err(conf)? {
                dsync_accounts::Fsync::Always => When::Always,
                dsync_accounts::Fsync::Optimized => When::Optimized,
                dsync_accounts::Fsync::Never => When::Never,
            },
            must_exist: None,
            locks_home: true,
            read_only: false,
        })
    }

    /// The same as a second place of the user's: attributes beside the mail, whatever the configuration says of a dict, and the home is
    /// locked by the first.
    #[must_use]
    pub fn second(self) -> Place {
        Place { attribute_dict: None, locks_home: false, ..self }
    }

    /// The same as one that is only read: no housekeeping either. What has to be noted is kept in memory.
    #[must_use]
    pub fn read_only(self) -> Place {
        Place { read_only: true, ..self }
    }

    /// Says whether what is noted there is lost with the thread.
    pub(crate) fn is_read_only(&self) -> bool {
        self.read_only
    }

    /// The same without the namespaces that have mail of their own elsewhere: a place that somebody named is all there is.
    #[must_use]
    pub fn alone(self) -> Place {
        let mut namespaces = self.namespaces;
        for namespace in namespaces.iter_mut().filter(|namespace| namespace.usual) {
            namespace.mail = Where::Users;
        }
        namespaces.retain(|namespace| namespace.mail == Where::Users);
        Place { namespaces, ..self }
    }

    /// The places of the user's own namespaces that have mail elsewhere, each alone.
    pub fn elsewhere(&self) -> Vec<Place> {
        let own = self.namespaces.iter().filter(|namespace| namespace.private && !namespace.usual);
        let places = own.filter_map(|namespace| {
            let Where::Own(location) = &namespace.mail else { return None };
            let alone = Within { usual: true, mail: Where::Users, ..namespace.clone() };
            Some(Place { location: Some(location.clone()), namespaces: vec![alone], ..self.clone() })
        });
        places.collect()
    }

    /// The same, which has to be there: it is not made, and this is told.
    #[must_use]
    pub fn existing(self, else_told: &str) -> Place {
        Place { must_exist: Some(else_told.to_owned()), ..self }
    }

    /// Where the user's mail is. Looks at the disk where need be.
    fn find(&self) -> Result<Location, SessionError> {
        let said = |text: String| SessionError::Refused { status: 78, text };
        let location = match (&self.location, &self.home) {
            (Some(text), home) => Location::parse_for(text, home.as_deref(), Some(&self.user))
                .map_err(|error| storage(&error))?,
            (None, Some(home)) => Location::detect(home, Some(&self.user)).ok_or_else(|| {
                let home = home.display();
                said(format!(
                    "no mail found in {home}: say where it is with --source maildir:/path or by mail_location"
                ))
            })?,
            (None, None) => {
                let what = "the setting mail_location is empty, and the user has no home: say where the mail is with --source";
                return Err(said(what.to_owned()));
            }
        };
        if let Some(what) = &self.must_exist
            && !location.root().is_dir()
        {
            return Err(said(format!("{}: {what}", location.root().display())));
        }
        Ok(location)
    }

    /// The root of the user's mail, if nothing is there.
    pub(crate) fn missing(&self) -> Result<Option<String>, SessionError> {
        let location = self.find()?;
        let root = location.root();
        Ok((!root.is_dir()).then(|| root.display().to_string()))
    }

    /// The namespaces, each with where its mail is.
    fn parts(&self) -> Result<Vec<Namespace>, SessionError> {
        let users = self.find()?;
        let (read, write, timeout, stale) = &self.mbox_locks;
        let locking = Locking::default().set(read.as_deref(), write.as_deref(), *timeout, *stale);
        let locking = locking.map_err(|error| storage(&error))?;
        let locate = |mail: &Where| {
            let location = match mail {
                Where::Users => users.clone(),
                Where::Own(text) => Location::parse_for(text, self.home.as_deref(), Some(&self.user))?,
                Where::Unsupported(what) => return Err(StorageError::Location(what.clone())),
            };
            Ok(location
                .with_attachments(self.attachments.clone())
                .with_attribute_dict(self.attribute_dict.clone())
                .with_rotation(self.rotate_bytes, self.rotate_secs)
                .with_home(self.home.clone().filter(|_| self.locks_home))
                .with_mbox_locks(locking.clone()))
        };
        let namespace = |within: &Within| Namespace {
            prefix: within.prefix.clone(),
            separator: within.separator,
            inbox: within.inbox,
            usual: within.usual,
            visible: within.visible,
            subscriptions: within.subscriptions,
            location: locate(&within.mail),
        };
        Ok(self.namespaces.iter().map(namespace).collect())
    }

    /// Opens it, with the namespaces that are to take part; a root that is missing is made.
    pub(crate) fn open(&self, choice: &Namespaces) -> Result<Box<dyn Storage>, SessionError> {
        let fsync = match self.fsync {
            When::Always => Fsync::Always,
            When::Optimized => Fsync::Optimized,
            When::Never => Fsync::Never,
        };
        let _pretend = self.read_only.then(Pretend::begin);
        let storage = namespaces::open(self.parts()?, choice, fsync).map_err(|error| storage(&error))?;
        Ok(if self.read_only { Box::new(DryRun::reading(storage)) } else { storage })
    }
}

impl From<dsync_accounts::Namespace> for Within {
    fn from(namespace: dsync_accounts::Namespace) -> Within {
        let dsync_accounts::Namespace {
            prefix,
            separator,
            inbox,
            usual,
            visible,
            private,
            subscriptions,
            mail,
        } = namespace;
        let mail = match mail {
            Mail::Users => Where::Users,
            Mail::Own(location) => Where::Own(location),
            Mail::Unsupported(what) => Where::Unsupported(what),
        };
        Within { prefix, separator, inbox, usual, visible, private, subscriptions, mail }
    }
}

fn storage(error: &StorageError) -> SessionError {
    refused(error.status(), error)
}

fn refused(status: u8, error: &dyn std::error::Error) -> SessionError {
    SessionError::Refused { status, text: chain(error) }
}
