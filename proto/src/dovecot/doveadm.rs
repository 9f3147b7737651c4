//! The doveadm protocol, in front of a session on TCP or a unix socket: version, password, one command line, its reply.
//!
//! Both halves take bytes and give bytes. As server we never name a version, so that a client neither waits for multiplexing nor
//! sends fields of 2.4.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::{Buf, BufMut, BytesMut};

use super::text;
use crate::ProtoError;

/// Longest line that is read before a session begins, and longest one of a log.
const LINE_BYTES_MAX: usize = 64 << 10;
/// Longest command line of one who was let in. A state (`-s`) is as long as an argument may be that the system hands to a program: 128 KiB.
const COMMAND_BYTES_MAX: usize = 1 << 20;
/// Most arguments of a command.
const ARGUMENTS_MAX: usize = 100;
/// The channels of packets: the log, and what a command prints. 0 is the protocol itself.
pub const LOG: u8 = b'L';
pub const PRINTED: u8 = b'O';
/// The first argument of a command whose reply is wanted in packets; for a dsync-server, which names no version.
const IN_PACKETS: &str = "--in-packets";
const CLIENT_HELLO: &[u8] = b"VERSION\tdoveadm-server\t1\t2\n";

/// A status that a reply names, as Dovecot spells it and as a program ends with it.
const CODES: &[(&str, u8)] = &[
    ("USAGE", 64),
    ("DATAERR", 65),
    ("NOUSER", 67),
    ("NOTFOUND", 68),
    ("TEMPFAIL", 75),
    ("PROTOCOL", 76),
    ("NOPERM", 77),
    ("CHANGED", 2),
    ("UNKNOWN", 75),
];

/// How bad a line of the peer's log is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Level {
    Debug,
    Info,
    Warning,
    Error,
}

/// One line of the peer's log.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Logged {
    pub level: Level,
    pub text: String,
}

/// The exit status that a status line names; what is not known is 75.
fn status_of(reply: &str) -> u8 {
    let code = reply.split(' ').next().unwrap_or_default();
    let known = CODES.iter().find(|(name, _)| *name == code).map(|(_, status)| *status);
    known.or_else(|| code.parse().ok().filter(|status| *status > 0)).unwrap_or(75)
}

/// The status line for an exit status.
fn reply_for(status: u8) -> &'static str {
    CODES.iter().find(|(_, known)| *known == status).map_or("", |(name, _)| name)
}

fn line(input: &mut BytesMut, bytes_max: usize) -> Result<Option<String>, ProtoError> {
    let found = memchr::memchr(b'\n', input);
    if found.unwrap_or(input.len()) > bytes_max {
        return Err(ProtoError::Malformed("a line is too long".into()));
    }
    let Some(end) = found else { return Ok(None) };
    let line = input.split_to(end);
    input.advance(1);
    Ok(Some(String::from_utf8_lossy(&line).into_owned()))
}

/// Takes the server's packets apart.
#[derive(Default)]
pub struct Demux {
    channel: u8,
    left: usize,
    log: BytesMut,
    /// What the command writes to its standard output: a dsync-server's own channel.
    printed: BytesMut,
}

impl Demux {
    /// How far it is, for another process to go on there: channel and bytes left of the packet, and the begun line of the log.
    pub fn into_parts(self) -> (u8, u64, Vec<u8>) {
        (self.channel, self.left as u64, self.log.to_vec())
    }

    /// Goes on where another one was.
    pub fn from_parts((channel, left, log): (u8, u64, Vec<u8>)) -> Demux {
        Demux { channel, left: left as usize, log: BytesMut::from(&log[..]), ..Demux::default() }
    }

