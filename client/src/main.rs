//! The program `dsync`: arguments become a session, its report becomes lines and one exit status.
#![forbid(unsafe_code)]

mod args;
mod conf;
mod connection;
mod destination;
mod jobs;
mod manual;
mod many;
mod progress;
mod purge;
mod remote;
mod report;
mod select;
mod users;

use std::io::{BufRead, Write};
use std::process::ExitCode;

use clap::Parser;
use dsync_accounts::{ConfError, Settings, UserError, hash_password};
use dsync_session::SessionError;
use dsync_session::model::SyncState;
use dsync_session::proto::{Direction, Options, Purpose};
use dsync_worker::Pool;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tracing::level_filters::LevelFilter;

use args::{Changes, Cli, Command, Common, Globals, Users};
use connection::Connections;
use jobs::{Done, Session};
use remote::Served;
use users::Who;

/// What is printed once, and the exit status that goes with it.
#[derive(Debug)]
pub struct Failed {
    status: u8,
    error: anyhow::Error,
}

impl Failed {
    pub fn new(status: u8, error: anyhow::Error) -> Failed {
        Failed { status, error }
    }

    /// The command line is wrong.
    pub fn usage(what: impl Into<String>) -> Failed {
        Failed::new(64, anyhow::Error::msg(format!("{}; see dsync --help", what.into())))
    }

    /// A file that the command line names cannot be used: 64 if it is not there or is none, 77 if we may not, else 75, try later.
    pub fn file(place: impl std::fmt::Display, error: std::io::Error) -> Failed {
        use std::io::ErrorKind;
        let status = match error.kind() {
            ErrorKind::NotFound | ErrorKind::IsADirectory | ErrorKind::NotADirectory => 64,
            ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => 77,
            _ => 75,
        };
        Failed::new(status, anyhow::Error::from(error).context(place.to_string()))
    }

    /// Prints it, once; gives the exit status.
    fn tell(&self) -> u8 {
        eprintln!("dsync: {}", self.text());
        self.status
    }

    fn text(&self) -> String {
        chain(&self.error)
    }

    fn within(self, place: String) -> Failed {
        Failed { status: self.status, error: self.error.context(place) }
    }
}

macro_rules! failed_from {
    ($($error:ty),*) => {$(
        impl From<$error> for Failed {
            fn from(error: $error) -> Failed {
                Failed { status: error.status(), error: error.into() }
            }
        }
    )*};
}
failed_from!(ConfError, UserError, SessionError);

fn main() -> ExitCode {
    if let Some(status) = dsync_worker::enter(start_log) {
        return status;
    }
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are asked for; all else is a wrong command line.
            let status = if error.use_stderr() { 64 } else { 0 };
            if error.print().is_err() {
                return ExitCode::from(75);
            }
            return ExitCode::from(status);
        }
    };
    let globals = cli.globals();
    start_log(if globals.debug { LevelFilter::DEBUG } else { LevelFilter::WARN });
    match run(&cli, &globals) {
        Ok(status) => ExitCode::from(status),
        Err(failed) => ExitCode::from(failed.tell()),
    }
}

fn run(cli: &Cli, globals: &Globals) -> Result<u8, Failed> {
    match &cli.command {
        Command::Conf { conf, .. } => conf::print(conf, globals).map(|()| 0),
        Command::HashPassword => hash().map(|()| 0),
        Command::Purge { user, lock_wait, location, .. } => {
            purge::run(globals, user.as_deref(), location.as_deref(), *lock_wait).map(|()| 0)
        }
        Command::Man { directory } => manual::pages(directory).map(|()| 0),
        Command::Completions { shell } => manual::completions(*shell).map(|()| 0),
        Command::Rawlog { file } => rawlog(file).map(|()| 0),
        Command::Verify { bodies, common, .. } => verify(*bodies, common, globals),
        Command::Sync { one_way, changes, users, common, globals: behind } => {
            let direction = jobs::direction(false, *one_way, changes.reverse);
            change(direction, changes, users, common, globals, behind)
        }
        Command::Backup { changes, users, common, globals: behind } => {
            let direction = jobs::direction(true, false, changes.reverse);
            change(direction, changes, users, common, globals, behind)
        }
    }
}

