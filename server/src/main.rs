//! The program `dsync-server`: listens with TLS, or speaks on stdin and stdout.
#![forbid(unsafe_code)]

mod args;
mod command;
mod doveadm;
mod limits;
mod listen;
mod packed;
mod serve;
mod tls;
mod unix;

use std::process::ExitCode;

use clap::Parser;
use dsync_accounts::{Settings, UserError, check_user};
use dsync_session::dial::own_stdio;
use dsync_worker::Pool;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tracing::level_filters::LevelFilter;

use args::Cli;
use serve::{Peer, Service};

fn main() -> ExitCode {
    if let Some(status) = dsync_worker::enter(start_log) {
        return status;
    }
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let status = if error.use_stderr() { 64 } else { 0 };
            return ExitCode::from(if error.print().is_ok() { status } else { 75 });
        }
    };
    let level = match (cli.debug, cli.user.is_some()) {
        (true, _) => LevelFilter::DEBUG,
        // Over ssh, stderr is the user's terminal.
        (false, true) => LevelFilter::WARN,
        (false, false) => LevelFilter::INFO,
    };
    start_log(level);
    let settings = match Settings::load(cli.config.as_deref(), &cli.overrides) {
        Ok(settings) => settings,
        Err(error) => {
            let status = error.status();
            eprintln!("dsync-server: {:#}", anyhow::Error::from(error));
            return ExitCode::from(status);
        }
    };
    let outcome = match &cli.user {
        Some(user) => stdio(&settings, user),
        None => listen::run(settings, conf_words(&cli)).map(|()| 0),
    };
    match outcome {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            eprintln!("dsync-server: {error:#}");
            let taken = error.chain().any(|cause| {
                cause
                    .downcast_ref::<std::io::Error>()
                    .is_some_and(|io| io.kind() == std::io::ErrorKind::AddrInUse)
            });
            let refused = error.downcast_ref::<UserError>().map(UserError::status);
            ExitCode::from(refused.unwrap_or(if taken { 75 } else { 78 }))
        }
    }
}

/// What the command line says of the configuration, for a program that is to have the same.
fn conf_words(cli: &Cli) -> Vec<String> {
    let file = cli.config.iter().flat_map(|path| ["-c".to_owned(), path.display().to_string()]);
    file.chain(cli.overrides.iter().flat_map(|setting| ["-o".to_owned(), setting.clone()])).collect()
}

fn start_log(level: LevelFilter) {
    tracing_subscriber::fmt()
        .with_max_level(level)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .with_target(false)
        .init();
}

/// Serves the one session on stdin and stdout.
fn stdio(settings: &Settings, user: &str) -> anyhow::Result<u8> {
    check_user(user)?;
    let (sender, stop) = watch::channel(false);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let status = runtime.block_on(async {
        let (mut term, mut hangup) = (signal(SignalKind::terminate())?, signal(SignalKind::hangup())?);
        let mut way = own_stdio();
        let peer = Peer {
            name: "stdio".into(),
            certificate: Vec::new(),
            trusted_user: Some(user.to_owned()),
            exposed: false,
            local: false,
            trusted: false,
        };
        let pool = Pool::new();
        let service = Service { settings, pool: &pool, conf: &[], stop };
        let serving = service.serve(&mut *way.stream, bytes::BytesMut::new(), &peer, None);
        tokio::pin!(serving);
        loop {
            tokio::select! {
                status = &mut serving => return anyhow::Ok(status),
                _ = term.recv() => { sender.send_replace(true); }
                _ = hangup.recv() => { sender.send_replace(true); }
            }
        }
    })?;
    // The thread that waits for stdin would keep the runtime.
    runtime.shutdown_background();
    Ok(status)
}
