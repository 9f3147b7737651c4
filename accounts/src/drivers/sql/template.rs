//! A query with variables becomes a query with placeholders, and the values for them.

use super::connect::Kind;
use crate::variables::{VarError, Vars, expand, first_variable};

#[derive(Debug)]
pub(super) enum Error {
    Variable(VarError),
    Syntax(&'static str),
}

/// Puts placeholders in place of variables. A quoted text with variables is one value as a whole: `'/srv/%d/%n'` becomes `$1`.
pub(super) fn prepare(query: &str, kind: Kind, vars: &Vars<'_>) -> Result<(String, Vec<String>), Error> {
    let mut out = String::with_capacity(query.len());
    let mut values = Vec::new();
    let mut bind = |out: &mut String, value: String| {
        values.push(value);
        match kind {
            Kind::Postgres => out.push_str(&format!("${}", values.len())),
            Kind::Sqlite | Kind::MySql => out.push('?'),
        }
    };
    let mut rest = query;
    while let Some(c) = rest.chars().next() {
        match c {
            '\'' => {
                // PostgreSQL reads backslashes in E'...' only, MySQL in all.
                let escapes = kind == Kind::MySql || (kind == Kind::Postgres && ends_with_e(&out));
                let end = end_of_quoted(rest, '\'', escapes)
                    .ok_or(Error::Syntax("a quote in the SQL query is not closed"))?;
                let (literal, after) = rest.split_at(end);
                let inner = &literal[1..literal.len() - 1];
                if has_variable(inner) {
                    if escapes && kind == Kind::Postgres {
                        out.pop();
                    }
                    let text = unquoted(inner, escapes);
                    bind(&mut out, expand(&text, vars).map_err(Error::Variable)?);
                } else {
                    out.push_str(&literal.replace("%%", "%"));
                }
                rest = after;
            }
            '"' | '`' => {
                let end = end_of_quoted(rest, c, false)
                    .ok_or(Error::Syntax("a quote in the SQL query is not closed"))?;
                let (name, after) = rest.split_at(end);
                // MySQL takes double quotes for text, too.
                if has_variable(name) {
                    if c == '"' && kind != Kind::Postgres {
                        let text =
                            unquoted(&name[1..name.len() - 1].replace("\"\"", "\""), kind == Kind::MySql);
                        bind(&mut out, expand(&text, vars).map_err(Error::Variable)?);
                    } else {
                        return Err(Error::Syntax(
                            "a variable cannot stand in a quoted name of the SQL query",
                        ));
                    }
                } else {
                    out.push_str(&name.replace("%%", "%"));
                }
                rest = after;
            }
            '%' => {
                if let Some(after) = rest.strip_prefix("%%") {
                    out.push('%');
                    rest = after;
                } else {
                    let (value, len) = first_variable(rest, vars).map_err(Error::Variable)?;
                    bind(&mut out, value);
                    rest = &rest[len..];
                }
            }
            c => {
                out.push(c);
                rest = &rest[c.len_utf8()..];
            }
        }
    }
    Ok((out, values))
}

fn ends_with_e(text: &str) -> bool {
    let mut back = text.chars().rev();
    matches!(back.next(), Some('E' | 'e')) && !back.next().is_some_and(|c| c.is_alphanumeric() || c == '_')
}

/// The offset behind the closing quote of what begins with a quote.
fn end_of_quoted(text: &str, quote: char, escapes: bool) -> Option<usize> {
    let mut chars = text.char_indices().skip(1).peekable();
    while let Some((at, c)) = chars.next() {
        if escapes && c == '\\' {
            chars.next();
        } else if c == quote {
            if chars.peek().is_some_and(|(_, next)| *next == quote) {
                chars.next();
            } else {
                return Some(at + 1);
            }
        }
    }
    None
}

fn has_variable(text: &str) -> bool {
    text.replace("%%", "").contains('%')
}

fn unquoted(text: &str, escapes: bool) -> String {
    let text = text.replace("''", "'");
    if !escapes {
        return text;
    }
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        out.push(if c == '\\' { chars.next().unwrap_or('\\') } else { c });
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(query: &str, kind: Kind, user: &str, want: &str, values: &[&str]) {
        let (query, bound) = prepare(query, kind, &Vars::of_name(user)).unwrap();
        assert_eq!(
            (query.as_str(), bound.iter().map(String::as_str).collect::<Vec<_>>()),
            (want, values.to_vec())
        );
    }

    #[test]
    fn variables_become_values() {
        let evil = "a'; DROP TABLE users; --@x";
        check(
            "SELECT '/srv/%d/%n' AS home, 5000 AS uid FROM users WHERE userid = '%u' AND a = %n",
            Kind::Postgres,
            evil,
            "SELECT $1 AS home, 5000 AS uid FROM users WHERE userid = $2 AND a = $3",
            &["/srv/x/a'; DROP TABLE users; --", evil, "a'; DROP TABLE users; --"],
        );
        check("SELECT 'it''s %u'", Kind::Sqlite, "bob", "SELECT ?", &["it's bob"]);
        check("SELECT 'it\\'s %u', \"%d\"", Kind::MySql, "bob@x", "SELECT ?, ?", &["it's bob@x", "x"]);
        check("SELECT E'\\\\%n', 'E%n'", Kind::Postgres, "b", "SELECT $1, $2", &["\\b", "Eb"]);
        check(
            "SELECT '100%%', x FROM t WHERE u LIKE '%Lu%%'",
            Kind::Sqlite,
            "Bob",
            "SELECT '100%', x FROM t WHERE u LIKE ?",
            &["bob%"],
        );
        check("SELECT '%{user | username}'", Kind::Sqlite, "bob@x", "SELECT ?", &["bob"]);
        check("SELECT 'ä' FROM \"t\"", Kind::Postgres, "b", "SELECT 'ä' FROM \"t\"", &[]);
    }

    #[test]
    fn what_cannot_be_bound_is_refused() {
        for query in ["SELECT \"%u\"", "SELECT `%u`", "SELECT '%u", "SELECT %x", "SELECT '%"] {
            assert!(prepare(query, Kind::Postgres, &Vars::of_name("bob")).is_err(), "{query}");
        }
    }
}