/// `verify`: prints what differs, and changes nothing.
fn verify(bodies: bool, common: &Common, globals: &Globals) -> Result<u8, Failed> {
    if common.socket.is_some() {
        return Err(Failed::usage("-S goes with sync and backup"));
    }
    let served = Served::now();
    let settings = Settings::load(globals.config.as_deref(), &globals.overrides)?;
    let overrides: Vec<String> =
        globals.overrides.iter().chain(&common.destination_option).cloned().collect();
    let session = Session {
        settings: &settings,
        destination_settings: &Settings::load(globals.config.as_deref(), &overrides)?,
        common,
        direction: Direction::TwoWay,
        options: Options { purpose: Purpose::Verify { bodies }, ..select::mailboxes(common) },
        state: None,
        verbose: globals.verbose,
        many: false,
        stop: stop_on_signals()?,
        pool: &Pool::new(),
        served,
        read_only_source: false,
    };
    let user = users::one(&settings, common.user.as_deref())?;
    let mut connections = Connections::new()?;
    let mut worst = 0;
    for target in session.targets(&user)? {
        let status = match session.run(target, &mut connections) {
            Ok(done) => {
                if !common.json {
                    done.report.differences.iter().try_for_each(|line| print_line(line))?;
                }
                tell(&done, common, globals)?;
                done.report.status()
            }
            Err(failed) => failed.tell(),
        };
        worst = worse(worst, status);
    }
    connections.close();
    Ok(worst)
}

/// Shows a raw log.
fn rawlog(path: &std::path::Path) -> Result<(), Failed> {
    let failed = |error: std::io::Error| {
        let place = path.display();
        if error.kind() == std::io::ErrorKind::InvalidData {
            return Failed::new(65, anyhow::Error::from(error).context(place.to_string()));
        }
        Failed::file(place, error)
    };
    let file = std::fs::File::open(path).map_err(failed)?;
    let mut out = std::io::stdout().lock();
    let read =
        dsync_session::rawlog::read(std::io::BufReader::new(file), &mut |line| writeln!(out, "{line}"));
    match read {
        // Whoever reads has seen enough.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        other => other.map_err(failed),
    }
}

/// `sync` and `backup`: one session for each user and destination, and the worst of their statuses.
fn change(
    direction: Direction,
    changes: &Changes,
    users: &Users,
    common: &Common,
    globals: &Globals,
    behind: &Globals,
) -> Result<u8, Failed> {
    let served = Served::now();
    served.check(common, users, behind)?;
    let settings = Settings::load(globals.config.as_deref(), &globals.overrides)?;
    if let Some(socket) = &common.socket {
        return remote::run(socket, &settings, common, globals);
    }
    let overrides: Vec<String> =
        globals.overrides.iter().chain(&common.destination_option).cloned().collect();
    let destination_settings = Settings::load(globals.config.as_deref(), &overrides)?;
    tracing::debug!("configuration: {}", jobs::config_name(&settings).display());
    let mut options = select::changing(common, changes)?;
    let state = changes.state.as_ref().map(|text| {
        text.parse().unwrap_or_else(|error| {
            eprintln!("dsync: -s: the state {error}: every mailbox is looked into, as if by -f");
            options.full = true;
            SyncState::default()
        })
    });
    let who = users::who(&settings, common, users)?;
    let many = matches!(who, Who::Many(_));
    if many && state.is_some() {
        return Err(Failed::usage(
            "-s is the state of one user; with many, what was agreed on is kept for each",
        ));
    }
    if many && common.rawlog.is_some() {
        return Err(Failed::usage(
            "-r records one user's session; with many it would be overwritten by each",
        ));
    }
    if users.resume.is_some() && changes.dry_run {
        return Err(Failed::usage("--dry-run finishes no user for --resume to note"));
    }
    if changes.read_only_source && direction == Direction::TwoWay {
        return Err(Failed::usage("--read-only-source goes with backup and -1: else both ends are written"));
    }
    if !many && users.resume.is_some() {
        return Err(Failed::usage("--resume goes with many users: -A, -F, or a mask for -u"));
    }
    let session = Session {
        settings: &settings,
        destination_settings: &destination_settings,
        common,
        direction,
        options,
        state,
        verbose: globals.verbose,
        many,
        stop: stop_on_signals()?,
        pool: &Pool::new(),
        served,
        read_only_source: changes.read_only_source,
    };
    let user = match who {
        Who::Many(names) => return many::run(&session, names, users, common, globals),
        Who::One(user) => user,
    };
    let mut connections = Connections::new()?;
    let mut worst = 0;
    for target in session.targets(&user)? {
        let status = match session.run(target, &mut connections) {
            Ok(done) => {
                tell(&done, common, globals)?;
                if changes.state.is_some() && !common.json {
                    print_line(&done.report.state.as_ref().map(ToString::to_string).unwrap_or_default())?;
                }
                done.report.status()
            }
            Err(failed) => {
                if let (Some(text), Some(state)) = (&changes.state, &session.state) {
                    // What it was given still holds; what was none still is none.
                    print_line(if state.0.is_empty() { "" } else { text.trim() })?;
                }
                failed.tell()
            }
        };
        worst = worse(worst, status);
    }
    connections.close();
    Ok(worst)
}

