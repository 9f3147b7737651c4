//! An IMAP client for tests: Dovecot's `imap` on a pipe, started by `doveadm exec`, without any server; or a connection to a server.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};

use dsync_model::mutf7;

/// One untagged response: its text, with `{}` where literals stood, and those.
#[derive(Debug)]
pub struct Response {
    pub text: String,
    pub literals: Vec<Vec<u8>>,
}

/// One session; it logs out when dropped.
pub struct Imap {
    child: Option<Child>,
    to: Box<dyn Write + Send>,
    from: BufReader<Box<dyn Read + Send>>,
    tags: u32,
    selected: Option<String>,
}

impl Imap {
    /// Starts a session; `command` runs `imap`.
    pub fn start(command: Command) -> Imap {
        Imap::start_logging(command, Stdio::null())
    }

    /// The same; what the server complains of goes to `log`.
    pub fn start_logging(mut command: Command, log: impl Into<Stdio>) -> Imap {
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(log).spawn().expect("imap starts");
        let to = Box::new(child.stdin.take().expect("piped"));
        let from: Box<dyn Read + Send> = Box::new(child.stdout.take().expect("piped"));
        let from = BufReader::new(from);
        let mut imap = Imap { child: Some(child), to, from, tags: 0, selected: None };
        let greeting = imap.response().expect("imap greets");
        assert!(greeting.text.starts_with("* PREAUTH"), "{}", greeting.text);
        imap
    }

    /// Logs in to a server on this machine; an error tells what became of it.
    pub fn log_in(port: u16, user: &str, password: &str) -> Result<Imap, String> {
        let lost = |e: std::io::Error| e.to_string();
        let stream = TcpStream::connect(("127.0.0.1", port)).map_err(lost)?;
        let from: Box<dyn Read + Send> = Box::new(stream.try_clone().map_err(lost)?);
        let to = Box::new(stream);
        let mut imap = Imap { child: None, to, from: BufReader::new(from), tags: 0, selected: None };
        imap.response()?;
        imap.try_command(&format!("LOGIN {user} {password}"))?;
        Ok(imap)
    }

    /// Sends a command that must succeed, and gives the untagged responses.
    pub fn command(&mut self, line: &str) -> Vec<Response> {
        self.try_command(line).unwrap_or_else(|text| panic!("IMAP: {line}: {text}"))
    }

    /// The same; the server's words come back if it says no, or what became of the connection.
    pub fn try_command(&mut self, line: &str) -> Result<Vec<Response>, String> {
        self.tags += 1;
        let tag = format!("t{} ", self.tags);
        write!(self.to, "{tag}{line}\r\n").map_err(|e| e.to_string())?;
        let mut responses = Vec::new();
        loop {
            let response = self.response()?;
            match response.text.strip_prefix(&tag) {
                Some(done) if done.starts_with("OK") => return Ok(responses),
                Some(failed) => return Err(failed.to_owned()),
                None => responses.push(response),
            }
        }
    }

    fn response(&mut self) -> Result<Response, String> {
        let (mut text, mut literals) = (String::new(), Vec::new());
        loop {
            let mut line = Vec::new();
            self.from.read_until(b'\n', &mut line).map_err(|e| e.to_string())?;
            if line.is_empty() {
                return Err("imap ended".into());
            }
            let line = String::from_utf8_lossy(&line);
            let line = line.trim_end_matches(['\r', '\n']);
            let literal = line
                .strip_suffix('}')
                .and_then(|l| l.rsplit_once('{'))
                .and_then(|(before, size)| Some((before.to_owned(), size.parse::<usize>().ok()?)));
            let Some((before, size)) = literal else {
                text.push_str(line);
                return Ok(Response { text, literals });
            };
            text.push_str(&before);
            text.push_str("{}");
            let mut bytes = vec![0; size];
            self.from.read_exact(&mut bytes).map_err(|e| e.to_string())?;
            literals.push(bytes);
        }
    }

    /// Selects a mailbox, or looks again at the one that is selected.
    pub fn select(&mut self, mailbox: &str) {
        if self.selected.as_deref() == Some(mailbox) {
            self.command("NOOP");
            return;
        }
        self.command(&format!("SELECT {}", quoted(mailbox)));
        self.selected = Some(mailbox.to_owned());
    }

    /// Leaves the mailbox that is selected.
    pub fn unselect(&mut self) {
        if self.selected.take().is_some() {
            self.command("UNSELECT");
        }
    }

    /// Appends a message.
    pub fn append(&mut self, mailbox: &str, flags: &str, date: &str, message: &str) {
        self.unselect();
        let message = message.replace('\n', "\r\n");
        let (mailbox, size) = (quoted(mailbox), message.len());
        self.command(&format!("APPEND {mailbox} ({flags}) \"{date}\" {{{size}+}}\r\n{message}"));
    }
}

impl Drop for Imap {
    fn drop(&mut self) {
        let _ = self.try_logout();
        self.child.take().map(|mut child| child.wait());
    }
}

impl Imap {
    fn try_logout(&mut self) -> std::io::Result<()> {
        self.to.write_all(b"out LOGOUT\r\n")?;
        std::io::copy(&mut self.from, &mut std::io::sink()).map(drop)
    }
}

/// A mailbox name as IMAP spells it.
pub fn quoted(name: &str) -> String {
    format!("\"{}\"", mutf7::encode(name).replace('\\', "\\\\").replace('"', "\\\""))
}
