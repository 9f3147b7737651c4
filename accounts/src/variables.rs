//! Variables in settings: `%u`, `%2.1Ln`, `%{user | domain | upper}`; expanded once, never again.

use crate::user::User;

/// Largest text that expansion makes.
const EXPANDED_BYTES_MAX: usize = 64 << 10;

/// A variable that cannot be expanded.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum VarError {
    /// No such variable.
    #[error("unknown variable {0}")]
    Unknown(String),
    /// No such filter in `%{variable | filter}`.
    #[error("unknown filter {filter:?} in {variable}")]
    Filter {
        /// The filter.
        filter: String,
        /// The whole variable.
        variable: String,
    },
    /// The variable has no value here.
    #[error("{variable}: user {user:?} has no home directory")]
    NoHome {
        /// The variable.
        variable: String,
        /// The user.
        user: String,
    },
    /// The variable has no value here.
    #[error("{0} has no value")]
    NoValue(String),
    /// A `%` is not followed by a variable.
    #[error("\"%\" without a variable; write \"%%\" for a percent sign")]
    Incomplete,
    /// The value must not stand where it would.
    #[error("{variable}: the value {value:?} is not safe here")]
    Unsafe {
        /// The variable.
        variable: String,
        /// The value.
        value: String,
    },
    /// The result is too long.
    #[error("expands to over {EXPANDED_BYTES_MAX} bytes")]
    TooLong,
    /// A command without words.
    #[error("the command is empty")]
    Empty,
}

/// The values that variables have.
pub(crate) struct Vars<'a> {
    user: &'a str,
    /// `None`: this template knows no home at all.
    home: Option<Option<&'a str>>,
    command: Option<(Option<&'a str>, &'a str)>,
    /// What a database gave: `%{sql:home}`, `%{ldap:uid}`, `%{passwd_file:x}`.
    found: &'a [(String, String)],
}

/// What comes before the name of a database's field.
const DATABASES: [&str; 4] = ["sql:", "ldap:", "passwd_file:", "userdb:"];

impl<'a> Vars<'a> {
    /// The variables of a user whose home is known, or known to be missing.
    pub fn of(user: &'a User) -> Self {
        let home = user.home.as_ref().and_then(|home| home.to_str());
        Self { user: &user.name, home: Some(home), command: None, found: &[] }
    }

    /// The variables of a name alone.
    pub fn of_name(user: &'a str) -> Self {
        Self { user, home: Some(None), command: None, found: &[] }
    }

    /// The same with the fields that a database gave.
    pub fn with_found(self, found: &'a [(String, String)]) -> Self {
        Self { found, ..self }
    }

    /// The plain value of a variable, by its long or short name.
    fn value(&self, name: &str, shown: &str) -> Result<&'a str, VarError> {
        let parts = self.user.split_once('@');
        if let Some(field) = DATABASES.iter().find_map(|database| name.strip_prefix(database)) {
            // A field that is not there has an empty value.
            let same = |(key, _): &&(String, String)| key.eq_ignore_ascii_case(field);
            return Ok(self.found.iter().find(same).map_or("", |(_, value)| value.as_str()));
        }
        match (name, self.command) {
            ("user" | "u", _) => Ok(self.user),
            ("username" | "n", _) => Ok(parts.map_or(self.user, |(local, _)| local)),
            ("domain" | "d", _) => Ok(parts.map_or("", |(_, domain)| domain)),
            ("home" | "h", _) if let Some(home) = self.home => home
                .ok_or_else(|| VarError::NoHome { variable: shown.to_owned(), user: self.user.to_owned() }),
            ("login", Some((login, _))) => login.ok_or_else(|| VarError::NoValue(shown.to_owned())),
            ("host", Some((_, host))) => Ok(host),
            _ => Err(VarError::Unknown(shown.to_owned())),
        }
    }
}

/// Expands every variable once; what comes out of a value is not looked at again.
pub(crate) fn expand(template: &str, vars: &Vars<'_>) -> Result<String, VarError> {
    // A value of dots only would climb out of the directory that the template means.
    expand_with(template, vars, |value| value != "." && value != "..")
}

/// The same; each value is written as `escape` says, for a language in which it must not be more than a value.
#[cfg(feature = "ldap")]
pub(crate) fn expand_escaped(
    template: &str,
    vars: &Vars<'_>,
    escape: impl Fn(&str) -> String,
) -> Result<String, VarError> {
    let mut out = String::new();
    let mut rest = template;
    while let Some(at) = rest.find('%') {
        out.push_str(&rest[..at]);
        let variable = &rest[at..];
        if let Some(after) = variable.strip_prefix("%%") {
            out.push('%');
            rest = after;
            continue;
        }
        let (value, len) = one(variable, vars)?;
        out.push_str(&escape(&value));
        if out.len() > EXPANDED_BYTES_MAX {
            return Err(VarError::TooLong);
        }
        rest = &variable[len..];
    }
    out.push_str(rest);
    Ok(out)
}

