//! Users in SQL: SQLite, PostgreSQL, MySQL.
//!
//! Variables never become part of a query's text: each one, and each quoted text that has one, is a bound value.

mod connect;
mod template;

use std::{io, sync::LazyLock};

use sqlx::{AssertSqlSafe, Column as _, Row as _, TypeInfo as _, ValueRef as _};

use super::{Fields, Source, background};
use crate::{
    conf::{Section, Settings},
    user::UserError,
    variables::Vars,
};
use connect::{Pool, Pools};

/// Most users that one database lists.
const USERS_MAX: usize = 10_000_000;

/// Pools by what they connect to: opening one takes longer than most queries.
static POOLS: LazyLock<Pools> = LazyLock::new(Pools::default);

/// The fields that `user_query` gives for a user, if it has them.
pub(crate) fn user(settings: &Settings, section: &Section, name: &str) -> Result<Option<Fields>, UserError> {
    let source = Source::of(settings, section)?;
    let query = source.need(&["user_query", "query", "userdb_sql_query"])?;
    one(&source, &query, name)
}

/// The fields that `password_query` gives for a user, and the scheme of passwords that do not name theirs.
pub(crate) fn password(
    settings: &Settings,
    section: &Section,
    name: &str,
) -> Result<(Option<Fields>, String), UserError> {
    let source = Source::of(settings, section)?;
    let query = source.need(&["password_query", "query", "passdb_sql_query"])?;
    let scheme =
        source.get(&["default_pass_scheme", "default_password_scheme", "passdb_default_password_scheme"]);
    let scheme = scheme.unwrap_or_else(|| if source.is_old() { "MD5" } else { "PLAIN" }.to_owned());
    Ok((one(&source, &query, name)?, scheme))
}

/// All users, by `iterate_query`: its column `username` (with `domain`, if there is one) or `user`.
pub(crate) fn names(settings: &Settings, section: &Section) -> Result<Vec<String>, UserError> {
    let source = Source::of(settings, section)?;
    // Dovecot's default.
    let query = source.get(&["iterate_query", "userdb_sql_iterate_query"]);
    let query = query.unwrap_or_else(|| "SELECT username, domain FROM users".to_owned());
    let rows = ask(&source, query.clone(), Vec::new(), USERS_MAX)?;
    let mut names = Vec::with_capacity(rows.len());
    for row in rows {
        let field = |name: &str| row.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str());
        let Some(user) = field("username").or_else(|| field("user")) else {
            return Err(source.wrong("iterate_query gives no column username or user"));
        };
        names.push(match field("domain").filter(|domain| !domain.is_empty()) {
            Some(domain) => format!("{user}@{domain}"),
            None => user.to_owned(),
        });
    }
    Ok(names)
}

fn one(source: &Source<'_>, query: &str, name: &str) -> Result<Option<Fields>, UserError> {
    let kind = connect::kind(source)?;
    let (query, values) =
        template::prepare(query, kind, &Vars::of_name(name)).map_err(|error| match error {
            template::Error::Variable(source) => {
                UserError::Variable { field: "SQL query".to_owned(), source }
            }
            template::Error::Syntax(what) => source.wrong(what),
        })?;
    let mut rows = ask(source, query, values, 2)?;
    if rows.len() > 1 {
        return Err(UserError::Invalid(format!("SQL: more than one row for user {name:?}")));
    }
    Ok(rows.pop())
}

/// Asks; gives the rows, NULLs left out. More than `limit` rows are an error.
fn ask(
    source: &Source<'_>,
    query: String,
    values: Vec<String>,
    limit: usize,
) -> Result<Vec<Fields>, UserError> {
    let target = connect::Target::of(source)?;
    background::wait("SQL", async move {
        let known = POOLS.get(&target).await?;
        match fetch(&known, &query, &values, limit).await {
            // The server that we know went away: another may answer in its place.
            Err(UserError::Temporary { source, .. }) if source.kind() != io::ErrorKind::Other => {
                POOLS.forget(&target);
                fetch(&POOLS.get(&target).await?, &query, &values, limit).await
            }
            answer => answer,
        }
    })
}

