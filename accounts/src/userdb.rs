//! The user database: whether a user exists, their home and mail, and who there is.

use std::{
    collections::BTreeSet,
    env, fs, io,
    path::{Path, PathBuf},
};

use crate::{
    conf::{Section, Settings},
    drivers::{self, auth_socket},
    passdb,
    passwd_file::{Line, PasswdFile},
    user::{User, UserError, check_user},
    variables::{Vars, expand},
};

/// The `driver` of a `userdb` or `passdb` section; in Dovecot 2.4 the section's name may say it.
pub(crate) fn driver(section: &Section) -> &str {
    section.text("driver").unwrap_or(&section.title)
}

/// The words `key=value` of a text; a word without `=` has an empty value.
pub(crate) fn words(text: &str) -> Vec<(String, String)> {
    text.split_whitespace()
        .map(|word| word.split_once('=').unwrap_or((word, "")))
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect()
}

/// The fields of a 2.4 `fields { key = value }` section.
pub(crate) fn fields(section: &Section) -> Vec<(String, String)> {
    let entries = section.of_kind("fields").flat_map(|fields| &fields.entries);
    let text = |key: &str| section.of_kind("fields").find_map(|fields| fields.text(key)).map(str::to_owned);
    entries.filter_map(|entry| Some((entry.key.clone(), text(&entry.key)?))).collect()
}

/// The name as the databases have it.
pub(crate) fn normalized(settings: &Settings, name: &str) -> Result<String, UserError> {
    check_user(name)?;
    let Some(format) = settings.username_format() else { return Ok(name.to_owned()) };
    let variable = |source| UserError::Variable { field: "auth_username_format".to_owned(), source };
    let name = expand(&format, &Vars::of_name(name)).map_err(variable)?;
    check_user(&name)?;
    Ok(name)
}

/// Finds a user: the first `userdb` that has them answers.
///
/// Without any `userdb` in the settings, every name that is safe in a path is a user without a home. With `auth_socket_path`
/// Dovecot's own auth service is asked instead, and for drivers that only Dovecot has as well.
pub fn lookup(settings: &Settings, name: &str) -> Result<User, UserError> {
    let name = normalized(settings, name)?;
    if let Some(socket) = settings.text("auth_socket_path") {
        let mut user = User::named(&name);
        let found = find_database(&mut user, auth_socket::user(Path::new(&socket), &name)?)?;
        return if found { Ok(user) } else { Err(UserError::Unknown(name)) };
    }
    let mut asked = false;
    for section in settings.root().of_kind("userdb") {
        asked = true;
        let mut user = User::named(&name);
        user.set_fields(&words(section.text("default_fields").unwrap_or_default()))?;
        let found = match driver(section) {
            "static" => find_static(settings, section, &mut user)?,
            "passwd-file" => find_passwd_file(settings, section, &mut user)?,
            "passwd" => find_passwd(&mut user)?,
            // It repeats what a passdb said at a login; here nobody logs in.
            "prefetch" => false,
            #[cfg(feature = "sql")]
            "sql" => match drivers::sql::user(settings, section, &name)? {
                Some(mut found) => {
                    add_templates(section, &mut found, &name)?;
                    find_database(&mut user, Some(found))?
                }
                None => false,
            },
            #[cfg(feature = "ldap")]
            "ldap" => find_database(&mut user, drivers::ldap::user(settings, section, &name)?)?,
            other => match dovecots_socket(settings) {
                Some(socket) => find_database(&mut user, auth_socket::user(&socket, &name)?)?,
                None => return Err(unsupported("userdb", section, other)),
            },
        };
        if found {
            user.set_fields(&words(section.text("override_fields").unwrap_or_default()))?;
            return Ok(user);
        }
    }
    if asked { Err(UserError::Unknown(name)) } else { Ok(User::named(&name)) }
}

/// A user of whom the name is all that is known: no `userdb` is asked.
pub fn unlisted(settings: &Settings, name: &str) -> Result<User, UserError> {
    Ok(User::named(&normalized(settings, name)?))
}

