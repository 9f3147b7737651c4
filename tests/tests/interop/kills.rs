//! Either end killed in the middle of a session of which one end is a Dovecot: after the next run every message is there once, at both ends, with its flags.
//!
//! All bytes go through a relay, which kills when so many of them have passed: the same instants on a slow machine and on a quick one.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use dsync_tests::dovecot::{Service, assert_equal, installed};
use dsync_tests::installation::{mail_lines, program, words};
use dsync_tests::interop::World;
use dsync_tests::maildirs::Account;
use dsync_tests::programs::{PASSWORD, Server, free_port};

/// Who calls: A, which is ours or the Dovecot's; B is the other's.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Caller {
    We,
    Dovecot,
}

#[derive(Clone, Copy, PartialEq, Debug)]
enum Victim {
    Caller,
    Called,
}

/// Messages that both ends have, and that only one has, in each mailbox.
const COMMON: u32 = 40;
const NEW: u32 = 30;
const MAILBOXES: [&str; 2] = ["INBOX", "Work/Sub"];
// No Dovecot with an mdbox dies here: with half a message at the end of a file it rebuilds the storage when it saves next, and what had been expunged or had
// another UID comes back, with two Dovecots as well.
/// Kills of each victim, by each caller: spread over the bytes of a whole session.
const KILLS: u64 = 4;
const KILLS_LONG: u64 = 40;
/// Runs until both ends agree: a server that was left alone may still be at work when the next session begins.
const RUNS_MAX: usize = 4;

#[test]
fn we_call_and_die() {
    kill(Caller::We, Victim::Caller, ["mdbox", "maildir"]);
}

#[test]
fn we_are_called_and_die() {
    kill(Caller::Dovecot, Victim::Called, ["maildir", "sdbox"]);
}

#[test]
fn the_dovecot_that_we_called_dies() {
    kill(Caller::We, Victim::Called, ["mdbox", "sdbox"]);
}

#[test]
fn the_dovecot_that_called_us_dies() {
    kill(Caller::Dovecot, Victim::Caller, ["sdbox", "mdbox"]);
}

fn kill(caller: Caller, victim: Victim, formats: [&str; 2]) {
    if !installed() {
        return;
    }
    let world = World::new();
    let [a, b] = [0, 1].map(|side| world.location(formats[side], ["a", "b"][side]));
    prepare(&world, [&a, &b]);
    for name in ["a", "b"] {
        world.copy(name, &format!("{name}-before"));
    }
    let had = [&a, &b].map(|location| world.content(location));
    let had = [&had[0], &had[1]].map(|content| guids(content));
    let mut pair = Pair::new(&world, caller, [a, b]);
    let whole = pair.session(None).bytes;
    pair.settle("not killed");
    let expected = world.content(&pair.locations[0]);
    let before = ["a", "b"].map(|name| world.path(&format!("{name}-before")));
    let wanted = guids(&expected);
    assert_eq!(wanted.len(), (MAILBOXES.len() as u32 * (COMMON - 7 + 2 * NEW) + 1) as usize, "{expected}");
    assert_eq!(
        wanted.iter().collect::<BTreeSet<_>>().len(),
        wanted.len(),
        "a message is there twice: {expected}"
    );
    let kills = if std::env::var_os("DSYNC_LONG").is_some() { KILLS_LONG } else { KILLS };
    let mut interrupted = 0;
    for number in 1..=kills {
        for (name, before) in ["a", "b"].iter().zip(&before) {
            fs::remove_dir_all(world.path(name)).expect("removed");
            let copied = Command::new("cp").arg("-a").arg(before).arg(world.path(name)).status();
            assert!(copied.expect("cp runs").success());
        }
        let at = whole * number / (kills + 1);
        let what = format!("{caller:?} called, {victim:?} killed after {at} of {whole} bytes");
        let seen = pair.session(Some((at, victim)));
        interrupted += u64::from(!seen.success);
        for (side, location) in pair.locations.iter().enumerate() {
            let content = world.content(location);
            let now = guids(&content);
            let lost = had[side].iter().find(|guid| wanted.contains(guid) && !now.contains(guid));
            assert_eq!(lost, None, "{what}: {location}");
        }
        pair.settle(&what);
        for location in &pair.locations {
            let content = world.content(location);
            assert_equal(&content, &expected, &format!("{what}: {location}"));
        }
        assert_eq!(world.messages(&pair.locations[0]), world.messages(&pair.locations[1]), "{what}");
    }
    assert_eq!(interrupted, kills, "sessions that a kill interrupted");
}

