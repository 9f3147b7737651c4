//! The password database: whether a password is the user's.

use std::path::Path;

#[cfg(any(feature = "sql", feature = "ldap"))]
use crate::drivers;
#[cfg(feature = "ldap")]
use crate::drivers::ldap::Login;
use crate::{
    conf::{Secret, Section, Settings},
    drivers::auth_socket,
    passwd_file::PasswdFile,
    schemes,
    user::UserError,
    userdb::{dovecots_socket, driver, fields, normalized, unsupported, words},
};

/// Checked instead of the hash of an unknown user, so that both answers take as long.
const DECOY: &str = "{ARGON2ID}$argon2id$v=19$m=65536,t=3,p=1$F/mYEMsrwKuJCB29hf14EQ$\
                     jaQXCJm9rueaG0suSZdrTXewPxn9uXKaRbJvxR1h5LQ";

/// Fields that let a user in only under conditions dsync cannot check.
const CONDITIONS: [&str; 3] = ["allow_nets", "allow_real_nets", "allow_real_net"];

/// Checks a user's password: the first `passdb` that accepts it decides.
///
/// With `auth_socket_path` Dovecot's own auth service is asked instead, and for drivers that only Dovecot has as well.
pub fn verify(settings: &Settings, user: &str, password: &str) -> Result<bool, UserError> {
    let user = normalized(settings, user)?;
    if let Some(socket) = settings.text("auth_socket_path") {
        return auth_socket::accepts(Path::new(&socket), &user, password);
    }
    let mut asked = false;
    let mut missed = false;
    for section in settings.root().of_kind("passdb").filter(|section| !section.yes("master")) {
        asked = true;
        let denies = section.yes("deny");
        let known = match driver(section) {
            "static" => check_static(section, &user, password)?,
            "passwd-file" => check_passwd_file(settings, section, &user, password, denies)?,
            #[cfg(feature = "sql")]
            "sql" => match drivers::sql::password(settings, section, &user)? {
                (None, _) => Answer::Unknown { checked: false },
                (Some(_), _) if denies => Answer::Known,
                (Some(given), scheme) => check_fields(&user, &given, &scheme, password)?,
            },
            #[cfg(feature = "ldap")]
            "ldap" => match drivers::ldap::login(settings, section, &user, password)? {
                (Login::Unknown, _) => Answer::Unknown { checked: false },
                (Login::Bound(_) | Login::Fields(_), _) if denies => Answer::Known,
                (Login::Bound(accepted), _) => answer(accepted)?,
                (Login::Fields(given), scheme) => check_fields(&user, &given, &scheme, password)?,
            },
            // A list of those to be denied that only Dovecot can read must not be passed over.
            other => match dovecots_socket(settings).filter(|_| !denies) {
                Some(socket) => answer(auth_socket::accepts(&socket, &user, password)?)?,
                None => return Err(unsupported("passdb", section, other)),
            },
        };
        match known {
            Answer::Known if denies => return Ok(false),
            Answer::Accepted if denies => return Ok(false),
            Answer::Accepted => return Ok(true),
            Answer::Known => missed = true,
            Answer::Unknown { checked } => missed |= checked,
        }
    }
    if !asked {
        return Err(UserError::Unsupported("no passdb is configured to check passwords with".to_owned()));
    }
    if !missed {
        // The answer is no, whatever this says.
        let _ = schemes::verify(DECOY, "PLAIN", password)?;
    }
    Ok(false)
}

enum Answer {
    Accepted,
    /// The user is there; the password is wrong, or was not looked at.
    Known,
    /// The user is not there; `checked` if a decoy took the time.
    Unknown {
        checked: bool,
    },
}

