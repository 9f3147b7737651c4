//! Dovecot's own auth service as the userdb: whatever its databases are, the answers are the same as Dovecot's.
//!
//! The protocol is the master's side of `auth-userdb`: `USER` and `LIST` on a Unix socket, fields between tabs; and for passwords the
//! client's side of `auth-client` beside it: `AUTH` with the mechanism PLAIN.

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    os::unix::net::UnixStream,
    path::Path,
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use zeroize::Zeroizing;

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
    // Without a mask a 2.4 lists nobody.
    talk.say("LIST\t1\tservice=doveadm\tuser=*\n")?;
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

/// Whether Dovecot takes this password for this user; `userdb` is the socket beside which that for clients is.
pub(crate) fn accepts(userdb: &Path, name: &str, password: &str) -> Result<bool, UserError> {
    // They would end the name or the password, and the answer be about another one.
    if name.contains('\0') || password.contains('\0') {
        return Ok(false);
    }
    let socket = userdb.with_file_name("auth-client");
    let mut talk = Talk::begin(&socket)?;
    let response =
        Zeroizing::new(STANDARD.encode(Zeroizing::new(format!("\0{name}\0{password}")).as_bytes()));
    talk.say(&format!("CPID\t{}\n", std::process::id()))?;
    let question =
        format!("AUTH\t1\tPLAIN\tservice=doveadm\tsecured\tno-penalty\tresp={}\n", response.as_str());
    talk.say(&Zeroizing::new(question))?;
    loop {
        let line = talk.line()?;
        let mut words = line.split('\t');
        match (words.next(), words.next()) {
            (Some("OK"), Some("1")) => {
                let words: Vec<&str> = words.collect();
                let user = words.iter().find_map(|word| word.strip_prefix("user=")).map(unescaped);
                // Dovecot may know the user by another name, whose mail this is not.
                let same = user.is_some_and(|user| user.to_lowercase() == name.to_lowercase());
                return Ok(same && !words.contains(&"nologin"));
            }
            (Some("FAIL"), Some("1")) if words.clone().any(|word| word == "temp") => {
                return Err(talk.failed(io::Error::other("internal failure; its log says more")));
            }
            (Some("FAIL" | "CONT"), Some("1")) => return Ok(false),
            _ => {}
        }
    }
}

struct Talk<'a> {
    socket: &'a Path,
    stream: BufReader<UnixStream>,
}

impl<'a> Talk<'a> {
    /// Connects, and says hello as a master does; a client adds its `CPID`, on which the socket for masters hangs up.
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
        talk.say("VERSION\t1\t0\n")?;
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
        let dir = std::env::temp_dir().join(format!("dsync-auth-{}-{number}", std::process::id()));
        std::fs::create_dir(&dir).unwrap();
        let path = dir.join("auth-userdb");
        let listener = UnixListener::bind(&path).unwrap();
        let thread = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            stream.write_all(b"VERSION\t1\t2\nSPID\t7\n").unwrap();
            let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
            lines.by_ref().find(|line| line.as_ref().unwrap().starts_with(['U', 'L', 'A']));
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
            std::fs::remove_dir_all(path.parent().unwrap()).unwrap();
            told
        };
        let user = |path: &Path| format!("{:?}", super::user(path, "bob").map_err(|error| error.status()));
        let found = ask("USER\t1\tbob\thome=/h\x01tx\tuid=5\tnice\n", &user);
        assert_eq!(found, r#"Ok(Some([("home", "/h\tx"), ("uid", "5"), ("nice", "yes"), ("user", "bob")]))"#);
        assert_eq!(ask("USER\t2\tx\nNOTFOUND\t1\n", &user), "Ok(None)");
        assert_eq!(ask("FAIL\t1\treason=no\n", &user), "Err(75)");
        assert_eq!(ask("USER\t1\tbo", &user), "Err(75)");
        let accepts = |path: &Path| {
            let client = path.with_file_name("auth-client");
            std::fs::rename(path, &client).unwrap();
            let told = format!("{:?}", super::accepts(path, "Bob", "x").map_err(|error| error.status()));
            std::fs::rename(&client, path).unwrap();
            told
        };
        assert_eq!(ask("CUID\t3\nDONE\nOK\t1\tuser=bob\n", &accepts), "Ok(true)");
        for answer in [
            "OK\t1\tuser=eve\n",
            "OK\t1\n",
            "OK\t1\tuser=bob\tnologin\n",
            "FAIL\t1\tuser=bob\n",
            "CONT\t1\t\n",
        ] {
            assert_eq!(ask(answer, &accepts), "Ok(false)", "{answer}");
        }
        assert_eq!(ask("FAIL\t1\tuser=bob\ttemp\n", &accepts), "Err(75)");
        let names = |path: &Path| format!("{:?}", super::names(path).map_err(|error| error.status()));
        assert_eq!(ask("LIST\t1\ta\nLIST\t1\tb\nDONE\t1\n", &names), r#"Ok(["a", "b"])"#);
        assert_eq!(ask("LIST\t1\ta\nDONE\t1\tfail\n", &names), "Err(78)");
    }
}