/// GUIDs in what [`World::content`] tells.
fn guids(content: &str) -> Vec<&str> {
    content.lines().filter_map(|line| line.split('\t').nth(1)).filter(|guid| *guid != "guid").collect()
}

/// Mail that both ends have, then changes at both.
fn prepare(world: &World, locations: [&str; 2]) {
    let deliver = |name: &str, count: u32| {
        let account = Account::new(world.path(name));
        for n in 0..count * 2 {
            let body = format!(
                "Subject: {name} {n}\nMessage-ID: <{n}@{name}>\n\n{}\n",
                "text ".repeat(n as usize * 7 % 600)
            );
            let folder = ["", "Work.Sub"][n as usize % 2];
            account.deliver(folder, &format!("17000{n:05}.M{n}P1.{name}:2,"), body.as_bytes());
        }
        world.dovecot.own(&account.root);
        account.location()
    };
    let common = deliver("common", COMMON);
    for location in locations {
        world.doveadm(&common, &format!("backup|{location}"));
    }
    for (location, name) in locations.iter().zip(["new-a", "new-b"]) {
        let new = deliver(name, NEW);
        world.doveadm(location, &format!("import|{new}||all"));
    }
    for mailbox in MAILBOXES {
        world.doveadm(locations[0], &format!("flags|add|\\Flagged|mailbox|{mailbox}|uid|3:20"));
        world.doveadm(locations[1], &format!("flags|add|\\Seen $Later|mailbox|{mailbox}|uid|10:30"));
        world.doveadm(locations[0], &format!("expunge|mailbox|{mailbox}|uid|1:4"));
        world.doveadm(locations[1], &format!("expunge|mailbox|{mailbox}|uid|33:35"));
    }
    world.doveadm(locations[0], "mailbox|create|-s|Made");
    world.dovecot.save(locations[0], "Made", "Subject: in Made\n\nx\n");
}

/// A and B, and who serves B.
struct Pair<'a> {
    world: &'a World,
    caller: Caller,
    locations: [String; 2],
    relay: TcpListener,
    dovecot: Option<Service>,
    ours: Option<Server>,
    /// Where B is served.
    port: u16,
}

/// How a session went.
struct Seen {
    success: bool,
    bytes: u64,
}

