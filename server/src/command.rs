//! `-S`: runs `sync` or `backup` for a client that asks for it, by the program `dsync` that lies beside this one.
//!
//! No shell sees the words. What the program may be told to do for whom is its own check: it learns from [`SERVED`] who asks.

use std::path::PathBuf;
use std::process::Stdio;

use bytes::BytesMut;
use dsync_session::SessionError;
use dsync_session::dovecot::greet::send;
use dsync_session::link::Stream;
use dsync_session::proto::dovecot::doveadm::{Command, PRINTED, Server};
use tokio::io::{AsyncRead, AsyncReadExt};

use crate::serve::{Peer, Service};

/// Tells the program that it runs for another: `local` for root or our own uid on a unix socket, else `remote`.
const SERVED: &str = "DSYNC_SERVED";
const PIECE_BYTES: usize = 16 << 10;

impl Service<'_> {
    /// Runs it to its end, and gives its exit status. When the client goes, or we are to stop, it is ended: the next run goes on from there.
    pub(crate) async fn run_command(
        &self,
        stream: &mut dyn Stream,
        command: &Command,
        arguments: &[String],
        peer: &Peer,
    ) -> Result<u8, SessionError> {
        let mut child = match self.start(command, arguments, peer) {
            Ok(child) => child,
            Err(text) => {
                let mut output = BytesMut::new();
                Server::logged(format!("dsync-server: {text}\n").as_bytes(), &mut output);
                Server::ended(78, &mut output);
                send(stream, &output).await?;
                return Err(SessionError::Refused { status: 78, text });
            }
        };
        let (mut printed, mut logged) = (child.stdout.take(), child.stderr.take());
        let (mut out, mut err) = (vec![0; PIECE_BYTES], vec![0; PIECE_BYTES]);
        // A line of the log is passed on as a whole.
        let mut line = Vec::new();
        let mut stop = self.stop.clone();
        let mut word = [0; 1];
        while printed.is_some() || logged.is_some() {
            let mut output = BytesMut::new();
            tokio::select! {
                read = piece(&mut printed, &mut out) => match read {
                    0 => printed = None,
                    read => Server::packet(PRINTED, &out[..read], &mut output),
                },
                read = piece(&mut logged, &mut err) => {
                    line.extend_from_slice(&err[..read]);
                    if read == 0 {
                        logged = None;
                        if !line.is_empty() {
                            line.push(b'\n');
                        }
                    }
                    let whole = line.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
                    let whole = if line.len() > PIECE_BYTES { line.len() } else { whole };
                    let rest = line.split_off(whole);
                    let whole = std::mem::replace(&mut line, rest);
                    if !whole.is_empty() {
                        let end: &[u8] = if whole.ends_with(b"\n") { b"" } else { b"\n" };
                        Server::logged(&[&whole, end].concat(), &mut output);
                    }
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
        Server::ended(status, &mut output);
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

/// Reads what there is; 0 at the end. Never, where the end was reached before.
async fn piece(from: &mut Option<impl AsyncRead + Unpin>, buffer: &mut [u8]) -> usize {
    match from {
        // A pipe that breaks has ended.
        Some(from) => from.read(buffer).await.unwrap_or(0),
        None => std::future::pending().await,
    }
}
