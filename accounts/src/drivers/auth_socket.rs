//! Dovecot's own auth service as the userdb: whatever its databases are, the answers are the same as Dovecot's.
//!
//! The protocol is the master's side of `auth-userdb`: `USER` and `LIST` on a Unix socket, fields between tabs.

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    os::unix::net::UnixStream,
    path::Path,
    time::Duration,
};

use super::Fields;
use crate::user::UserError;

const ANSWER_WAIT: Duration = Duration::from_secs(60);
/// Longest line of an answer.
const LINE_BYTES_MAX: u64 = 1 << 20;
/// Most users that are listed.
const USERS_MAX: usize = 10_000_000;

/// The fields of a user, if Dovecot has them.
pub(crate) fn user(socket: &Path, name: &str) -> Result<Option<Fields>, UserError> {
    let mut talk = Talk::begin(socket)?;
    talk.say(&format!("USER\t1\t{}\tservice=doveadm\n", escaped(name)))?;
    loop {
        let line = talk.line()?;
        let mut words = line.split('\t');
        let (kind, id) = (words.next().unwrap_or_default(), words.next());
        match kind {
            "USER" if id == Some("1") => {
                let named = words.next().map(unescaped);
                let mut fields: Fields = words
                    .map(|word| word.split_once('=').unwrap_or((word, "yes")))
                    .map(|(key, value)| (key.to_owned(), unescaped(value)))
                    .collect();
                fields.extend(named.map(|named| ("user".to_owned(), named)));
                return Ok(Some(fields));
            }
            "NOTFOUND" if id == Some("1") => return Ok(None),
            "FAIL" if id == Some("1") => {
                let reason = words.find_map(|word| word.strip_prefix("reason=")).map(unescaped);
                let reason = reason.unwrap_or_else(|| "internal failure; its log says more".to_owned());
                return Err(talk.failed(io::Error::other(reason)));
            }
            _ => {}
        }
    }
}

/// All users that Dovecot lists.
pub(crate) fn names(socket: &Path) -> Result<Vec<String>, UserError> {
    let mut talk = Talk::begin(socket)?;
    talk.say("LIST\t1\tservice=doveadm\n")?;
    let mut names = Vec::new();
    loop {
        let line = talk.line()?;
        let mut words = line.split('\t');
        match (words.next(), words.next(), words.next()) {
            (Some("LIST"), Some("1"), Some(name)) if names.len() < USERS_MAX => names.push(unescaped(name)),
            (Some("LIST"), ..) => return Err(talk.failed(io::Error::other("lists too many users"))),
            (Some("DONE"), Some("1"), None | Some("")) => return Ok(names),
            (Some("DONE"), Some("1"), Some(_)) => {
                return Err(UserError::Unsupported(format!(
                    "{}: Dovecot's userdb cannot list users",
                    talk.socket.display()
                )));
            }
            _ => {}
        }
    }
}

struct Talk<'a> {
    socket: &'a Path,
    stream: BufReader<UnixStream>,
}

impl<'a> Talk<'a> {
    fn begin(socket: &'a Path) -> Result<Talk<'a>, UserError> {
        let open = || -> io::Result<UnixStream> {
            let stream = UnixStream::connect(socket)?;
            stream.set_read_timeout(Some(ANSWER_WAIT))?;
            stream.set_write_timeout(Some(ANSWER_WAIT))?;
            Ok(stream)
        };
        let stream =
            open().map_err(|source| UserError::Temporary { what: socket.display().to_string(), source })?;
        let mut talk = Talk { socket, stream: BufReader::new(stream) };
        talk.say(&format!("VERSION\t1\t0\nCPID\t{}\n", std::process::id()))?;
        loop {
            let line = talk.line()?;
            if let Some(version) = line.strip_prefix("VERSION\t")
                && version.split('\t').next() != Some("1")
            {
                return Err(talk.failed(io::Error::other("speaks another version of the auth protocol")));
            }
            if line.starts_with("SPID\t") {
                return Ok(talk);
            }
        }
    }

    fn failed(&self, source: io::Error) -> UserError {
        UserError::Temporary { what: self.socket.display().to_string(), source }
    }

    fn say(&mut self, text: &str) -> Result<(), UserError> {
        let said = self.stream.get_mut().write_all(text.as_bytes());
        said.map_err(|error| self.failed(error))
    }

    fn line(&mut self) -> Result<String, UserError> {
        let mut line = Vec::new();
        let read = (&mut self.stream).take(LINE_BYTES_MAX).read_until(b'\n', &mut line);
        read.map_err(|error| self.failed(error))?;
        if line.pop() != Some(b'\n') {
            return Err(self.failed(io::Error::new(io::ErrorKind::UnexpectedEof, "closed the connection")));
        }
        Ok(String::from_utf8_lossy(&line).into_owned())
    }
}

/// Dovecot's escapes for tabs and line ends.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\x01' => out.push_str("\x011"),
            '\t' => out.push_str("\x01t"),
            '\n' => out.push_str("\x01n"),
            '\r' => out.push_str("\x01r"),
            '\0' => out.push_str("\x010"),
            c => out.push(c),
        }
    }
    out
}

fn unescaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        if c != '\x01' {
            out.push(c);
            continue;
        }
        match chars.next() {
            Some('1') => out.push('\x01'),
            Some('t') => out.push('\t'),
            Some('n') => out.push('\n'),
            Some('r') => out.push('\r'),
            Some('0') => out.push('\0'),
            Some(other) => out.push(other),
            None => {}
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn escapes_go_both_ways() {
        let text = "a\tb\nc\x01d\re\0";
        assert!(!escaped(text).contains(['\t', '\n']));
        assert_eq!(unescaped(&escaped(text)), text);
    }

    /// A service that says its hello and then `answer`, whatever it is asked.
    fn served(answer: &'static str) -> (std::path::PathBuf, std::thread::JoinHandle<()>) {
        static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let number = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("dsync-auth-{}-{number}", std::process::id()));
        let listener = UnixListener::bind(&path).unwrap();
        let thread = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            stream.write_all(b"VERSION\t1\t2\nSPID\t7\n").unwrap();
            let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
            lines.by_ref().find(|line| line.as_ref().unwrap().starts_with(['U', 'L']));
            stream.write_all(answer.as_bytes()).unwrap();
        });
        (path, thread)
    }

    #[test]
    fn answers_are_understood() {
        let ask = |answer, question: &dyn Fn(&Path) -> String| {
            let (path, thread) = served(answer);
            let told = question(&path);
            thread.join().unwrap();
            std::fs::remove_file(path).unwrap();
            told
        };
        let user = |path: &Path| format!("{:?}", super::user(path, "bob").map_err(|error| error.status()));
        let found = ask("USER\t1\tbob\thome=/h\x01tx\tuid=5\tnice\n", &user);
        assert_eq!(found, r#"Ok(Some([("home", "/h\tx"), ("uid", "5"), ("nice", "yes"), ("user", "bob")]))"#);
        assert_eq!(ask("USER\t2\tx\nNOTFOUND\t1\n", &user), "Ok(None)");
        assert_eq!(ask("FAIL\t1\treason=no\n", &user), "Err(75)");
        assert_eq!(ask("USER\t1\tbo", &user), "Err(75)");
        let names = |path: &Path| format!("{:?}", super::names(path).map_err(|error| error.status()));
        assert_eq!(ask("LIST\t1\ta\nLIST\t1\tb\nDONE\t1\n", &names), r#"Ok(["a", "b"])"#);
        assert_eq!(ask("LIST\t1\ta\nDONE\t1\tfail\n", &names), "Err(78)");
    }
}