fn check_static(section: &Section, user: &str, password: &str) -> Result<Answer, UserError> {
    let mut given = words(section.text("args").unwrap_or_default());
    given.extend(fields(section));
    for key in ["password", "passdb_static_password", "static_password"] {
        given.extend(section.text(key).map(|value| ("password".to_owned(), value.to_owned())));
    }
    let Some(hash) = allowed(user, &given)? else { return Ok(Answer::Known) };
    match hash {
        Hash::Anything => Ok(Answer::Accepted),
        Hash::None => Ok(Answer::Known),
        Hash::Text(hash) => {
            let scheme = section.text("default_password_scheme").unwrap_or("PLAIN");
            answer(schemes::verify(&hash, scheme, password)?)
        }
    }
}

/// Checks a password against the fields that a database gave.
#[cfg(any(feature = "sql", feature = "ldap"))]
fn check_fields(
    user: &str,
    given: &[(String, String)],
    scheme: &str,
    password: &str,
) -> Result<Answer, UserError> {
    match allowed(user, given)? {
        Some(Hash::Anything) => Ok(Answer::Accepted),
        Some(Hash::Text(hash)) => answer(schemes::verify(&hash, scheme, password)?),
        Some(Hash::None) | None => Ok(Answer::Known),
    }
}

fn answer(accepted: bool) -> Result<Answer, UserError> {
    Ok(if accepted { Answer::Accepted } else { Answer::Known })
}

/// What the user must present.
enum Hash {
    Anything,
    Text(String),
    None,
}

/// Reads the fields of a passdb; `None` if they keep the user out.
fn allowed(user: &str, given: &[(String, String)]) -> Result<Option<Hash>, UserError> {
    let yes = |key: &str| {
        given.iter().any(|(name, value)| name == key && !matches!(value.as_str(), "no" | "n" | "0" | "false"))
    };
    if let Some((key, _)) = given.iter().find(|(key, _)| CONDITIONS.contains(&key.as_str())) {
        return Err(UserError::Unsupported(format!(
            "user {user:?}: passdb field {key} is not supported by dsync"
        )));
    }
    if yes("nologin") {
        return Ok(None);
    }
    let password = given.iter().rev().find(|(key, value)| key == "password" && !value.is_empty());
    Ok(Some(match password {
        // As in Dovecot, nopassword with a password is a mistake, and the password stands.
        Some((_, text)) => Hash::Text(text.clone()),
        None if yes("nopassword") => Hash::Anything,
        None => Hash::None,
    }))
}

fn check_passwd_file(
    settings: &Settings,
    section: &Section,
    user: &str,
    password: &str,
    denies: bool,
) -> Result<Answer, UserError> {
    let file = PasswdFile::of(settings, section)?;
    let look = file.find(user)?;
    let Some(line) = look.found else {
        let Some(decoy) = look.decoy.filter(|_| !denies) else {
            return Ok(Answer::Unknown { checked: false });
        };
        // The answer is no, whatever this says; an unsupported scheme of another user is not this one's error.
        let checked = schemes::verify(&decoy, &file.scheme, password).is_ok();
        return Ok(Answer::Unknown { checked });
    };
    if denies {
        return Ok(Answer::Known);
    }
    let mut given = vec![("password".to_owned(), line.password)];
    given.extend(words(&line.extra));
    match allowed(user, &given)? {
        Some(Hash::Anything) => Ok(Answer::Accepted),
        Some(Hash::Text(hash)) => answer(schemes::verify(&hash, &file.scheme, password)?),
        Some(Hash::None) | None => Ok(Answer::Known),
    }
}

/// Whether a user may exist, for a static userdb: no only if every passdb is a file or SQL and none has the name.
pub(crate) fn may_exist(settings: &Settings, user: &str) -> Result<bool, UserError> {
    let mut missed = false;
    for section in settings.root().of_kind("passdb") {
        if section.yes("deny") || section.yes("master") {
            continue;
        }
        #[cfg(feature = "sql")]
        if driver(section) == "sql" && drivers::sql::password(settings, section, user)?.0.is_none() {
            missed = true;
            continue;
        }
        if driver(section) != "passwd-file" || PasswdFile::of(settings, section)?.find(user)?.found.is_some()
        {
            return Ok(true);
        }
        missed = true;
    }
    Ok(!missed)
}

