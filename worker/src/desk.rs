//! Where one user's session is done: here, or by a worker, to whom the parent passes the session's bytes.

use std::io;
use std::time::Duration;

use bytes::BytesMut;
use dsync_accounts::Identity;
use dsync_session::link::Stream;
use dsync_session::proto::{Blame, Failure};
use dsync_session::{Progress, Report, SessionError};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::watch;
use tokio::time::timeout;

use crate::process::{Pool, Worker};
use crate::task::{Opened, Outcome, Protocol, Talk, Task};
use crate::wire::{Answer, DATA_BYTES, Order, Reader, Run, Writer};

/// A user's mail, open for one session.
pub struct Desk<'a>(Kind<'a>);

enum Kind<'a> {
    Here(Box<Opened>),
    There { worker: Box<Worker>, reader: Reader, writer: Writer, pool: &'a Pool },
}

impl Pool {
    /// Opens a user's mail: as `identity`, or as this process where there is none.
    pub async fn open(&self, identity: Option<&Identity>, task: Task) -> Result<Desk<'_>, SessionError> {
        let Some(identity) = identity else { return Ok(Desk(Kind::Here(Box::new(task.open()?)))) };
        let order = Order::Open(Box::new(task));
        loop {
            let worker = self.take(identity)?;
            let used = worker.used;
            let talk = async {
                let (mut reader, mut writer) = worker.talk()?;
                writer.say(&order).await?;
                let answer = reader.next().await?.ok_or_else(gone)?;
                Ok((reader, writer, answer))
            };
            match talk.await {
                Ok((reader, writer, Answer::Ready)) => {
                    let worker = Box::new(worker);
                    return Ok(Desk(Kind::There { worker, reader, writer, pool: self }));
                }
                Ok((_, _, Answer::Refused { status, text })) => {
                    self.give(worker);
                    return Err(SessionError::Refused { status, text });
                }
                Ok(_) => return Err(worker.lost(&out_of_turn())),
                // It ended while it had nothing to do: that is nobody's failure.
                Err(error) if used => tracing::debug!("a worker did not last: {error}"),
                Err(error) => return Err(worker.lost(&error)),
            }
        }
    }

    /// Does work that has no other end. `watch` is called now and then.
    pub async fn whole(
        &self,
        identity: Option<&Identity>,
        task: Task,
        mut stop: watch::Receiver<bool>,
        watch: &mut (dyn FnMut(Progress) + Send),
    ) -> Result<Outcome, SessionError> {
        let Some(identity) = identity else {
            return task.whole(&mut |progress| {
                watch(progress);
                !*stop.borrow()
            });
        };
        let order = Order::Whole(Box::new(task));
        loop {
            let worker = self.take(identity)?;
            let used = worker.used;
            let mut begun = false;
            let talk = async {
                let (mut reader, mut writer) = worker.talk()?;
                writer.say(&order).await?;
                let mut stopped = false;
                loop {
                    tokio::select! {
                        answer = reader.next() => match answer?.ok_or_else(gone)? {
                            Answer::Progress(progress) => {
                                begun = true;
                                watch(progress);
                            }
                            Answer::Done(outcome) => return Ok(outcome),
                            _ => return Err(out_of_turn()),
                        },
                        () = stopping(&mut stop), if !stopped => {
                            stopped = true;
                            writer.say(&Order::Stop).await?;
                        }
                    }
                }
            };
            match talk.await {
                Ok(outcome) => {
                    self.give(worker);
                    return outcome.map_err(told);
                }
                // It was gone before it heard of this.
                Err(error) if used && !begun && error.kind() == io::ErrorKind::BrokenPipe => {
                    tracing::debug!("a worker did not last: {error}");
                }
                Err(error) => return Err(worker.lost(&error)),
            }
        }
    }
}

