//! Which database, and how to reach it: 2.3's `driver` and `connect`, 2.4's `sql_driver` and its sections.

use std::{
    collections::HashMap,
    path::Path,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use sqlx::{
    mysql::{MySqlConnectOptions, MySqlPool, MySqlPoolOptions},
    postgres::{PgConnectOptions, PgPool, PgPoolOptions},
    sqlite::{SqliteConnectOptions, SqlitePool, SqlitePoolOptions},
};

use super::{super::Source, failed};
use crate::{conf::Section, user::UserError};

/// Connections to one database where nobody says how many.
const CONNECTIONS: u32 = 8;
/// Most that may be asked for.
const CONNECTIONS_MAX: u32 = 1000;
const CONNECT_WAIT: Duration = Duration::from_secs(20);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Kind {
    Sqlite,
    Postgres,
    MySql,
}

/// What to connect to; the first host that answers is taken.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) struct Target {
    kind: Kind,
    hosts: Vec<Host>,
}

/// How to reach one host. It holds a password: never printed.
#[derive(Clone, PartialEq, Eq, Hash, Default)]
struct Host {
    /// Empty: wherever the driver looks.
    name: String,
    /// Words of a connect string, or of a section, the host left out.
    words: Vec<(String, String)>,
}

#[derive(Clone)]
pub(super) enum Pool {
    Sqlite(SqlitePool),
    Postgres(PgPool),
    MySql(MySqlPool),
}

#[derive(Default)]
pub(super) struct Pools(Mutex<HashMap<Target, Pool>>);

impl Pools {
    pub async fn get(&self, target: &Target) -> Result<Pool, UserError> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner).get(target).cloned();
        if let Some(known) = known {
            return Ok(known);
        }
        let opened = target.open().await?;
        let mut pools = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(pools.entry(target.clone()).or_insert(opened).clone())
    }

    /// The next to ask connects anew, to whichever host answers then.
    pub fn forget(&self, target: &Target) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(target);
    }
}

/// The kind of database that the settings name.
pub(super) fn kind(source: &Source<'_>) -> Result<Kind, UserError> {
    match source.need(&["driver", "sql_driver"]).as_deref() {
        Ok("sqlite") => Ok(Kind::Sqlite),
        Ok("pgsql") => Ok(Kind::Postgres),
        Ok("mysql") => Ok(Kind::MySql),
        // In 2.4 the section's own driver is "sql".
        _ => match source.need(&["sql_driver"])?.as_str() {
            "sqlite" => Ok(Kind::Sqlite),
            "pgsql" => Ok(Kind::Postgres),
            "mysql" => Ok(Kind::MySql),
            other => Err(UserError::Unsupported(format!("SQL driver {other:?} is not supported by dsync"))),
        },
    }
}

impl Target {
    pub fn of(source: &Source<'_>) -> Result<Target, UserError> {
        let kind = kind(source)?;
        let host = |name: String| Host { name, words: Vec::new() };
        let hosts = if let Some(connect) = source.get(&["connect"]) {
            match kind {
                Kind::Sqlite if !connect.contains('=') => vec![host(connect)],
                _ => of_words(source, &connect)?,
            }
        } else if kind == Kind::Sqlite {
            vec![host(source.need(&["sqlite_path"])?)]
        } else {
            let name = if kind == Kind::Postgres { "pgsql" } else { "mysql" };
            let sections = source.sections(name);
            if sections.is_empty() {
                return Err(source.wrong(&format!("no connect, and no section {name} host {{ ... }}")));
            }
            sections.into_iter().map(|section| of_section(name, section)).collect()
        };
        Ok(Target { kind, hosts })
    }

    /// Connects to the first host that answers.
    async fn open(&self) -> Result<Pool, UserError> {
        let mut last = None;
        for host in &self.hosts {
            match host.open(self.kind).await {
                Ok(pool) => return Ok(pool),
                Err(error) => last = Some(error),
            }
        }
        Err(last.unwrap_or_else(|| UserError::Invalid("SQL: no host".to_owned())))
    }
}

/// 2.3's `connect`: several `host=`, and words that count for all of them.
fn of_words(source: &Source<'_>, connect: &str) -> Result<Vec<Host>, UserError> {
    let (mut names, mut words) = (Vec::new(), Vec::new());
    for word in connect.split_whitespace() {
        let Some((key, value)) = word.split_once('=') else {
            // It may be a part of a password: it is not quoted.
            return Err(source.wrong("connect: a word without \"=\""));
        };
        match key {
            "host" | "hostaddr" => names.push(value.to_owned()),
            _ => words.push((key.to_owned(), value.trim_matches('\'').to_owned())),
        }
    }
    if names.is_empty() {
        names.push(String::new());
    }
    Ok(names.into_iter().map(|name| Host { name, words: words.clone() }).collect())
}

