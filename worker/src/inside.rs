//! The worker's own half: gives up root for good, then does what its parent says until that is gone.

use std::cell::Cell;
use std::ffi::OsString;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use dsync_accounts::Identity;
use dsync_session::Progress;
use nix::sys::prctl::set_no_new_privs;
use nix::sys::stat::{Mode, umask};
use nix::unistd::{Gid, Uid, getgroups, getresgid, getresuid, setgroups, setresgid, setresuid};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{oneshot, watch};
use tracing::level_filters::LevelFilter;

use crate::task::{Now, Opened, Talk, Task};
use crate::wire::{Answer, DATA_BYTES, Order, Reader, Run, Writer, halves};

/// The first argument of a worker; level of the log, uid, gid and groups follow.
pub const MARK: &str = "--dsync-worker";
/// Bytes of a session that may lie between the socket and the brain, each way.
const PIPE_BYTES: usize = 256 << 10;
/// Most bytes that may come behind a session before the other end has its answer.
const BEHIND_BYTES_MAX: usize = 1 << 20;

/// Becomes a worker if this program was started as one; gives its exit status then. To be called before anything else: no thread
/// runs yet, and no configuration was read.
pub fn enter(start_log: fn(LevelFilter)) -> Option<ExitCode> {
    let mut words = std::env::args_os().skip(1);
    if words.next().is_none_or(|word| word != MARK) {
        return None;
    }
    let words: Vec<OsString> = words.collect();
    Some(match work(&words, start_log) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("dsync worker: {error}");
            ExitCode::from(75)
        }
    })
}

/// What the parent puts behind [`MARK`].
pub fn words(identity: &Identity) -> [String; 4] {
    let groups: Vec<String> = identity.groups.iter().map(u32::to_string).collect();
    let level = LevelFilter::current().to_string();
    [level, identity.uid.to_string(), identity.gid.to_string(), groups.join(",")]
}

fn work(words: &[OsString], start_log: fn(LevelFilter)) -> io::Result<()> {
    let wrong = || io::Error::other("is started by dsync alone");
    let words: Vec<&str> = words.iter().filter_map(|word| word.to_str()).collect();
    let [level, uid, gid, groups] = words[..] else { return Err(wrong()) };
    let number = |text: &str| text.parse::<u32>().map_err(|_| wrong());
    let groups: io::Result<Vec<u32>> =
        groups.split(',').filter(|group| !group.is_empty()).map(number).collect();
    become_user(&Identity { uid: number(uid)?, gid: number(gid)?, groups: groups? })?;
    // As in Dovecot, modes of new files come from their directories alone.
    umask(Mode::S_IWOTH);
    start_log(level.parse().map_err(|_| wrong())?);
    let socket = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    socket.set_nonblocking(true)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let outcome = runtime.block_on(serve(socket));
    // Work that goes on in a thread ends at its next step: nobody is left to hear of it.
    runtime.shutdown_background();
    outcome
}

/// Gives up root, all of its groups and every way back. Checks that it is so.
fn become_user(identity: &Identity) -> io::Result<()> {
    let (uid, gid) = (Uid::from_raw(identity.uid), Gid::from_raw(identity.gid));
    let groups: Vec<Gid> = identity.groups.iter().copied().map(Gid::from_raw).collect();
    if uid.is_root() {
        return Err(io::Error::other("no worker works as root"));
    }
    setgroups(&groups)?;
    setresgid(gid, gid, gid)?;
    setresuid(uid, uid, uid)?;
    // A program with the set-user-ID bit gives nothing back either.
    set_no_new_privs()?;
    let (uids, gids) = (getresuid()?, getresgid()?);
    let mut now = getgroups()?;
    now.sort_unstable_by_key(|group| group.as_raw());
    let ours = uids.real == uid && uids.effective == uid && uids.saved == uid;
    let ours = ours && gids.real == gid && gids.effective == gid && gids.saved == gid && now == groups;
    let back = setresuid(Uid::from_raw(0), Uid::from_raw(0), Uid::from_raw(0)).is_ok()
        || (!gid.eq(&Gid::from_raw(0)) && setresgid(Gid::from_raw(0), gid, gid).is_ok());
    if !ours || back {
        return Err(io::Error::other("cannot give up root"));
    }
    Ok(())
}

async fn serve(socket: UnixStream) -> io::Result<()> {
    // Who stops the program stops its parent, which then says what is to be done here.
    let kinds = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()];
    let _heeded_by_the_parent = kinds.into_iter().map(signal).collect::<io::Result<Vec<_>>>()?;
    let (mut reader, mut writer) = halves(tokio::net::UnixStream::from_std(socket)?);
    let mut open: Option<Opened> = None;
    while let Some(order) = reader.next().await? {
        match order {
            Order::Open(task) => {
                open = None;
                let answer = match task.open() {
                    Ok(opened) => {
                        open = Some(opened);
                        Answer::Ready
                    }
                    Err(error) => {
                        let failure = error.failure();
                        Answer::Refused { status: failure.status, text: failure.text }
                    }
                };
                writer.say(&answer).await?;
            }
            Order::Run(run) => {
                let opened = open.take().ok_or_else(out_of_turn)?;
                session(opened, *run, &mut reader, &mut writer).await?;
            }
            Order::Whole(task) => whole(*task, &mut reader, &mut writer).await?,
            // It came too late: that work is done.
            Order::Stop => {}
            Order::Data(_) | Order::Eof | Order::Halt => return Err(out_of_turn()),
        }
    }
    Ok(())
}