    /// Moves what belongs to the protocol from `input` to `plain`, and gives the lines of the log.
    pub fn take(&mut self, input: &mut BytesMut, plain: &mut BytesMut) -> Result<Vec<Logged>, ProtoError> {
        loop {
            if self.left == 0 {
                let Some(head) = input.first_chunk::<5>() else { break };
                let [channel, length @ ..] = *head;
                if !matches!(channel, 0 | LOG | PRINTED) {
                    return Err(ProtoError::Malformed(format!("there is no channel {channel}")));
                }
                self.channel = channel;
                self.left = u32::from_be_bytes(length) as usize;
                input.advance(5);
                continue;
            }
            let here = self.left.min(input.len());
            if here == 0 {
                break;
            }
            let data = input.split_to(here);
            self.left -= here;
            match self.channel {
                0 => plain.extend_from_slice(&data),
                PRINTED => self.printed.extend_from_slice(&data),
                _ => self.log.extend_from_slice(&data),
            }
        }
        let mut lines = Vec::new();
        while let Some(end) = memchr::memchr(b'\n', &self.log) {
            let line = self.log.split_to(end);
            self.log.advance(1);
            lines.extend(logged(&line));
        }
        if self.log.len() > LINE_BYTES_MAX {
            return Err(ProtoError::Malformed("a line of the log is too long".into()));
        }
        Ok(lines)
    }
}

fn logged(line: &[u8]) -> Option<Logged> {
    let (level, text) = line.split_first()?;
    let level = match level {
        1 => Level::Debug,
        2 => Level::Info,
        3 => Level::Warning,
        _ => Level::Error,
    };
    // A terminal is not to obey what a server says.
    let text: String = String::from_utf8_lossy(text).chars().filter(|c| !c.is_control()).collect();
    Some(Logged { level, text })
}

enum Asking {
    Greeting,
    Password,
    Values,
    Status,
    Open,
}

/// Calls a Dovecot's doveadm service.
pub struct Client {
    asking: Asking,
    password: Option<(String, String)>,
    command: Vec<u8>,
    /// The same for a dsync-server, if it is to be run there and not the beginning of a session.
    run: Option<Vec<u8>>,
    demux: Option<Demux>,
    minor: u32,
    plain: BytesMut,
    log: Vec<Logged>,
    values: BytesMut,
}

impl Client {
    /// For this command of this user's; `password` is the name and the word to show, if it comes to that. Begins to speak.
    pub fn new(password: Option<(String, String)>, command: &Command, output: &mut BytesMut) -> Client {
        output.extend_from_slice(CLIENT_HELLO);
        Client {
            asking: Asking::Greeting,
            password,
            command: command.to_line(),
            run: None,
            demux: None,
            minor: 0,
            plain: BytesMut::new(),
            log: Vec::new(),
            values: BytesMut::new(),
        }
    }

    /// The same for a command that the server runs: what it prints is had by [`Client::printed`], and `true` says that it succeeded.
    pub fn to_run(password: Option<(String, String)>, command: &Command, output: &mut BytesMut) -> Client {
        let mut ours = command.clone();
        ours.arguments.insert(0, IN_PACKETS.to_owned());
        Client { run: Some(ours.to_line()), ..Client::new(password, command, output) }
    }