/// 2.4's `pgsql host { ... }`.
fn of_section(kind: &str, section: &Section) -> Host {
    let deeper = || section.of_kind("parameters").chain(section.of_kind("pgsql_parameters"));
    let mut host = Host { name: section.title.clone(), words: Vec::new() };
    for holder in std::iter::once(section).chain(deeper()) {
        for key in holder.entries.iter().map(|entry| &entry.key) {
            let short = key.strip_prefix(kind).and_then(|key| key.strip_prefix('_')).unwrap_or(key);
            host.words.extend(holder.text(key).map(|value| (short.to_owned(), value.to_owned())));
        }
    }
    host
}

impl Host {
    fn word(&self, names: &[&str]) -> Option<&str> {
        self.words
            .iter()
            .rev()
            .find(|(key, _)| names.contains(&key.as_str()))
            .map(|(_, value)| value.as_str())
    }

    fn port(&self) -> Result<Option<u16>, UserError> {
        let Some(text) = self.word(&["port"]) else { return Ok(None) };
        let port =
            text.parse().map_err(|_| UserError::Invalid(format!("SQL: port {text:?} is no port number")))?;
        Ok(Some(port))
    }

    /// Most connections at a time: `maxconns`, in 2.4 `connection_limit`.
    fn connections(&self) -> Result<u32, UserError> {
        let Some(text) = self.word(&["maxconns", "connection_limit"]) else { return Ok(CONNECTIONS) };
        text.parse().ok().filter(|count| (1..=CONNECTIONS_MAX).contains(count)).ok_or_else(|| {
            UserError::Invalid(format!(
                "SQL: {text:?} connections: from 1 to {CONNECTIONS_MAX} may be asked for"
            ))
        })
    }

    async fn open(&self, kind: Kind) -> Result<Pool, UserError> {
        let (host, connections) = (self.name.as_str(), self.connections()?);
        match kind {
            Kind::Sqlite => {
                // Only read: a file that is not there is not made.
                let options = SqliteConnectOptions::new().filename(host).read_only(true);
                let pool =
                    SqlitePoolOptions::new().max_connections(connections).acquire_timeout(CONNECT_WAIT);
                pool.connect_with(options).await.map(Pool::Sqlite).map_err(failed)
            }
            Kind::Postgres => {
                let mut options = PgConnectOptions::new_without_pgpass();
                if host.starts_with('/') {
                    options = options.socket(Path::new(host));
                } else if !host.is_empty() {
                    options = options.host(host);
                }
                if let Some(port) = self.port()? {
                    options = options.port(port);
                }
                if let Some(name) = self.word(&["dbname"]) {
                    options = options.database(name);
                }
                if let Some(user) = self.word(&["user"]) {
                    options = options.username(user);
                }
                if let Some(password) = self.word(&["password"]) {
                    options = options.password(password);
                }
                if let Some(mode) = self.word(&["sslmode"]) {
                    let mode =
                        mode.parse().map_err(|_| UserError::Invalid(format!("SQL: sslmode {mode:?}")))?;
                    options = options.ssl_mode(mode);
                }
                if let Some(root) = self.word(&["sslrootcert"]) {
                    options = options.ssl_root_cert(root);
                }
                let pool = PgPoolOptions::new().max_connections(connections).acquire_timeout(CONNECT_WAIT);
                pool.connect_with(options).await.map(Pool::Postgres).map_err(failed)
            }
            Kind::MySql => {
                let mut options = MySqlConnectOptions::new();
                if host.starts_with('/') {
                    options = options.socket(host);
                } else if !host.is_empty() {
                    options = options.host(host);
                }
                if let Some(port) = self.port()? {
                    options = options.port(port);
                }
                if let Some(name) = self.word(&["dbname"]) {
                    options = options.database(name);
                }
                if let Some(user) = self.word(&["user"]) {
                    options = options.username(user);
                }
                if let Some(password) = self.word(&["password"]) {
                    options = options.password(password);
                }
                if let Some(ca) = self.word(&["ssl_ca", "ssl_client_ca_file"]) {
                    options = options.ssl_ca(ca).ssl_mode(sqlx::mysql::MySqlSslMode::VerifyIdentity);
                }
                let pool = MySqlPoolOptions::new().max_connections(connections).acquire_timeout(CONNECT_WAIT);
                pool.connect_with(options).await.map(Pool::MySql).map_err(failed)
            }
        }
    }
}