/// Runs a session between the brain and the parent, until the parent has heard how it ended.
async fn session(opened: Opened, mut run: Run, reader: &mut Reader, writer: &mut Writer) -> io::Result<()> {
    let (mut near, far) = tokio::io::duplex(PIPE_BYTES);
    let (mut from_brain, mut to_brain) = tokio::io::split(far);
    let (stop_sender, stop) = watch::channel(false);
    let (progress_sender, mut progress) = watch::channel(Progress::default());
    let (outcome_sender, outcome) = oneshot::channel();
    let over = Cell::new(false);
    let brain = async {
        let silence = Duration::from_secs(run.silence_secs);
        let names = std::mem::take(&mut run.names);
        let talk = Talk { protocol: run.protocol, early: run.early(), names, silence, stop };
        let mut due = Now::new();
        let mut watch = |progress: Progress| {
            if due.is_due() {
                progress_sender.send_replace(progress);
            }
        };
        let ran = opened.run(&mut near, talk, &mut watch).await;
        over.set(true);
        near.shutdown().await?;
        let (report, mut behind) = match ran {
            Ok((report, behind)) => (Ok(Box::new(report)), behind),
            Err(error) => (Err(error.failure()), Default::default()),
        };
        // It fails if nobody is left to be told.
        let _ = outcome_sender.send(report);
        while near.read_buf(&mut behind).await? > 0 {
            if behind.len() > BEHIND_BYTES_MAX {
                return Err(io::Error::other("too much comes behind a session"));
            }
        }
        Ok(behind)
    };
    let outgoing = async {
        let mut bytes = vec![0; DATA_BYTES];
        loop {
            tokio::select! {
                biased;
                read = from_brain.read(&mut bytes) => match read? {
                    0 => break,
                    read => writer.say(&Answer::Data(bytes[..read].to_vec())).await?,
                },
                Ok(()) = progress.changed() => {
                    let progress = *progress.borrow_and_update();
                    writer.say(&Answer::Progress(progress)).await?;
                }
            }
        }
        if !over.get() {
            writer.say(&Answer::Shut).await?;
        }
        let outcome = outcome.await.map_err(|_| io::Error::other("the session came to no end"))?;
        writer.say(&Answer::Over(outcome)).await
    };
    let incoming = async {
        loop {
            match reader.next().await? {
                Some(Order::Data(bytes)) => to_brain.write_all(&bytes).await?,
                Some(Order::Eof) => to_brain.shutdown().await?,
                Some(Order::Stop) => {
                    stop_sender.send_replace(true);
                }
                Some(Order::Halt) => return to_brain.shutdown().await,
                Some(_) => return Err(out_of_turn()),
                // As if the program itself had been killed: nothing is lost by that.
                None => return Err(io::ErrorKind::UnexpectedEof.into()),
            }
        }
    };
    let (behind, (), ()) = tokio::try_join!(brain, outgoing, incoming)?;
    writer.say(&Answer::Behind(behind.to_vec())).await
}

/// Does work that has no other end, in a thread, so that a stop is heard.
async fn whole(task: Task, reader: &mut Reader, writer: &mut Writer) -> io::Result<()> {
    let stopped = Arc::new(AtomicBool::new(false));
    let (sender, mut progress) = watch::channel(Progress::default());
    let heard = stopped.clone();
    let mut working = tokio::task::spawn_blocking(move || {
        let mut due = Now::new();
        task.whole(&mut |progress| {
            if due.is_due() {
                sender.send_replace(progress);
            }
            !heard.load(Ordering::Relaxed)
        })
    });
    let mut listening = true;
    loop {
        tokio::select! {
            done = &mut working => {
                let done = done.map_err(io::Error::other)?;
                return writer.say(&Answer::Done(done.map_err(|error| error.failure()))).await;
            }
            order = reader.next(), if listening => {
                // The parent is gone, or it is time to stop: either way to the next safe point.
                listening = order?.is_some_and(|order: Order| matches!(order, Order::Stop));
                stopped.store(true, Ordering::Relaxed);
            }
            Ok(()) = progress.changed() => {
                let progress = *progress.borrow_and_update();
                writer.say(&Answer::Progress(progress)).await?;
            }
        }
    }
}

fn out_of_turn() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "the parent speaks out of turn")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As root it would not come back from it; then the tests of the programs show it.
    #[test]
    fn only_root_can_become_somebody_else_and_nobody_becomes_root() {
        let root = Identity { uid: 0, gid: 0, groups: Vec::new() };
        assert!(become_user(&root).unwrap_err().to_string().contains("no worker works as root"));
        if !Uid::effective().is_root() {
            assert!(become_user(&Identity { uid: 1, gid: 1, groups: vec![2] }).is_err());
        }
    }

    #[test]
    fn the_words_of_a_worker_say_whom_it_becomes() {
        let identity = Identity { uid: 2001, gid: 2002, groups: vec![5, 7] };
        assert_eq!(words(&identity)[1..], ["2001", "2002", "5,7"].map(str::to_owned));
        let odd = ["info", "2001", "x", ""].map(OsString::from);
        assert!(work(&odd, |_| panic!("no log before root is given up")).is_err());
        assert!(work(&odd[..2], |_| panic!("no log before root is given up")).is_err());
    }
}