/// Expands the variable that `text` begins with; also tells how long the variable is.
#[cfg(feature = "sql")]
pub(crate) fn first_variable(text: &str, vars: &Vars<'_>) -> Result<(String, usize), VarError> {
    one(text, vars)
}

fn expand_with(template: &str, vars: &Vars<'_>, safe: impl Fn(&str) -> bool) -> Result<String, VarError> {
    let mut out = String::new();
    let mut rest = template;
    while let Some(at) = rest.find('%') {
        out.push_str(&rest[..at]);
        let variable = &rest[at..];
        if let Some(after) = variable.strip_prefix("%%") {
            out.push('%');
            rest = after;
            continue;
        }
        let (value, len) = one(variable, vars)?;
        if !safe(&value) {
            return Err(VarError::Unsafe { variable: variable[..len].to_owned(), value });
        }
        out.push_str(&value);
        if out.len() > EXPANDED_BYTES_MAX {
            return Err(VarError::TooLong);
        }
        rest = &variable[len..];
    }
    out.push_str(rest);
    Ok(out)
}

/// Expands the variable at the start of `text`; also tells how long the variable is.
fn one(text: &str, vars: &Vars<'_>) -> Result<(String, usize), VarError> {
    let number_end =
        1 + text[1..].find(|c: char| !matches!(c, '0'..='9' | '.' | '-')).ok_or(VarError::Incomplete)?;
    let cut =
        Cut::parse(&text[1..number_end]).ok_or_else(|| VarError::Unknown(text[..number_end].to_owned()))?;
    let modifiers = text[number_end..].bytes().take_while(u8::is_ascii_uppercase).count();
    let name_at = number_end + modifiers;
    let first = text[name_at..].chars().next().ok_or(VarError::Incomplete)?;
    let mut end = name_at + first.len_utf8();
    let mut value;
    if first == '{' {
        let close = text[name_at..].find('}').ok_or(VarError::Incomplete)?;
        end = name_at + close + 1;
        value = long(&text[name_at + 1..end - 1], &text[..end], vars)?;
    } else if first.is_ascii_lowercase() && "undh".contains(first) {
        value = vars.value(&text[name_at..end], &text[..end])?.to_owned();
    } else {
        return Err(VarError::Unknown(text[..end].to_owned()));
    }
    for modifier in text[number_end..name_at].chars() {
        value = modify(modifier, &value).ok_or_else(|| VarError::Unknown(text[..end].to_owned()))?;
    }
    Ok((cut.apply(&value), end))
}

/// Expands `name | filter | filter`.
fn long(inner: &str, shown: &str, vars: &Vars<'_>) -> Result<String, VarError> {
    let mut words = inner.split('|').map(str::trim);
    let name = words.next().unwrap_or_default();
    if name.len() < 2 {
        return Err(VarError::Unknown(shown.to_owned()));
    }
    let mut value = vars.value(name, shown)?.to_owned();
    for filter in words {
        value = match filter {
            "lower" => value.to_lowercase(),
            "upper" => value.to_uppercase(),
            "username" => value.split_once('@').map_or(value.clone(), |(local, _)| local.to_owned()),
            "domain" => value.split_once('@').map_or(String::new(), |(_, domain)| domain.to_owned()),
            _ => {
                return Err(VarError::Filter { filter: filter.to_owned(), variable: shown.to_owned() });
            }
        };
    }
    Ok(value)
}

fn modify(modifier: char, value: &str) -> Option<String> {
    Some(match modifier {
        'L' => value.to_lowercase(),
        'U' => value.to_uppercase(),
        'R' => value.chars().rev().collect(),
        'T' => value.trim_end().to_owned(),
        // Dovecot reads the leading digits, and 0 if there are none.
        'X' => {
            let digits = value.find(|c: char| !c.is_ascii_digit()).unwrap_or(value.len());
            format!("{:x}", value[..digits].parse::<u64>().unwrap_or(0))
        }
        _ => return None,
    })
}

/// `[offset.]width`: the part of a value to take, in characters.
struct Cut {
    /// Negative: from the end.
    offset: i64,
    /// 0: all; negative: all but so many.
    width: i64,
    zeros: bool,
}

impl Cut {
    fn parse(text: &str) -> Option<Self> {
        if text.is_empty() {
            return Some(Self { offset: 0, width: 0, zeros: false });
        }
        let (offset, width) = text.split_once('.').unwrap_or(("0", text));
        let number = |text: &str| text.parse::<i64>().ok().filter(|number| number.abs() <= 1000);
        Some(Self { offset: number(offset)?, width: number(width)?, zeros: width.starts_with('0') })
    }

    fn apply(&self, value: &str) -> String {
        let chars: Vec<char> = value.chars().collect();
        let len = chars.len() as i64;
        let from = if self.offset < 0 { (len + self.offset).max(0) } else { self.offset.min(len) };
        let left = len - from;
        let take = match self.width {
            0 => left,
            width if width < 0 => (left + width).max(0),
            width => width.min(left),
        };
        let mut out = String::new();
        if self.zeros {
            out.extend((take..self.width).map(|_| '0'));
        }
        out.extend(chars[from as usize..(from + take) as usize].iter());
        out
    }
}