async fn fetch(pool: &Pool, query: &str, values: &[String], limit: usize) -> Result<Vec<Fields>, UserError> {
    match pool {
        Pool::Sqlite(pool) => rows!(sqlite, pool, query, values, limit),
        Pool::Postgres(pool) => rows!(postgres, pool, query, values, limit),
        Pool::MySql(pool) => rows!(mysql, pool, query, values, limit),
    }
}

/// The three databases have types of their own, and the same words.
macro_rules! rows {
    ($value:ident, $pool:expr, $query:expr, $values:expr, $limit:expr) => {{
        use futures_util::TryStreamExt as _;
        let mut query = sqlx::query(AssertSqlSafe($query.to_owned()));
        for value in $values {
            query = query.bind(value);
        }
        let mut stream = query.fetch($pool);
        let mut rows = Vec::new();
        while let Some(row) = stream.try_next().await.map_err(failed)? {
            if rows.len() >= $limit {
                return Err(UserError::Invalid(format!("SQL: more than {} rows", $limit)));
            }
            let mut fields = Fields::new();
            for (at, column) in row.columns().iter().enumerate() {
                if row.try_get_raw(at).map_err(failed)?.is_null() {
                    continue;
                }
                let kind = column.type_info().name();
                let value = $value(&row, at, kind).map_err(|error| {
                    UserError::Invalid(format!(
                        "SQL: column {}: type {kind} cannot be read; cast it to text ({error})",
                        column.name()
                    ))
                })?;
                fields.push((column.name().to_owned(), value));
            }
            rows.push(fields);
        }
        Ok(rows)
    }};
}
use rows;

fn sqlite(row: &sqlx::sqlite::SqliteRow, at: usize, _: &str) -> Result<String, sqlx::Error> {
    // SQLite turns numbers into text itself.
    row.try_get_unchecked(at)
}

fn postgres(row: &sqlx::postgres::PgRow, at: usize, kind: &str) -> Result<String, sqlx::Error> {
    Ok(match kind {
        "INT2" => row.try_get::<i16, _>(at)?.to_string(),
        "INT4" => row.try_get::<i32, _>(at)?.to_string(),
        "INT8" => row.try_get::<i64, _>(at)?.to_string(),
        "OID" => row.try_get::<sqlx::postgres::types::Oid, _>(at)?.0.to_string(),
        "BOOL" => if row.try_get::<bool, _>(at)? { "yes" } else { "no" }.to_owned(),
        "FLOAT4" => row.try_get::<f32, _>(at)?.to_string(),
        "FLOAT8" => row.try_get::<f64, _>(at)?.to_string(),
        "TEXT" | "VARCHAR" | "CHAR" | "NAME" | "unknown" | "UNKNOWN" => row.try_get_unchecked(at)?,
        other if other.eq_ignore_ascii_case("citext") => row.try_get_unchecked(at)?,
        _ => row.try_get(at)?,
    })
}

fn mysql(row: &sqlx::mysql::MySqlRow, at: usize, kind: &str) -> Result<String, sqlx::Error> {
    Ok(match kind {
        "BOOLEAN" | "TINYINT" | "SMALLINT" | "MEDIUMINT" | "INT" | "BIGINT" => {
            row.try_get_unchecked::<i64, _>(at)?.to_string()
        }
        unsigned if unsigned.ends_with(" UNSIGNED") => row.try_get_unchecked::<u64, _>(at)?.to_string(),
        "FLOAT" => row.try_get::<f32, _>(at)?.to_string(),
        "DOUBLE" => row.try_get::<f64, _>(at)?.to_string(),
        _ => row.try_get_unchecked(at)?,
    })
}

/// Nobody must act, since it passes. [`io::ErrorKind::Other`]: the server answered.
fn failed(error: sqlx::Error) -> UserError {
    let source = match error {
        sqlx::Error::Io(source) => source,
        gone @ (sqlx::Error::PoolTimedOut | sqlx::Error::PoolClosed) => {
            io::Error::new(io::ErrorKind::TimedOut, gone.to_string())
        }
        other => io::Error::other(other.to_string()),
    };
    UserError::Temporary { what: "SQL".to_owned(), source }
}
