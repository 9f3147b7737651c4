//! The half that is called: asks for a password, takes a command, gives its reply.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::{BufMut, BytesMut};

use super::command::{Command, Manner};
use super::packets::LOG;
use super::{LINE_BYTES_MAX, line, reply_for};
use crate::ProtoError;
use crate::dovecot::text;

/// Longest command line of one who was let in. A state (`-s`) is as long as an argument may be that the system hands to a program: 128 KiB.
const COMMAND_BYTES_MAX: usize = 1 << 20;

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