    /// Takes what came. `true`: the command succeeded, and what follows is its own ([`Client::into_stream`]).
    pub fn advance(&mut self, input: &mut BytesMut, output: &mut BytesMut) -> Result<bool, Refusal> {
        loop {
            if let Some(demux) = &mut self.demux {
                self.log.extend(demux.take(input, &mut self.plain)?);
            }
            let source = if self.demux.is_some() { &mut self.plain } else { &mut *input };
            if matches!(self.asking, Asking::Open) {
                return Ok(true);
            }
            let Some(line) = line(source, LINE_BYTES_MAX)? else { return Ok(false) };
            match (&self.asking, line.as_str()) {
                (Asking::Greeting, version) if version.starts_with("VERSION\t") => {
                    let minor = version.strip_prefix("VERSION\tdoveadm-client\t1\t");
                    self.minor = minor.and_then(|minor| minor.parse().ok()).ok_or_else(|| {
                        ProtoError::OtherProtocol("it is a Dovecot of another doveadm protocol".into())
                    })?;
                }
                (Asking::Greeting, "-") => {
                    let Some((user, password)) = self.password.take() else {
                        return Err(Refusal::PasswordWanted);
                    };
                    let secret = BASE64.encode(format!("\0{user}\0{password}"));
                    output.extend_from_slice(format!("PLAIN\t{secret}\n").as_bytes());
                    self.asking = Asking::Password;
                }
                (Asking::Greeting | Asking::Password, "+") => {
                    let ours = self.run.as_ref().filter(|_| self.minor == 0);
                    output.extend_from_slice(ours.unwrap_or(&self.command));
                    self.demux = (self.minor > 0 || ours.is_some()).then(Demux::default);
                    self.asking = Asking::Values;
                }
                (Asking::Password, "-") => return Err(Refusal::PasswordWrong),
                (Asking::Values, values) if values.is_empty() || values.ends_with('\t') => {
                    // A Dovecot prints its values so.
                    for value in
                        text::split_list(values.trim_end_matches('\t').as_bytes()).unwrap_or_default()
                    {
                        if self.run.is_some() && !value.is_empty() {
                            self.values.extend_from_slice(&value);
                            self.values.extend_from_slice(b"\n");
                        }
                    }
                    self.asking = Asking::Status;
                }
                (Asking::Values | Asking::Status, "+") => self.asking = Asking::Open,
                (Asking::Values | Asking::Status, status) if status.starts_with('-') => {
                    return Err(Refusal::Status(status_of(&status[1..])));
                }
                (_, other) => {
                    let shown: String = other.chars().take(80).collect();
                    return Err(ProtoError::OtherProtocol(format!("it says {shown:?}")).into());
                }
            }
        }
    }

    /// What the server logged since this was last asked.
    pub fn log(&mut self) -> Vec<Logged> {
        std::mem::take(&mut self.log)
    }

    /// What the command printed since this was last asked.
    pub fn printed(&mut self) -> BytesMut {
        let mut printed = self.demux.as_mut().map(|demux| demux.printed.split()).unwrap_or_default();
        printed.unsplit(self.values.split());
        printed
    }

    /// How the rest of the stream is to be read, and what of it is here.
    pub fn into_stream(self) -> (Option<Demux>, BytesMut) {
        (self.demux, self.plain)
    }
}

/// Why a server does not do what it was asked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Refusal {
    PasswordWanted,
    PasswordWrong,
    /// It tried, and this is its exit status.
    Status(u8),
    Proto(ProtoError),
}

impl From<ProtoError> for Refusal {
    fn from(error: ProtoError) -> Refusal {
        Refusal::Proto(error)
    }
}

/// How the reply to a command is to be given.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Manner {
    /// As dsync takes it: what is printed and logged in packets.
    Packets,
    /// As Dovecot takes it from one who named no version: values, and a status. There is no place for a log.
    Values,
}

/// One command line.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Command {
    pub debug: bool,
    pub verbose: bool,
    pub user: String,
    pub name: String,
    pub arguments: Vec<String>,
}

impl Command {
    /// The command that begins a session for this user.
    pub fn dsync_server(user: &str, debug: bool) -> Command {
        let arguments = vec![format!("-u{user}")];
        Command { debug, user: user.into(), name: "dsync-server".into(), arguments, ..Command::default() }
    }

    /// The arguments of a command that is to be run here, `sync` or `backup`, and how its reply is wanted.
    pub fn to_be_run(&self) -> Option<(Vec<String>, Manner)> {
        if !matches!(self.name.as_str(), "sync" | "backup") {
            return None;
        }
        if let Some((first, arguments)) = self.arguments.split_first()
            && first == IN_PACKETS
        {
            return Some((arguments.to_vec(), Manner::Packets));
        }
        // A doveadm that was told of its user by the environment names it only ahead of the command.
        let mut arguments = self.arguments.clone();
        if !arguments.iter().take_while(|word| *word != "--").any(|word| word == "-u") {
            arguments.splice(0..0, ["-u".to_owned(), self.user.clone()]);
        }
        Some((arguments, Manner::Values))
    }