impl<'a> Pair<'a> {
    fn new(world: &'a World, caller: Caller, locations: [String; 2]) -> Pair<'a> {
        let relay = TcpListener::bind("127.0.0.1:0").expect("a free port");
        relay.set_nonblocking(true).expect("set");
        let mut text = fs::read_to_string(world.dovecot.conf()).expect("read");
        text.push_str(&format!("{}doveadm_password = {PASSWORD}\n", mail_lines(&locations[0])));
        fs::write(world.path("client.conf"), text).expect("written");
        let mut pair = Pair { world, caller, locations, relay, dovecot: None, ours: None, port: 0 };
        match caller {
            Caller::We => {
                let service = Service::start(&world.dovecot, world.dir.path(), &pair.locations[1], PASSWORD);
                pair.port =
                    service.tcp().rsplit(':').next().and_then(|port| port.parse().ok()).expect("a port");
                pair.dovecot = Some(service);
            }
            Caller::Dovecot => pair.serve(),
        }
        pair
    }

    fn serve(&mut self) {
        // It is dead if there is one; its port may be in use for a while.
        self.port = free_port();
        let conf = self.world.path("server.conf");
        let text = format!(
            "mail_location = {}\nlisten = 127.0.0.1\ndoveadm_port = {}\ndoveadm_password = {PASSWORD}\nssl = no\n\
             namespace inbox {{\n  inbox = yes\n  separator = /\n}}\nuserdb {{\n  driver = static\n  args = home={}\n}}\n",
            self.locations[1],
            self.port,
            self.world.path("home").display()
        );
        fs::write(&conf, text).expect("written");
        let mut command = self.world.dovecot.as_user(&self.world.path("dsync-server"));
        command.arg("-c").arg(conf);
        self.ours = Some(Server::start(command));
    }

    /// Runs until both ends agree.
    fn settle(&mut self, what: &str) {
        if self.ours.as_mut().is_some_and(|server| server.child.try_wait().expect("asked").is_some()) {
            self.serve();
        }
        let runs = (0..RUNS_MAX).position(|_| self.session(None).success);
        assert!(runs.is_some(), "{what}: no run succeeds");
    }

    /// A session; when so many bytes have passed, one end dies.
    fn session(&self, kill: Option<(u64, Victim)>) -> Seen {
        let destination = format!("tcp:localhost:{}", self.relay.local_addr().expect("known").port());
        let program = match self.caller {
            Caller::We => self.world.path("dsync"),
            Caller::Dovecot => program("doveadm"),
        };
        let mut command = self.world.dovecot.as_user(&program);
        command.arg("-c").arg(self.world.path("client.conf"));
        match self.caller {
            Caller::We => command.args(["sync", "-l", "30", "-u", "alice", "--source", &self.locations[0]]),
            Caller::Dovecot => command.args(words(&["sync", "-l", "30"])),
        };
        command.arg(destination).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut client = command.spawn().expect("starts");
        let victims = match kill {
            Some((_, Victim::Caller)) => Victims::Process(client.id()),
            Some((_, Victim::Called)) => match (&self.ours, &self.dovecot) {
                (Some(server), _) => Victims::Process(server.child.id()),
                (None, Some(service)) => Victims::Workers(service.pid()),
                (None, None) => unreachable!("somebody serves B"),
            },
            None => Victims::Nobody,
        };
        let limit = kill.map_or(u64::MAX, |(at, _)| at);
        let (listener, port) = (&self.relay, self.port);
        let (over, bytes) = (AtomicBool::new(false), AtomicU64::new(0));
        let success = std::thread::scope(|scope| {
            scope.spawn(|| relay(listener, port, &over, &Tap { bytes: &bytes, limit, victims: &victims }));
            let success = wait(&mut client);
            over.store(true, Ordering::Relaxed);
            success
        });
        Seen { success, bytes: bytes.into_inner() }
    }
}

/// Says whether the client succeeds.
fn wait(client: &mut Child) -> bool {
    let mut said = String::new();
    client.stderr.take().expect("piped").read_to_string(&mut said).expect("text");
    let status = client.wait().expect("ends");
    assert!(!said.contains("Panic") && !said.contains("panicked"), "{said}");
    status.success()
}

/// Joins the client's connection to the server, if it makes one before it is over.
fn relay(listener: &TcpListener, port: u16, over: &AtomicBool, tap: &Tap<'_>) {
    let client = loop {
        match listener.accept() {
            Ok((client, _)) => break client,
            Err(_) if over.load(Ordering::Relaxed) => return,
            Err(_) => std::thread::sleep(Duration::from_millis(1)),
        }
    };
    client.set_nonblocking(false).expect("set");
    let Ok(server) = TcpStream::connect(("127.0.0.1", port)) else { return };
    std::thread::scope(|scope| {
        scope.spawn(|| tap.pass(&client, &server));
        tap.pass(&server, &client);
    });
}

/// Whom to kill.
enum Victims {
    Nobody,
    Process(u32),
    /// The processes of a Dovecot that serve doveadm.
    Workers(u32),
}

/// Counts what passes, and kills.
struct Tap<'a> {
    bytes: &'a AtomicU64,
    limit: u64,
    victims: &'a Victims,
}

impl Tap<'_> {
    fn pass(&self, mut from: &TcpStream, mut to: &TcpStream) {
        // Small pieces: what has passed is known exactly, and neither end gets far ahead.
        let mut piece = [0; 512];
        while let Ok(length @ 1..) = from.read(&mut piece) {
            let before = self.bytes.fetch_add(length as u64, Ordering::Relaxed);
            if before < self.limit && before + length as u64 >= self.limit {
                self.kill();
            }
            if to.write_all(&piece[..length]).is_err() {
                break;
            }
        }
        // Either may be gone already.
        let _ = to.shutdown(Shutdown::Write);
        let _ = from.shutdown(Shutdown::Read);
    }

    fn kill(&self) {
        let pids = match self.victims {
            Victims::Nobody => return,
            Victims::Process(pid) => vec![*pid],
            Victims::Workers(master) => workers(*master),
        };
        assert!(!pids.is_empty(), "nobody serves");
        for pid in pids {
            let killed = Command::new("kill").args(["-9", &pid.to_string()]).status();
            assert!(killed.expect("kill runs").success());
        }
    }
}

/// The children of a Dovecot that serve doveadm.
fn workers(master: u32) -> Vec<u32> {
    let of_master = |pid: &u32| {
        let read = |file: &str| fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
        read("comm").starts_with("doveadm") && read("status").contains(&format!("\nPPid:\t{master}\n"))
    };
    let entries = fs::read_dir("/proc").expect("readable");
    entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).filter(of_master).collect()
}
