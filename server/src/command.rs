//! `-S`: runs `sync` or `backup` for a client that asks for it, dsync or doveadm, by the program `dsync` that lies beside this one.
//!
//! No shell sees the words. What the program may be told to do for whom is its own check: it learns from [`SERVED`] who asks.

use std::path::PathBuf;
use std::process::Stdio;

use bytes::BytesMut;
use dsync_session::SessionError;
use dsync_session::dovecot::greet::send;
use dsync_session::link::Stream;
use dsync_session::proto::dovecot::doveadm::{Command, Manner, PRINTED, Server};
use tokio::io::{AsyncRead, AsyncReadExt};

use crate::serve::{Peer, Service};

/// Tells the program that it runs for another: `local` for root or our own uid on a unix socket, else `remote`.
const SERVED: &str = "DSYNC_SERVED";
const PIECE_BYTES: usize = 16 << 10;
/// Longest line that is one value for a Dovecot: a state, or a report.
const VALUE_BYTES_MAX: usize = 1 << 20;

impl Service<'_> {
    /// Runs it to its end, and gives its exit status. When the client goes, or we are to stop, it is ended: the next run goes on from there.
    pub(crate) async fn run_command(
        &self,
        stream: &mut dyn Stream,
        command: &Command,
        arguments: &[String],
        manner: Manner,
        peer: &Peer,
    ) -> Result<u8, SessionError> {
        let (mut printed, mut logged) =
            (Printed { manner, line: Vec::new() }, Logged { manner, line: Vec::new() });
        let mut child = match self.start(command, arguments, peer) {
            Ok(child) => child,
            Err(text) => {
                let mut output = BytesMut::new();
                logged.take(format!("dsync-server: {text}\n").as_bytes(), &mut output);
                Server::ended(78, manner, &mut output);
                send(stream, &output).await?;
                return Err(SessionError::Refused { status: 78, text });
            }
        };
        let (mut stdout, mut stderr) = (child.stdout.take(), child.stderr.take());
        let (mut out, mut err) = (vec![0; PIECE_BYTES], vec![0; PIECE_BYTES]);
        let mut stop = self.stop.clone();
        let mut word = [0; 1];
        while stdout.is_some() || stderr.is_some() {
            let mut output = BytesMut::new();
            tokio::select! {
                read = piece(&mut stdout, &mut out) => {
                    printed.take(&out[..read], &mut output);
                    stdout.take_if(|_| read == 0);
                }
                read = piece(&mut stderr, &mut err) => {
                    logged.take(&err[..read], &mut output);
                    stderr.take_if(|_| read == 0);
                }
                _ = stop.wait_for(|stop| *stop) => return Err(self.end(&mut child, SessionError::Stopped).await),
                // It has nothing more to say, so this is its end.
                _ = stream.read(&mut word) => {
                    let text = "the client went away before its command was done".to_owned();
                    return Err(self.end(&mut child, SessionError::Link { status: 75, text }).await);
                }
            }
            if !output.is_empty() {
                send(stream, &output).await?;
            }
        }
        let ended = child.wait().await.ok().and_then(|status| status.code());
        let status = ended.and_then(|code| u8::try_from(code).ok()).unwrap_or(75);
        let mut output = BytesMut::new();
        Server::ended(status, manner, &mut output);
        send(stream, &output).await?;
        Ok(status)
    }

    fn start(
        &self,
        command: &Command,
        arguments: &[String],
        peer: &Peer,
    ) -> Result<tokio::process::Child, String> {
        let program = std::fs::read_link("/proc/self/exe").map_err(|error| error.to_string())?;
        let program: PathBuf = program.with_file_name("dsync");
        let flags = [(command.debug, "-D"), (command.verbose, "-v")];
        let flags = flags.into_iter().filter(|(given, _)| *given).map(|(_, flag)| flag);
        tokio::process::Command::new(&program)
            .args(self.conf)
            .args(flags)
            .arg(&command.name)
            .args(arguments)
            .env(SERVED, if peer.trusted { "local" } else { "remote" })
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| format!("cannot run {}: {error}", program.display()))
    }

    async fn end(&self, child: &mut tokio::process::Child, why: SessionError) -> SessionError {
        if let Err(error) = child.kill().await {
            tracing::debug!("ending a command: {error}");
        }
        why
    }
}

/// Passes on what the program prints.
struct Printed {
    manner: Manner,
    /// A line that has not ended yet, where whole ones are wanted.
    line: Vec<u8>,
}

impl Printed {
    /// Takes a piece; the empty one is the last.
    fn take(&mut self, piece: &[u8], output: &mut BytesMut) {
        match self.manner {
            Manner::Packets if piece.is_empty() => {}
            Manner::Packets => Server::packet(PRINTED, piece, output),
            Manner::Values | Manner::ValuesAndLog => {
                for line in
                    whole_lines(&mut self.line, piece, VALUE_BYTES_MAX).split_inclusive(|byte| *byte == b'\n')
                {
                    Server::value(line.strip_suffix(b"\n").unwrap_or(line), self.manner, output);
                }
            }
        }
    }
}

/// Passes on what the program says of its work.
struct Logged {
    manner: Manner,
    line: Vec<u8>,
}

impl Logged {
    /// Takes a piece; the empty one is the last.
    fn take(&mut self, piece: &[u8], output: &mut BytesMut) {
        let lines = whole_lines(&mut self.line, piece, PIECE_BYTES);
        match self.manner {
            _ if lines.is_empty() => {}
            Manner::Packets | Manner::ValuesAndLog => Server::logged(&lines, output),
            // The client's protocol has no place for it; who runs the server may want to know.
            Manner::Values => {
                for line in String::from_utf8_lossy(&lines).lines() {
                    tracing::info!("command: {}", line.escape_debug());
                }
            }
        }
    }
}

/// Adds a piece to what is waiting for the end of its line, and gives what is whole, or longer than any line is to be. With the empty piece all ends.
fn whole_lines(waiting: &mut Vec<u8>, piece: &[u8], bytes_max: usize) -> Vec<u8> {
    waiting.extend_from_slice(piece);
    let ended = waiting.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
    let all = piece.is_empty() || waiting.len() > bytes_max;
    let rest = waiting.split_off(if all { waiting.len() } else { ended });
    let mut whole = std::mem::replace(waiting, rest);
    if !whole.is_empty() && !whole.ends_with(b"\n") {
        whole.push(b'\n');
    }
    whole
}

/// Reads what there is; 0 at the end. Never, where the end was reached before.
async fn piece(from: &mut Option<impl AsyncRead + Unpin>, buffer: &mut [u8]) -> usize {
    match from {
        // A pipe that breaks has ended.
        Some(from) => from.read(buffer).await.unwrap_or(0),
        None => std::future::pending().await,
    }
}
