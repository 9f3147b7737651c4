//! The half that is called: asks for a password, takes a command, gives its reply.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::{BufMut, BytesMut};

use super::command::{Command, Manner};
use super::packets::LOG;
use super::{LINE_BYTES_MAX, Level, OUR_HELLO, line, reply_for};
use crate::ProtoError;
use crate::dovecot::text;

/// Longest command line of one who was let in. A state (`-s`) is as long as an argument may be that the system hands to a program: 128 KiB.
const COMMAND_BYTES_MAX: usize = 1 << 20;

/// What a Dovecot is told. Its next version has STARTTLS, the one behind that more fields in command lines.
const SERVER_HELLO: &[u8] = b"VERSION\tdoveadm-client\t1\t1\n";

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
    packed: bool,
}

impl Server {
    /// With `trusted`, no password is asked.
    pub fn new(trusted: bool) -> Server {
        Server { serving: Serving::Version, trusted, packed: false }
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
                    let Some(minor) = minor.and_then(|minor| minor.parse::<u32>().ok()) else {
                        return Err(ProtoError::OtherProtocol("it speaks another doveadm protocol".into()));
                    };
                    self.packed = minor > 0 && line != OUR_HELLO.trim_end();
                    if self.packed {
                        output.extend_from_slice(SERVER_HELLO);
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

    /// The client takes packets: what comes behind the `+` of its admission is wrapped, and there is a log.
    pub fn is_packed(&self) -> bool {
        self.packed
    }

    /// The session begins right behind this.
    pub fn accept(&self, output: &mut BytesMut) {
        self.reply(b"\n+\n", output);
    }

    /// The command is not done, and this is why.
    pub fn refuse(&self, status: u8, why: &str, output: &mut BytesMut) {
        if self.packed {
            Server::log(Level::Error, why, output);
        }
        self.reply(format!("\n-{}\n", reply_for(status)).as_bytes(), output);
    }

    fn reply(&self, reply: &[u8], output: &mut BytesMut) {
        if self.packed {
            Server::packet(0, reply, output);
        } else {
            output.extend_from_slice(reply);
        }
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
            Manner::Packets | Manner::ValuesAndLog => Server::packet(0, reply.as_bytes(), output),
            Manner::Values => output.extend_from_slice(reply.as_bytes()),
        }
    }

    /// What a command printed, as a Dovecot's value.
    pub fn value(text: &[u8], manner: Manner, output: &mut BytesMut) {
        let mut value = Vec::with_capacity(text.len() + 1);
        text::escape(text, &mut value);
        value.push(b'\t');
        match manner {
            Manner::Packets | Manner::ValuesAndLog => Server::packet(0, &value, output),
            Manner::Values => output.extend_from_slice(&value),
        }
    }

    /// Wraps data of a channel.
    pub fn packet(channel: u8, data: &[u8], output: &mut BytesMut) {
        output.put_u8(channel);
        output.put_u32(data.len() as u32);
        output.put_slice(data);
    }

    /// Wraps lines of a program's standard error as lines of a log: each may begin with the word for its level. What begins with the name
    /// of a program says why something was not done, any other line what was.
    pub fn logged(lines: &[u8], output: &mut BytesMut) {
        let mut log = Vec::with_capacity(lines.len() + 16);
        for line in lines.split_inclusive(|byte| *byte == b'\n') {
            let (level, text) = level_of(line);
            log.push(level.byte());
            log.extend_from_slice(text);
        }
        Server::packet(LOG, &log, output);
    }

    /// Wraps one line of a log.
    pub fn log(level: Level, text: &str, output: &mut BytesMut) {
        let line: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        let mut log = vec![level.byte()];
        log.extend_from_slice(line.as_bytes());
        log.push(b'\n');
        Server::packet(LOG, &log, output);
    }
}

/// The level of a line, and its text.
fn level_of(line: &[u8]) -> (Level, &[u8]) {
    let words: [(&[u8], Level); 5] = [
        (b"ERROR ", Level::Error),
        (b"WARN ", Level::Warning),
        (b"INFO ", Level::Info),
        (b"DEBUG ", Level::Debug),
        (b"TRACE ", Level::Debug),
    ];
    let text = line.trim_ascii_start();
    for (word, level) in words {
        if let Some(text) = text.strip_prefix(word) {
            return (level, text);
        }
    }
    let failed =
        text.starts_with(b"dsync: ") || text.starts_with(b"dsync-server: ") || text.starts_with(b"error: ");
    (if failed { Level::Error } else { Level::Info }, line)
}

fn credentials(line: &str) -> Option<(String, String)> {
    let plain = BASE64.decode(line.strip_prefix("PLAIN\t")?).ok()?;
    let mut parts = plain.split(|byte| *byte == 0);
    let text = |part: &[u8]| String::from_utf8(part.to_vec()).ok();
    let (authorisation, user, password) = (parts.next()?, text(parts.next()?)?, text(parts.next()?)?);
    (authorisation.is_empty() && parts.next().is_none()).then_some((user, password))
}