    fn to_line(&self) -> Vec<u8> {
        let flags = match (self.debug, self.verbose) {
            (true, true) => "Dv",
            (true, false) => "D",
            (false, true) => "v",
            (false, false) => "",
        };
        let fields =
            [flags, &self.user, &self.name].into_iter().chain(self.arguments.iter().map(String::as_str));
        let fields: Vec<&str> = fields.collect();
        let mut line = text::join_list(&fields);
        line.push(b'\n');
        line
    }

    /// Reads a command line. `None`: it has a flag that is not known, or too few fields.
    pub fn parse(line: &str) -> Option<Command> {
        let mut fields = text::split_list(line.as_bytes())?.into_iter();
        let mut next = || fields.next().and_then(|field| String::from_utf8(field).ok());
        let mut command = Command::default();
        let mut extended = false;
        for flag in next()?.chars() {
            match flag {
                'D' => command.debug = true,
                'v' => command.verbose = true,
                'x' => extended = true,
                _ => return None,
            }
        }
        if extended {
            next()?;
        }
        (command.user, command.name) = (next()?, next()?);
        while let Some(argument) = next() {
            command.arguments.push(argument);
        }
        (command.arguments.len() <= ARGUMENTS_MAX).then_some(command)
    }

    /// Says whether all arguments are such as `dsync-server` takes: those of the user named, and some that mean nothing here.
    pub fn is_dsync_server(&self) -> bool {
        let mut arguments = self.arguments.iter();
        while let Some(argument) = arguments.next() {
            let (option, value) = argument.split_at_checked(2).unwrap_or((argument, ""));
            let value = |rest: &mut std::slice::Iter<'_, String>| match value {
                "" => rest.next().cloned(),
                value => Some(value.to_owned()),
            };
            let known = match option {
                "-U" => argument == "-U",
                "-u" => value(&mut arguments).is_some_and(|user| user == self.user),
                "-T" => value(&mut arguments).is_some_and(|secs| secs.parse::<u32>().is_ok()),
                "-r" => value(&mut arguments).is_some(),
                _ => false,
            };
            if !known {
                return false;
            }
        }
        true
    }
}

/// What a client wants next.
#[derive(PartialEq, Eq)]
pub enum Asked {
    /// To show this name and password. Answer with [`Server::admit`] or [`Server::turn_away`].
    Password { user: String, password: String },
    /// To run this. Answer with [`Server::accept`] or [`Server::refuse`].
    Command(Command),
}

impl std::fmt::Debug for Asked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Asked::Password { user, .. } => write!(f, "Password({user:?})"),
            Asked::Command(command) => command.fmt(f),
        }
    }
}

enum Serving {
    Version,
    Password,
    Command,
}

/// Answers a Dovecot's doveadm.
pub struct Server {
    serving: Serving,
    trusted: bool,
}

impl Server {
    /// With `trusted`, no password is asked.
    pub fn new(trusted: bool) -> Server {
        Server { serving: Serving::Version, trusted }
    }

    /// Takes what came; `None` if that is not enough. On an error the connection is to be closed, `output` being sent.
    pub fn advance(
        &mut self,
        input: &mut BytesMut,
        output: &mut BytesMut,
    ) -> Result<Option<Asked>, ProtoError> {
        loop {
            let bytes_max = match self.serving {
                Serving::Version | Serving::Password => LINE_BYTES_MAX,
                Serving::Command => COMMAND_BYTES_MAX,
            };
            let Some(line) = line(input, bytes_max)? else { return Ok(None) };
            match self.serving {
                Serving::Version => {
                    let minor = line.strip_prefix("VERSION\tdoveadm-server\t1\t");
                    if minor.and_then(|minor| minor.parse::<u32>().ok()).is_none() {
                        return Err(ProtoError::OtherProtocol("it speaks another doveadm protocol".into()));
                    }
                    output.extend_from_slice(if self.trusted { b"+\n" } else { b"-\n" });
                    self.serving = if self.trusted { Serving::Command } else { Serving::Password };
                }
                Serving::Password => {
                    return match credentials(&line) {
                        Some((user, password)) => Ok(Some(Asked::Password { user, password })),
                        None => {
                            Server::turn_away(output);
                            Err(ProtoError::Malformed("it does not authenticate by PLAIN".into()))
                        }
                    };
                }
                Serving::Command => {
                    let command = Command::parse(&line);
                    return match command {
                        Some(command) => Ok(Some(Asked::Command(command))),
                        None => Err(ProtoError::Malformed("its command line is not understood".into())),
                    };
                }
            }
        }
    }