/// Makes the error for a driver that dsync does not have.
pub(crate) fn unsupported(kind: &str, section: &Section, driver: &str) -> UserError {
    UserError::Unsupported(format!("{}: {kind} driver {driver:?} is not supported by dsync", section.place))
}

/// Where a Dovecot on this machine answers for its userdb, if one runs.
pub(crate) fn dovecots_socket(settings: &Settings) -> Option<PathBuf> {
    let base = settings.text("base_dir").unwrap_or_else(|| "/run/dovecot".to_owned());
    let socket = Path::new(&base).join("auth-userdb");
    socket.exists().then_some(socket)
}

/// Takes what a database gave, if it has the user.
fn find_database(user: &mut User, found: Option<Vec<(String, String)>>) -> Result<bool, UserError> {
    let Some(found) = found else { return Ok(false) };
    user.set_found(&found)?;
    Ok(true)
}

/// 2.4's `fields { home = %{sql:dir} }`: more fields, made of those that the database gave.
#[cfg(feature = "sql")]
fn add_templates(section: &Section, found: &mut Vec<(String, String)>, name: &str) -> Result<(), UserError> {
    let mut made = Vec::new();
    for (field, template) in fields(section) {
        let value = expand(&template, &Vars::of_name(name).with_found(found))
            .map_err(|source| UserError::Variable { field: field.clone(), source })?;
        made.push((field, value));
    }
    found.extend(made);
    Ok(())
}

fn find_static(settings: &Settings, section: &Section, user: &mut User) -> Result<bool, UserError> {
    let mut given = words(section.text("args").unwrap_or_default());
    given.extend(fields(section));
    let yes = |value: &str| !matches!(value, "no" | "n" | "0");
    let mut everyone = section.yes("userdb_static_allow_all_users") || section.yes("static_allow_all_users");
    given.retain(|(key, value)| {
        everyone |= key == "allow_all_users" && yes(value);
        key != "allow_all_users"
    });
    if !everyone && !passdb::may_exist(settings, &user.name)? {
        return Ok(false);
    }
    user.set_fields(&given)?;
    Ok(true)
}

fn find_passwd_file(settings: &Settings, section: &Section, user: &mut User) -> Result<bool, UserError> {
    let file = PasswdFile::of(settings, section)?;
    let Some(line) = file.find(&user.name)?.found else { return Ok(false) };
    user.set_fields(&fields(section))?;
    user.set_fields(&line_fields(&line))?;
    Ok(true)
}

/// The userdb fields of a line: its columns, then `userdb_...` of its last column.
fn line_fields(line: &Line) -> Vec<(String, String)> {
    let mut given = vec![
        ("uid".to_owned(), line.uid.clone()),
        ("gid".to_owned(), line.gid.clone()),
        ("home".to_owned(), line.home.clone()),
    ];
    let extra = words(&line.extra).into_iter();
    given.extend(extra.filter_map(|(key, value)| Some((key.strip_prefix("userdb_")?.to_owned(), value))));
    given
}

fn find_passwd(user: &mut User) -> Result<bool, UserError> {
    let found = nix::unistd::User::from_name(&user.name)
        .map_err(|errno| UserError::Temporary { what: "passwd".to_owned(), source: errno.into() })?;
    let Some(found) = found else { return Ok(false) };
    user.home = Some(found.dir);
    user.uid = Some(found.uid.as_raw());
    user.gid = Some(found.gid.as_raw());
    // As in Dovecot, a system user has the system's groups.
    user.extra.insert("system_groups_user".to_owned(), found.name);
    Ok(true)
}

