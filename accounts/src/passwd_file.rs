//! Files like /etc/passwd: `user:password:uid:gid:(gecos):home:(shell):extra fields`.

use std::path::{Path, PathBuf};

use crate::{
    conf::{Section, Settings, read_limited},
    user::UserError,
    userdb::temporary,
    variables::{Vars, expand},
};

/// Largest file of users: several hundred thousand of them.
const FILE_BYTES_MAX: usize = 64 << 20;

/// One line of the file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Line {
    pub name: String,
    pub password: String,
    pub uid: String,
    pub gid: String,
    pub home: String,
    /// `key=value` words.
    pub extra: String,
}

/// What a look into the file found.
pub(crate) struct Found {
    pub found: Option<Line>,
    /// A password of some user in the file: what an unknown user's is checked against, to take as long.
    pub decoy: Option<String>,
}

/// Which file a section means, and how names and passwords are in it.
pub(crate) struct PasswdFile {
    /// The file's name, with variables.
    path: String,
    username_format: String,
    /// The scheme of passwords that do not name theirs.
    pub scheme: String,
}

impl PasswdFile {
    /// Reads `args` (2.3) or `passwd_file_path` (2.4) of a section.
    pub fn of(settings: &Settings, section: &Section) -> Result<Self, UserError> {
        let default_scheme =
            section.text("default_password_scheme").or(section.text("passdb_default_password_scheme"));
        let default_scheme = default_scheme
            .map(str::to_owned)
            .or_else(|| settings.text("passdb_default_password_scheme"))
            .unwrap_or_else(|| "CRYPT".to_owned());
        let mut file = Self { path: String::new(), username_format: "%u".to_owned(), scheme: default_scheme };
        let format = section.text("auth_username_format").or(section.text("passwd_file_username_format"));
        if let Some(format) = format {
            file.username_format = format.to_owned();
        }
        let mut rest = section.text("args").unwrap_or_default().trim();
        while !rest.is_empty() {
            let (word, after) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
            match word.split_once('=') {
                Some(("scheme", value)) => file.scheme = value.to_owned(),
                Some(("username_format", value)) => file.username_format = value.to_owned(),
                // The path is all the rest: it may have spaces.
                _ => {
                    file.path = rest.to_owned();
                    break;
                }
            }
            rest = after.trim_start();
        }
        let modern = ["passwd_file_path", "userdb_passwd_file_path", "passdb_passwd_file_path"];
        if let Some(path) = modern.iter().find_map(|key| section.text(key)) {
            file.path = path.to_owned();
        }
        if file.path.is_empty() {
            file.path = settings.text("passwd_file_path").unwrap_or_default();
        }
        if file.path.is_empty() {
            return Err(UserError::Invalid(format!(
                "{}: passwd-file without the name of a file",
                section.place
            )));
        }
        Ok(file)
    }

    /// Looks for a user; of several lines with one name the first counts.
    pub fn find(&self, user: &str) -> Result<Found, UserError> {
        let variable = |source| UserError::Variable { field: "passwd-file".to_owned(), source };
        let vars = Vars::of_name(user);
        let path = PathBuf::from(expand(&self.path, &vars).map_err(variable)?);
        let name = expand(&self.username_format, &vars).map_err(variable)?;
        let mut found = None;
        let mut decoy = None;
        for line in lines(&read(&path)?) {
            if decoy.is_none() && !line.password.is_empty() {
                decoy = Some(line.password.clone());
            }
            if found.is_none() && line.name == name {
                found = Some(line);
            }
        }
        Ok(Found { found, decoy })
    }

    /// The names in the file, unless there is one file a domain or user.
    pub fn names(&self) -> Result<Vec<String>, UserError> {
        if self.path.replace("%%", "").contains('%') {
            let what = format!("passwd-file {:?} cannot list users: its name has variables", self.path);
            return Err(UserError::Unsupported(what));
        }
        let path = PathBuf::from(self.path.replace("%%", "%"));
        Ok(lines(&read(&path)?).map(|line| line.name).collect())
    }
}

fn read(path: &Path) -> Result<String, UserError> {
    let bytes = read_limited(path, FILE_BYTES_MAX).map_err(|source| temporary(path, source))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn lines(text: &str) -> impl Iterator<Item = Line> {
    text.lines().map(str::trim_end).filter(|line| !line.is_empty() && !line.starts_with(['#', ':'])).map(
        |line| {
            let mut columns = line.splitn(8, ':').map(str::to_owned);
            let mut next = || columns.next().unwrap_or_default();
            let (name, password, uid, gid) = (next(), next(), next(), next());
            let (_gecos, home, _shell, extra) = (next(), next(), next(), next());
            Line { name, password, uid, gid, home, extra }
        },
    )
}

#[cfg(test)]
pub(crate) mod testing {
    //! Files for tests of the databases.

    use std::{
        env, fs,
        path::PathBuf,
        process,
        sync::atomic::{AtomicU32, Ordering},
    };

    /// A file that goes away with the value.
    pub struct TempFile(PathBuf);

    impl TempFile {
        /// The file's name, for a configuration text.
        pub fn display(&self) -> std::path::Display<'_> {
            self.0.display()
        }
    }

    impl Drop for TempFile {
        fn drop(&mut self) {
            let _ = fs::remove_file(&self.0);
        }
    }

    /// Writes a file of its own in the temporary directory.
    pub fn temp_file(text: &str) -> TempFile {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = env::temp_dir().join(format!("dsync-accounts-{}-{number}", process::id()));
        fs::write(&path, text).unwrap();
        TempFile(path)
    }
}