    /// The password is right.
    pub fn admit(&mut self, output: &mut BytesMut) {
        output.extend_from_slice(b"+\n");
        self.serving = Serving::Command;
    }

    /// It is not; the connection is to be closed.
    pub fn turn_away(output: &mut BytesMut) {
        output.extend_from_slice(b"-\n");
    }

    /// The session begins right behind this.
    pub fn accept(output: &mut BytesMut) {
        output.extend_from_slice(b"\n+\n");
    }

    /// The command is not done, and this is why.
    pub fn refuse(status: u8, output: &mut BytesMut) {
        output.extend_from_slice(format!("\n-{}\n", reply_for(status)).as_bytes());
    }

    /// A command that was run ended with this exit status.
    pub fn ended(status: u8, manner: Manner, output: &mut BytesMut) {
        // Dovecot 2.3 reads numbers, and takes its own word for 2 for 75.
        let reply = match (status, reply_for(status)) {
            (0, _) => "\n+\n".to_owned(),
            (status, "" | "CHANGED") => format!("\n-{status}\n"),
            (_, known) => format!("\n-{known}\n"),
        };
        match manner {
            Manner::Packets => Server::packet(0, reply.as_bytes(), output),
            Manner::Values => output.extend_from_slice(reply.as_bytes()),
        }
    }

    /// What a command printed, as a Dovecot's value.
    pub fn value(text: &[u8], output: &mut BytesMut) {
        let mut value = Vec::with_capacity(text.len() + 1);
        text::escape(text, &mut value);
        value.push(b'\t');
        output.extend_from_slice(&value);
    }

    /// Wraps data of a channel.
    pub fn packet(channel: u8, data: &[u8], output: &mut BytesMut) {
        output.put_u8(channel);
        output.put_u32(data.len() as u32);
        output.put_slice(data);
    }

    /// Wraps lines of a program's standard error as lines of a log.
    pub fn logged(lines: &[u8], output: &mut BytesMut) {
        let mut log = Vec::with_capacity(lines.len() + 16);
        for line in lines.split_inclusive(|byte| *byte == b'\n') {
            log.push(4);
            log.extend_from_slice(line);
        }
        Server::packet(LOG, &log, output);
    }
}