/// Checks a password against a configured secret, which is plain text or `{SCHEME}...`.
pub fn verify_secret(secret: &Secret, password: &str) -> Result<bool, UserError> {
    if secret.expose().is_empty() {
        return Ok(false);
    }
    schemes::verify(secret.expose(), "PLAIN", password)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::passwd_file::testing::temp_file;

    fn check(text: &str, user: &str, password: &str) -> Result<bool, UserError> {
        verify(&Settings::parse(text).unwrap(), user, password)
    }

    #[test]
    fn a_static_password_is_everyones() {
        let old = "passdb {\n driver = static\n args = password=secret\n}";
        let new = "passdb static {\n password = {SHA256}K7gNU3sdo+OL0wNhqoVWhr3g6s1xYv72ol/pe/Unols=\n}";
        for text in [old, new] {
            assert!(check(text, "alice", "secret").unwrap());
            assert!(!check(text, "alice", "Secret").unwrap());
            assert!(!check(text, "alice", "").unwrap());
        }
        assert!(check("passdb {\n driver = static\n args = nopassword=y\n}", "alice", "x").unwrap());
        assert!(!check("passdb {\n driver = static\n args =\n}", "alice", "").unwrap());
    }

    #[test]
    fn a_passwd_file_has_each_users_password() {
        let file = temp_file(
            "alice:{PLAIN}a:\nbob:$2y$05$JIDiMKgVLA/jsJuGqe3g4OUy/bU9wW.vQKN.a6HaGAfdvFazXTU3G\nempty:\nopen::::::: nopassword=y\n\
             out:{PLAIN}x::::::nologin=y\nnets:{PLAIN}x::::::allow_nets=127.0.0.0/8\n",
        );
        let text = format!("passdb {{\n driver = passwd-file\n args = {}\n}}", file.display());
        for (user, password, want) in [
            ("alice", "a", true),
            ("alice", "b", false),
            ("bob", "secret", true),
            ("bob", "secre", false),
            ("empty", "", false),
            ("open", "anything", true),
            ("out", "x", false),
            ("nobody", "a", false),
        ] {
            assert_eq!(check(&text, user, password).unwrap(), want, "{user} {password}");
        }
        assert_eq!(check(&text, "nets", "x").unwrap_err().status(), 78);
        let text = format!("{text}\nuserdb {{\n driver = static\n args = home=/srv/%u\n}}");
        let settings = Settings::parse(&text).unwrap();
        assert!(crate::lookup(&settings, "alice").is_ok());
        assert_eq!(crate::lookup(&settings, "nobody").unwrap_err().status(), 67);
    }

    #[test]
    fn a_deny_list_keeps_users_out() {
        let file = temp_file("bad\n");
        let text = format!(
            "passdb {{\n driver = passwd-file\n deny = yes\n args = {}\n}}\npassdb {{\n driver = static\n args = password=p\n}}",
            file.display()
        );
        assert!(check(&text, "good", "p").unwrap());
        assert!(!check(&text, "bad", "p").unwrap());
    }

    #[test]
    fn what_is_not_supported_says_so() {
        let error = check("passdb {\n driver = pam\n}", "alice", "x").unwrap_err();
        assert_eq!(error.status(), 78);
        assert!(error.to_string().contains("passdb driver \"pam\""));
        assert_eq!(check("", "alice", "x").unwrap_err().status(), 78);
    }

    #[test]
    fn a_secret_is_plain_or_has_a_scheme() {
        let check = |secret: &str, password| verify_secret(&Secret::new(secret.to_owned()), password);
        assert!(check("secret", "secret").unwrap());
        assert!(!check("secret", "secre").unwrap());
        assert!(!check("", "").unwrap());
        assert!(check("{SHA}5en6G6MezRroT3XKqkdPOmY/BfQ=", "secret").unwrap());
        assert_eq!(check("{OTP}x", "secret").unwrap_err().status(), 78);
        assert!(check("{not a scheme", "{not a scheme").unwrap());
    }
}