/// Lists the users, sorted, each once; databases that cannot list are left out if another can.
pub fn iterate(settings: &Settings) -> Result<Vec<String>, UserError> {
    let safe = |names: Vec<String>| names.into_iter().filter(|name| check_user(name).is_ok());
    if let Some(socket) = settings.text("auth_socket_path") {
        let names: BTreeSet<String> = safe(auth_socket::names(Path::new(&socket))?).collect();
        return Ok(names.into_iter().collect());
    }
    let mut names = BTreeSet::new();
    let mut listed = false;
    let mut refused = None;
    for section in settings.root().of_kind("userdb") {
        let more = match driver(section) {
            "passwd-file" => PasswdFile::of(settings, section).and_then(|file| file.names()),
            "passwd" => passwd_names(settings),
            #[cfg(feature = "sql")]
            "sql" => drivers::sql::names(settings, section),
            #[cfg(feature = "ldap")]
            "ldap" => drivers::ldap::names(settings, section),
            other if !matches!(other, "static" | "prefetch") && dovecots_socket(settings).is_some() => {
                dovecots_socket(settings).map_or(Ok(Vec::new()), |socket| auth_socket::names(&socket))
            }
            other => Err(UserError::Unsupported(format!(
                "{}: userdb driver {other:?} cannot list users",
                section.place
            ))),
        };
        match more {
            Ok(more) => {
                listed = true;
                names.extend(safe(more));
            }
            Err(error @ UserError::Unsupported(_)) => refused = refused.or(Some(error)),
            Err(error) => return Err(error),
        }
    }
    match refused {
        _ if listed => Ok(names.into_iter().collect()),
        Some(error) => Err(error),
        None => Err(UserError::Unsupported("no userdb is configured to list users from".to_owned())),
    }
}

/// The names in /etc/passwd whose UIDs are within `first_valid_uid` (500) and `last_valid_uid`.
fn passwd_names(settings: &Settings) -> Result<Vec<String>, UserError> {
    let limit = |setting: &str| settings.text(setting).and_then(|text| text.parse::<u32>().ok());
    let first = limit("first_valid_uid").unwrap_or(500);
    let last = limit("last_valid_uid").filter(|&last| last != 0).unwrap_or(u32::MAX);
    let path = Path::new("/etc/passwd");
    let text = fs::read(path).map_err(|source| temporary(path, source))?;
    let text = String::from_utf8_lossy(&text);
    let name = |line: &str| {
        let mut columns = line.split(':');
        let (name, uid) = (columns.next()?, columns.nth(1)?.parse::<u32>().ok()?);
        (first..=last).contains(&uid).then(|| name.to_owned())
    };
    Ok(text.lines().filter_map(name).collect())
}

/// Makes the error for a database file that cannot be read.
pub(crate) fn temporary(path: &Path, source: io::Error) -> UserError {
    UserError::Temporary { what: path.display().to_string(), source }
}