impl Desk<'_> {
    /// Runs the session over `stream` to its end. The stream is still open then; after an error it is of no more use. Gives the bytes that
    /// came behind the session, too.
    pub async fn run(
        self,
        stream: &mut dyn Stream,
        talk: Talk,
        watch: &mut (dyn FnMut(Progress) + Send),
    ) -> Result<(Report, BytesMut), SessionError> {
        match self.0 {
            Kind::Here(opened) => opened.run(stream, talk, watch).await,
            Kind::There { worker, mut reader, mut writer, pool } => {
                match relay(&mut reader, &mut writer, stream, talk, watch).await {
                    Ok((outcome, behind)) => {
                        pool.give(*worker);
                        outcome.map(|report| (*report, behind)).map_err(told)
                    }
                    Err(error) => Err(worker.lost(&error)),
                }
            }
        }
    }

    /// Leaves it as it is: there is no session.
    pub fn leave(self) {
        if let Kind::There { worker, pool, .. } = self.0 {
            pool.give(*worker);
        }
    }
}

/// How a session ended, and what came behind it.
type Ended = (Result<Box<Report>, Failure>, BytesMut);

/// Passes bytes between the other end and the worker until the worker says that the session is over. An error is one of the worker.
async fn relay(
    from_worker: &mut Reader,
    to_worker: &mut Writer,
    stream: &mut dyn Stream,
    talk: Talk,
    watch: &mut (dyn FnMut(Progress) + Send),
) -> io::Result<Ended> {
    let Talk { protocol, early, names, silence, mut stop } = talk;
    let run = Run::new(protocol, early, names, silence.as_secs());
    to_worker.say(&Order::Run(Box::new(run))).await?;
    let (over_sender, mut over) = watch::channel(false);
    let (mut reader, mut writer) = tokio::io::split(stream);
    let up = async {
        let mut bytes = vec![0; DATA_BYTES];
        let (mut open, mut stopped) = (true, false);
        loop {
            // What is said to the worker is said in full: only the waiting is given up.
            let order = tokio::select! {
                biased;
                _ = over.wait_for(|over| *over) => break,
                () = stopping(&mut stop), if !stopped => {
                    stopped = true;
                    Order::Stop
                }
                read = reader.read(&mut bytes), if open => match read {
                    Ok(read) if read > 0 => Order::Data(bytes[..read].to_vec()),
                    Ok(_) | Err(_) => {
                        open = false;
                        Order::Eof
                    }
                },
            };
            to_worker.say(&order).await?;
        }
        to_worker.say(&Order::Halt).await
    };
    let down = async {
        let outcome = down(from_worker, &mut writer, silence, watch).await;
        over_sender.send_replace(true);
        outcome
    };
    let (said, outcome) = tokio::join!(up, down);
    let outcome = outcome?;
    said?;
    if protocol == Protocol::Dovecot
        && let Err(error) = writer.shutdown().await
    {
        tracing::debug!("closing the connection: {error}");
    }
    match from_worker.next().await?.ok_or_else(gone)? {
        Answer::Behind(behind) => Ok((outcome, BytesMut::from(&behind[..]))),
        _ => Err(out_of_turn()),
    }
}

/// Passes on what the worker says.
async fn down(
    from_worker: &mut Reader,
    writer: &mut (impl AsyncWriteExt + Unpin),
    silence: Duration,
    watch: &mut (dyn FnMut(Progress) + Send),
) -> io::Result<Result<Box<Report>, Failure>> {
    // The worker hears of it by the end of what comes in; what it still says is for nobody.
    let mut broken = false;
    loop {
        let told = match from_worker.next().await?.ok_or_else(gone)? {
            Answer::Data(_) | Answer::Shut if broken => continue,
            Answer::Data(bytes) => {
                let tell = async {
                    writer.write_all(&bytes).await?;
                    writer.flush().await
                };
                timeout(silence, tell).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
            }
            Answer::Shut => writer.shutdown().await,
            Answer::Progress(progress) => {
                watch(progress);
                Ok(())
            }
            Answer::Over(outcome) => return Ok(outcome),
            _ => return Err(out_of_turn()),
        };
        if let Err(error) = told {
            tracing::debug!("the connection broke: {error}");
            broken = true;
        }
    }
}

/// Ends when it is time to stop; never, where nobody is left who could say so.
async fn stopping(stop: &mut watch::Receiver<bool>) {
    if stop.wait_for(|stop| *stop).await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// What a worker reported.
fn told(failure: Failure) -> SessionError {
    let Failure { blame, status, text } = failure;
    match blame {
        Blame::Link => SessionError::Link { status, text },
        _ => SessionError::Refused { status, text },
    }
}

fn gone() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "it said nothing more")
}

fn out_of_turn() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "it spoke out of turn")
}