fn credentials(line: &str) -> Option<(String, String)> {
    let plain = BASE64.decode(line.strip_prefix("PLAIN\t")?).ok()?;
    let mut parts = plain.split(|byte| *byte == 0);
    let text = |part: &[u8]| String::from_utf8(part.to_vec()).ok();
    let (authorisation, user, password) = (parts.next()?, text(parts.next()?)?, text(parts.next()?)?);
    (authorisation.is_empty() && parts.next().is_none()).then_some((user, password))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_and_a_server_come_to_terms() {
        let command = Command::dsync_server("alice", true);
        let (mut to_server, mut to_client) = (BytesMut::new(), BytesMut::new());
        let mut client = Client::new(Some(("doveadm".into(), "s3cret".into())), &command, &mut to_server);
        let mut server = Server::new(false);
        assert_eq!(server.advance(&mut to_server, &mut to_client), Ok(None));
        assert_eq!(client.advance(&mut to_client, &mut to_server), Ok(false));
        let asked = server.advance(&mut to_server, &mut to_client).unwrap();
        assert_eq!(asked, Some(Asked::Password { user: "doveadm".into(), password: "s3cret".into() }));
        server.admit(&mut to_client);
        assert_eq!(client.advance(&mut to_client, &mut to_server), Ok(false));
        assert_eq!(server.advance(&mut to_server, &mut to_client), Ok(Some(Asked::Command(command.clone()))));
        assert!(command.is_dsync_server());
        Server::accept(&mut to_client);
        to_client.extend_from_slice(b"VERSION");
        assert_eq!(client.advance(&mut to_client, &mut to_server), Ok(true));
        let (demux, plain) = client.into_stream();
        assert!(demux.is_none() && plain.is_empty() && to_client == b"VERSION"[..]);
    }

    #[test]
    fn a_command_is_run_and_its_output_and_status_come_back() {
        let command = Command {
            user: "alice".into(),
            name: "sync".into(),
            arguments: vec!["-u".into(), "alice".into(), "maildir:~/x\ty".into()],
            ..Command::default()
        };
        let (mut to_server, mut to_client) = (BytesMut::new(), BytesMut::new());
        let mut client = Client::to_run(None, &command, &mut to_server);
        let mut server = Server::new(true);
        assert_eq!(server.advance(&mut to_server, &mut to_client), Ok(None));
        assert_eq!(client.advance(&mut to_client, &mut to_server), Ok(false));
        let Ok(Some(Asked::Command(asked))) = server.advance(&mut to_server, &mut to_client) else {
            panic!("a command")
        };
        assert_eq!(asked.to_be_run(), Some((command.arguments.clone(), Manner::Packets)));
        assert!(!asked.is_dsync_server());
        Server::packet(PRINTED, b"state\n", &mut to_client);
        Server::logged(b"one\ntwo\n", &mut to_client);
        assert_eq!(client.advance(&mut to_client, &mut to_server), Ok(false));
        assert_eq!(client.printed(), &b"state\n"[..]);
        let lines: Vec<String> = client.log().into_iter().map(|line| line.text).collect();
        assert_eq!(lines, ["one", "two"]);
        for (status, expected) in
            [(0, Ok(true)), (73, Err(Refusal::Status(73))), (2, Err(Refusal::Status(2)))]
        {
            let mut client = Client::to_run(None, &command, &mut BytesMut::new());
            let mut reply = BytesMut::from(&b"+\n"[..]);
            Server::ended(status, Manner::Packets, &mut reply);
            assert_eq!(client.advance(&mut reply, &mut BytesMut::new()), expected, "{status}");
        }
        // A Dovecot's values.
        let mut client = Client::to_run(None, &command, &mut BytesMut::new());
        let mut reply = BytesMut::from(&b"VERSION\tdoveadm-client\t1\t2\n+\n\0\0\0\0\x0aAQ==\t\n\n+\n"[..]);
        let mut sent = BytesMut::new();
        let _ = client.advance(&mut reply, &mut sent);
        assert_eq!(sent, &b"\talice\tsync\t-u\talice\tmaildir:~/x\x01ty\n"[..]);
        assert_eq!(client.printed(), &b"AQ==\n"[..]);
    }

    #[test]
    fn a_doveadms_command_is_one_to_be_run() {
        for (line, arguments) in [
            ("v\talice\tsync\t-u\talice\t-s\t\t-1\t--\tmaildir:/x", "-u alice -s  -1 -- maildir:/x"),
            ("\talice\tbackup\t--\tssh\t-u\tmx1", "-u alice -- ssh -u mx1"),
        ] {
            let (words, manner) = Command::parse(line).unwrap().to_be_run().unwrap();
            assert_eq!((words.join(" ").as_str(), manner), (arguments, Manner::Values));
        }
        assert_eq!(Command::parse("\talice\tpurge").unwrap().to_be_run(), None);
        let mut output = BytesMut::new();
        Server::value(b"a\tb", &mut output);
        Server::ended(2, Manner::Values, &mut output);
        Server::ended(65, Manner::Values, &mut output);
        assert_eq!(output, &b"a\x01tb\t\n-2\n\n-DATAERR\n"[..]);
    }

    #[test]
    fn a_long_command_is_read_from_one_who_was_let_in() {
        let line = format!("\talice\tsync\t-s\t{}\t--\tx\n", "A".repeat(128 << 10));
        let mut input = BytesMut::from(format!("VERSION\tdoveadm-server\t1\t2\n{line}").as_bytes());
        assert!(Server::new(false).advance(&mut input.clone(), &mut BytesMut::new()).is_err());
        let asked = Server::new(true).advance(&mut input, &mut BytesMut::new());
        assert!(
            matches!(asked, Ok(Some(Asked::Command(command))) if command.arguments[1].len() == 128 << 10)
        );
    }

    #[test]
    fn what_dovecot_says_of_an_unknown_user() {
        // Capture 72.
        let mut client = Client::new(
            Some(("doveadm".into(), "s3cretpass".into())),
            &Command::dsync_server("bob", false),
            &mut BytesMut::new(),
        );
        let mut sent = BytesMut::new();
        let mut input = BytesMut::from(&b"VERSION\tdoveadm-client\t1\t2\n-\n"[..]);
        assert_eq!(client.advance(&mut input, &mut sent), Ok(false));
        assert_eq!(sent, &b"PLAIN\tAGRvdmVhZG0AczNjcmV0cGFzcw==\n"[..]);
        sent.clear();
        input.extend_from_slice(b"+\nL\0\0\0\x07\x04No\x1bo!\n\0\0\0\0\x09\n-NOUS");
        assert_eq!(client.advance(&mut input, &mut sent), Ok(false));
        assert_eq!(sent, &b"\tbob\tdsync-server\t-ubob\n"[..]);
        assert_eq!(client.log(), [Logged { level: Level::Error, text: "Noo!".into() }]);
        input.extend_from_slice(b"ER\n");
        assert_eq!(client.advance(&mut input, &mut sent), Err(Refusal::Status(67)));
    }

    #[test]
    fn command_lines_of_all_versions() {
        let parse = |line: &str| Command::parse(line);
        let plain = parse("\talice\tdsync-server\t-ualice\t-U").unwrap();
        assert!(plain.is_dsync_server() && !plain.debug && plain.user == "alice");
        let new = parse("vDx\tproxy-ttl=1\talice\tdsync-server\t-u\talice").unwrap();
        assert!(new.is_dsync_server() && new.debug && new.verbose && new.user == "alice");
        assert!(!parse("\talice\tdsync-server\t-ubob").unwrap().is_dsync_server());
        assert!(!parse("\talice\tdsync-server\t-Z").unwrap().is_dsync_server());
        for bad in ["q\talice\tdsync-server", "\talice", "", "x\talice\tdsync-server"] {
            assert_eq!(parse(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn other_words_are_refused_as_dovecot_refuses_them() {
        for (words, said) in [
            ("VERSION\tfoo\t1\t0\n", ""),
            ("VERSION\tdoveadm-server\t2\t0\n", ""),
            ("VERSION\tdoveadm-server\t1\t2\nLOGIN\tx\n", "-\n-\n"),
            ("VERSION\tdoveadm-server\t1\t2\nPLAIN\t!!!\n", "-\n-\n"),
            ("VERSION\tdoveadm-server\t1\t2\n\talice\tdsync-server\t-ualice\n", "-\n-\n"),
        ] {
            let (mut input, mut output) = (BytesMut::from(words), BytesMut::new());
            assert!(Server::new(false).advance(&mut input, &mut output).is_err(), "{words:?}");
            assert_eq!(output, said, "{words:?}");
        }
        assert_eq!(status_of("USAGE"), 64);
        assert_eq!(status_of(""), 75);
        assert_eq!(reply_for(67), "NOUSER");
        let mut output = BytesMut::new();
        Server::refuse(64, &mut output);
        assert_eq!(output, "\n-USAGE\n");
    }
}