/// The user who runs this program: `$USER` and `$HOME`, or else what the system knows of the process's user.
pub fn invoking_user() -> User {
    let uid = nix::unistd::getuid();
    let system = nix::unistd::User::from_uid(uid).ok().flatten();
    let name = env::var("USER").ok().filter(|name| check_user(name).is_ok());
    let name = name.or_else(|| system.as_ref().map(|user| user.name.clone()));
    let home = env::var_os("HOME").filter(|home| !home.is_empty()).map(PathBuf::from);
    User {
        name: name.unwrap_or_else(|| uid.to_string()),
        home: home.or_else(|| system.map(|user| user.dir)),
        uid: Some(uid.as_raw()),
        gid: Some(nix::unistd::getgid().as_raw()),
        ..User::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::passwd_file::testing::temp_file;

    fn settings(text: &str) -> Settings {
        Settings::parse(text).unwrap()
    }

    #[test]
    fn without_a_userdb_every_safe_name_is_a_user() {
        assert_eq!(lookup(&Settings::defaults(), "alice").unwrap(), User::named("alice"));
        assert_eq!(lookup(&Settings::defaults(), "../alice").unwrap_err().status(), 67);
        assert_eq!(iterate(&Settings::defaults()).unwrap_err().status(), 78);
    }

    #[test]
    fn static_fields_of_both_syntaxes_agree() {
        let old = settings(
            "userdb {\n driver = static\n args = uid=5000 gid=root mail=maildir:%h/Maildir home=/srv/%Ld/%n quota=1\n}",
        );
        let new = settings(
            "userdb static {\n fields {\n uid = 5000\n gid = root\n home = /srv/%{user|domain|lower}/%{user|username}\n \
             mail = maildir:%{home}/Maildir\n quota = 1\n }\n}",
        );
        let user = lookup(&old, "alice@Example.org").unwrap();
        assert_eq!(user.home.as_deref(), Some(Path::new("/srv/example.org/alice")));
        assert_eq!(user.mail.as_deref(), Some("maildir:/srv/example.org/alice/Maildir"));
        assert_eq!((user.uid, user.gid), (Some(5000), Some(0)));
        assert_eq!(user.extra["quota"], "1");
        assert_eq!(lookup(&new, "alice@Example.org").unwrap(), user);
        assert_eq!(old.mail_location(&user).unwrap(), user.mail);
    }

    #[test]
    fn passwd_files_are_tried_in_order() {
        let first = temp_file(
            "# users\nalice:{PLAIN}x:1000:1001::/home/alice::userdb_mail=mdbox:%h/m userdb_q=2 y=3\nbroken\n",
        );
        let second = temp_file("bob:::::\nbob:::::/again\nalice:x:9:9::/wrong\n");
        let text = format!(
            "userdb {{\n driver = passwd-file\n args = username_format=%n {}\n}}\nuserdb passwd-file {{\n passwd_file_path = {}\n}}",
            first.display(),
            second.display()
        );
        let settings = settings(&text);
        let alice = lookup(&settings, "alice@x").unwrap();
        assert_eq!(alice.home.as_deref(), Some(Path::new("/home/alice")));
        assert_eq!(alice.mail.as_deref(), Some("mdbox:/home/alice/m"));
        assert_eq!((alice.uid, alice.gid), (Some(1000), Some(1001)));
        assert_eq!(alice.extra.keys().collect::<Vec<_>>(), ["q"]);
        assert_eq!(lookup(&settings, "bob").unwrap().home, None);
        assert_eq!(lookup(&settings, "carol").unwrap_err().status(), 67);
        assert_eq!(iterate(&settings).unwrap(), ["alice", "bob", "broken"]);
    }

    /// As in Dovecot: `%Lu` unless set, and nothing if it is set to nothing.
    #[test]
    fn names_are_in_lower_case_where_databases_are_asked() {
        let userdb = "userdb {\n driver = static\n args = home=/srv/%u\n}\n";
        let home =
            |text: &str| lookup(&settings(&format!("{text}{userdb}")), "Alice@Example.Org").unwrap().home;
        for (text, expected) in [
            ("", "/srv/alice@example.org"),
            ("auth_username_format = %Ln@%d\n", "/srv/alice@Example.Org"),
            ("auth_username_format = %{user|lower}\n", "/srv/alice@example.org"),
            ("auth_username_format =\n", "/srv/Alice@Example.Org"),
        ] {
            assert_eq!(home(text).as_deref(), Some(Path::new(expected)), "{text}");
        }
        assert_eq!(lookup(&Settings::defaults(), "Alice").unwrap().name, "Alice");
    }

    #[test]
    fn the_system_users_are_users() {
        let settings = settings(
            "first_valid_uid = 0\nuserdb {\n driver = passwd\n override_fields = home=/elsewhere/%u\n}",
        );
        let root = lookup(&settings, "root").unwrap();
        assert_eq!((root.uid, root.home.as_deref()), (Some(0), Some(Path::new("/elsewhere/root"))));
        assert!(iterate(&settings).unwrap().contains(&"root".to_owned()));
    }

    #[test]
    fn an_unsupported_driver_is_an_error_only_when_it_is_asked() {
        let settings =
            settings("base_dir = /nonexistent\nuserdb {\n driver = passwd\n}\nuserdb {\n driver = lua\n}");
        assert!(lookup(&settings, "root").is_ok());
        let error = lookup(&settings, "no-such-user").unwrap_err();
        assert_eq!(error.status(), 78);
        assert_eq!(
            error.to_string(),
            "/etc/dsync/dsync.conf: line 5: userdb driver \"lua\" is not supported by dsync"
        );
    }

    #[test]
    fn a_missing_file_is_temporary() {
        let settings = settings("userdb {\n driver = passwd-file\n args = /nonexistent/users\n}");
        assert_eq!(lookup(&settings, "alice").unwrap_err().status(), 75);
    }

    #[test]
    fn the_invoking_user_has_a_safe_name() {
        assert!(check_user(&invoking_user().name).is_ok());
    }
}
