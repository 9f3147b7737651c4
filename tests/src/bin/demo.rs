//! `cargo demo`: the main job on real mail, from nothing, leaving nothing behind.
//!
//! Takes a Maildir (`cargo demo -- maildir:~/Maildir` works on a copy of yours) or makes a sample account, starts `dsync-server` on
//! loopback with the certificates of certs-dev, backs up over TLS, lets both sides change, synchronises them, and shows that both
//! ends are equal.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context as _, bail, ensure};
use dsync_session::storage::Location;
use dsync_tests::maildirs::Account;
use dsync_tests::programs::{Place, programs};
use dsync_tests::sample;

fn main() -> ExitCode {
    match demo() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("demo: {}", error.chain().map(ToString::to_string).collect::<Vec<_>>().join(": "));
            ExitCode::FAILURE
        }
    }
}

fn demo() -> anyhow::Result<()> {
    let given = std::env::args().nth(1);
    say("Building the release programs");
    let place = Place::new("");
    let programs = programs();
    let here = Account::new(place.path("here"));
    match &given {
        Some(location) => copy_of(location, &here)?,
        None => {
            say("Writing a sample account");
            sample::write(&here);
        }
    }
    let before = here.view();
    let messages: usize = before.values().map(|lines| lines.len().saturating_sub(1)).sum();
    println!("   {} names, {messages} messages in {}", before.len(), here.root.display());
    ensure!(messages > 0, "the account holds no message; give the location of another");

    say("Starting dsync-server on loopback, with TLS");
    let server = place.serve();
    println!("   {} on port {}", programs.join("dsync-server").display(), place.port);

    say("Backing up over TLS");
    run(&place, &["-v", "backup", "--source", &location(&here), &place.tls()])?;
    let there = Account::new(place.path("server/alice"));
    ensure!(here.view() == there.view(), "the ends differ after the backup");
    println!("   proof: every mailbox, UID, flag, date and byte is the same at both ends");

    say("Both sides change");
    let (one, two) = sample::change_both(&here, &there)?;
    println!("   here:  {one}\n   there: {two}");

    say("Synchronising both ways");
    run(&place, &["-v", "sync", "--source", &location(&here), &place.tls()])?;
    let (ours, theirs) = (here.view(), there.view());
    ensure!(ours == theirs, "the ends differ after the sync");
    let messages: usize = ours.values().map(|lines| lines.len().saturating_sub(1)).sum();
    println!("   proof: both ends hold the same {messages} messages, with the changes of both");

    say("Once more, with nothing new");
    run(&place, &["-v", "sync", "--source", &location(&here), &place.tls()])?;
    drop(server);
    let directory = place.dir.path().to_owned();
    place.dir.close().context("cannot clean up")?;
    ensure!(!directory.exists(), "something was left behind in {}", directory.display());
    say("Done; nothing is left behind");
    Ok(())
}

fn say(what: &str) {
    println!("== {what}");
}

fn location(account: &Account) -> String {
    format!("maildir:{}", account.root.display())
}

fn run(place: &Place, arguments: &[&str]) -> anyhow::Result<()> {
    let status = place.dsync(arguments).stdin(Stdio::null()).status().context("dsync does not start")?;
    ensure!(status.success(), "dsync {} ended with {status}", arguments.join(" "));
    Ok(())
}

/// Copies a Maildir with its times; the original is only read.
fn copy_of(text: &str, here: &Account) -> anyhow::Result<()> {
    let home = std::env::var_os("HOME").map(PathBuf::from);
    let root: PathBuf = Location::parse(text, home.as_deref())?.root().to_owned();
    ensure!(root.join("cur").is_dir(), "{} is no Maildir: it has no directory cur", root.display());
    say(&format!("Copying {}", root.display()));
    fs::create_dir_all(here.root.parent().unwrap_or(Path::new("/"))).context("cannot make the copy")?;
    let status = Command::new("cp")
        .arg("-a")
        .arg("--")
        .arg(&root)
        .arg(&here.root)
        .status()
        .context("cp does not start")?;
    if !status.success() {
        bail!("cannot copy {}", root.display());
    }
    Ok(())
}