/// What the variables of a remote command stand for.
#[derive(Clone, Copy, Debug)]
pub struct CommandVars<'a> {
    /// The login name on the other host.
    pub login: Option<&'a str>,
    /// The other host.
    pub host: &'a str,
    /// The user whose mail is synchronised.
    pub user: &'a str,
}

/// Makes the words of a command: splits the template at white space, then expands each word.
///
/// Values may have only `A-Z a-z 0-9 @ . _ + = -` and no leading `-`, so that neither a shell on the other host
/// nor an option parser reads more into them. Without a login, words with `%{login}` are left out, together with
/// a `-l` before them.
pub fn command(template: &str, vars: &CommandVars<'_>) -> Result<Vec<String>, VarError> {
    let values = Vars { user: vars.user, home: None, command: Some((vars.login, vars.host)), found: &[] };
    let mut words: Vec<String> = Vec::new();
    for word in template.split_whitespace() {
        if vars.login.is_none() && word.contains("%{login}") {
            if word == "%{login}" && words.last().is_some_and(|last| last == "-l") {
                words.pop();
            }
            continue;
        }
        words.push(expand_with(word, &values, is_plain_word)?);
    }
    if words.is_empty() { Err(VarError::Empty) } else { Ok(words) }
}

fn is_plain_word(value: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"@._+=-".contains(&byte);
    !value.is_empty() && !value.starts_with('-') && value.bytes().all(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn alice() -> User {
        User { home: Some("/home/%u".into()), ..User::named("Alice@Example.org") }
    }

    #[test]
    fn variables_expand_once() {
        let user = alice();
        for (template, want) in [
            ("%u", "Alice@Example.org"),
            ("/%d/%n", "/Example.org/Alice"),
            ("/%Ld/%Un", "/example.org/ALICE"),
            ("%h%%u", "/home/%u%u"),
            ("%{user | username | lower}", "alice"),
            ("%{user|domain|upper}", "EXAMPLE.ORG"),
            ("%{username}+%{domain}+%{home}", "Alice+Example.org+/home/%u"),
            ("%1n/%1.2n", "A/li"),
            ("%1Ln %L{user}", "a alice@example.org"),
            ("%Rn", "ecilA"),
            ("%-2.0n %-2n", "ce Ali"),
            ("%08n", "000Alice"),
            ("%Xn", "0"),
        ] {
            assert_eq!(expand(template, &Vars::of(&user)).as_deref(), Ok(want), "{template}");
        }
    }

    #[test]
    fn what_has_no_value_is_an_error() {
        let user = User::named("bob");
        for (template, want) in [
            ("%x", "unknown variable %x"),
            ("%{nope}", "unknown variable %{nope}"),
            ("%{host}", "unknown variable %{host}"),
            ("%Yu", "unknown variable %Yu"),
            ("%é", "unknown variable %é"),
            ("100%", "\"%\" without a variable; write \"%%\" for a percent sign"),
            ("%h/x", "%h: user \"bob\" has no home directory"),
            ("%{user|md5}", "unknown filter \"md5\" in %{user|md5}"),
        ] {
            let error = expand(template, &Vars::of(&user)).expect_err(template);
            assert_eq!(error.to_string(), want);
        }
        assert!(expand("/mail/%2n/x", &Vars::of_name("..bob")).is_err());
    }

    #[test]
    fn a_command_is_split_before_it_is_expanded() {
        let template = "ssh -l%{login} %{host} dsync-server --stdio -u%u";
        let vars = CommandVars { login: Some("vmail"), host: "mx2", user: "a@b" };
        let words = command(template, &vars).unwrap();
        assert_eq!(words, ["ssh", "-lvmail", "mx2", "dsync-server", "--stdio", "-ua@b"]);
        let words = command(template, &CommandVars { login: None, ..vars }).unwrap();
        assert_eq!(words, ["ssh", "mx2", "dsync-server", "--stdio", "-ua@b"]);
        for host in ["-oProxyCommand=x", "a b", "a;b", "$(x)", "", "a\n"] {
            assert!(command(template, &CommandVars { host, ..vars }).is_err(), "{host}");
        }
        assert_eq!(command(" ", &vars), Err(VarError::Empty));
    }

    #[test]
    fn no_template_makes_it_panic() {
        use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};

        let pieces = [
            "%", "u", "{", "}", "user", "|", "lower", "-", ".", "0", "9", "3", "L", "X", "é", "h", " ", "%n",
        ];
        let mut random = StdRng::seed_from_u64(3);
        for _ in 0..20_000 {
            let len = random.random_range(0..10);
            let template: String = (0..len).map(|_| pieces[random.random_range(0..pieces.len())]).collect();
            let _ = expand(&template, &Vars::of(&alice()));
            let _ = command(&template, &CommandVars { login: None, host: "h", user: "é@x" });
        }
    }
}
