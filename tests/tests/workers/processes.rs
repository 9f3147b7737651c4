//! Processes at work: whose they are, what they hold open, what becomes of them.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

pub fn numbers(line: &str) -> Vec<u32> {
    line.split_whitespace().skip(1).map(|word| word.parse().expect("a number")).collect()
}

/// Processes that this one started.
pub fn children(parent: u32) -> Vec<u32> {
    let mut found = Vec::new();
    for task in fs::read_dir(format!("/proc/{parent}/task")).expect("it runs").flatten() {
        let text = fs::read_to_string(task.path().join("children")).unwrap_or_default();
        found.extend(text.split_whitespace().map(|pid| pid.parse::<u32>().expect("a number")));
    }
    found
}

/// Holds the lock of a store as another dsync would, until it is dropped.
pub fn locked(path: &Path) -> fs::File {
    let file = fs::File::options().read(true).write(true).open(path).expect("there");
    let whole = nix::libc::flock {
        l_type: nix::libc::F_WRLCK as i16,
        l_whence: nix::libc::SEEK_SET as i16,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    nix::fcntl::fcntl(&file, nix::fcntl::FcntlArg::F_OFD_SETLK(&whole)).expect("free");
    file
}

pub fn uid(pid: u32) -> Option<u32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    numbers(status.lines().find(|line| line.starts_with("Uid:"))?).first().copied()
}

pub fn of_uid(parent: u32, wanted: u32) -> u32 {
    let found = || children(parent).into_iter().find(|pid| uid(*pid) == Some(wanted));
    wait_until("there is a worker", || found().is_some());
    found().expect("just seen")
}

/// Says whether a process has this file open.
pub fn holds_open(pid: u32, path: &str) -> bool {
    let files = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    files.filter_map(|file| fs::read_link(file.path()).ok()).any(|link| link.ends_with(path))
}

pub fn kill(pid: u32) {
    let killed = Command::new("kill").arg("-9").arg(pid.to_string()).status();
    assert!(killed.expect("kill runs").success());
}

pub fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < Duration::from_secs(20), "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