/// Of two exit statuses the one to end with: 75 wins, then other errors, the first of them, then 2.
fn worse(a: u8, b: u8) -> u8 {
    match (a, b) {
        (75, _) | (_, 75) => 75,
        (0 | 2, b) => b.max(a),
        (a, _) => a,
    }
}

/// Says what a session did.
fn tell(done: &Done, common: &Common, globals: &Globals) -> Result<(), Failed> {
    for problem in &done.report.problems {
        eprintln!("dsync: {}: {problem}", done.user);
    }
    if globals.verbose {
        report::lines(done).iter().for_each(|line| eprintln!("{line}"));
    } else if done.report.status() == 2 {
        // For a client that has us run this a word tells that it is no error.
        let word = if Served::now() == Served::Nobody { "" } else { "WARN " };
        done.report.notes.iter().for_each(|note| eprintln!("{word}dsync: {}: {note}", done.user));
    }
    if common.json {
        print_line(&report::json(done))?;
    } else if done.dry_run {
        done.report.notes.iter().for_each(|note| eprintln!("dsync: {}: {note}", done.user));
        report::plan(done).iter().try_for_each(|line| print_line(line))?;
    }
    Ok(())
}

/// Reads a password from stdin, so that it stands in no process list and no history.
fn hash() -> Result<(), Failed> {
    let mut password = String::new();
    let read = std::io::stdin().lock().read_line(&mut password);
    read.map_err(|error| {
        Failed::new(75, anyhow::Error::from(error).context("cannot read the password from stdin"))
    })?;
    let password = password.trim_end_matches(['\n', '\r']);
    if password.is_empty() {
        return Err(Failed::usage("no password on stdin"));
    }
    print_line(&hash_password(password)?)
}

fn print_line(text: &str) -> Result<(), Failed> {
    let told = writeln!(std::io::stdout(), "{text}");
    told.map_err(|error| Failed::new(75, anyhow::Error::from(error).context("cannot write to stdout")))
}

/// Ctrl-C, TERM and HUP bring the session to its next safe point; a second one ends it at once, which loses nothing either.
fn stop_on_signals() -> Result<watch::Receiver<bool>, Failed> {
    let (sender, receiver) = watch::channel(false);
    let failed = |error| Failed::new(75, anyhow::Error::from(error).context("cannot wait for signals"));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
    let mut signals = {
        let _inside = runtime.enter();
        let kinds = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()];
        kinds.into_iter().map(signal).collect::<Result<Vec<_>, _>>().map_err(failed)?
    };
    std::thread::spawn(move || {
        runtime.block_on(async {
            for _ in 0..2 {
                let [a, b, c] = signals.as_mut_slice() else { return };
                tokio::select! { _ = a.recv() => {}, _ = b.recv() => {}, _ = c.recv() => {} }
                if sender.send_replace(true) {
                    std::process::exit(75);
                }
            }
        });
    });
    Ok(receiver)
}

fn start_log(level: LevelFilter) {
    tracing_subscriber::fmt()
        .with_max_level(level)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .without_time()
        .with_target(false)
        .init();
}

/// The error and its causes in one line. Some errors tell their cause themselves: it is said once.
fn chain(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain() {
        let said = cause.to_string();
        if text.ends_with(&said) {
            continue;
        }
        if !text.is_empty() {
            text.push_str(": ");
        }
        text.push_str(&said);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_status_is_the_last() {
        for (statuses, expected) in [
            (&[0, 0][..], 0),
            (&[0, 2], 2),
            (&[2, 0], 2),
            (&[2, 77, 65], 77),
            (&[68, 75, 0], 75),
            (&[2, 65], 65),
        ] {
            assert_eq!(statuses.iter().copied().fold(0, worse), expected, "{statuses:?}");
        }
    }
}
