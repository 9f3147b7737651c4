//! Who has which end of a sync between two accounts, and how they meet: all ours, all Dovecot's, or one of each.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::dovecot::{Dovecot, Service};
use crate::installation::{certificate, dsync_server, home, mail_options, program, words};
use crate::programs::{PASSWORD, Server, certificates, free_port};

/// Who has A, which begins, and who has B, which answers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ends {
    /// Both ends are ours.
    Ours,
    /// Dovecot calls Dovecot.
    Dovecots,
    /// We have A and call the Dovecot that has B.
    WeCall,
    /// Dovecot has A and calls us, who have B.
    DovecotCalls,
}

/// The way between two ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Transport {
    Pipe,
    Tcp,
    Tls,
}

/// Who syncs how, and the formats of A and B.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Setup {
    pub ends: Ends,
    pub transport: Transport,
    pub formats: [&'static str; 2],
}

impl Setup {
    /// Both ends ours, Maildir.
    pub const OURS: Setup =
        Setup { ends: Ends::Ours, transport: Transport::Pipe, formats: ["maildir", "maildir"] };
}

/// The server of B, where there is one; it ends with this.
enum Peer {
    None,
    Dovecot(Service),
    Ours { _server: Server, port: u16 },
}

/// A pair of accounts that sync.
pub struct Meeting {
    setup: Setup,
    /// Of A and B, and where their mail is.
    confs: [PathBuf; 2],
    locations: [String; 2],
    programs: PathBuf,
    /// A's configuration with password and CA.
    client: PathBuf,
    peer: Peer,
}

impl Meeting {
    /// Starts what must run for it. Files go below `dir`.
    pub fn new(
        setup: Setup,
        dovecot: &Dovecot,
        dir: &Path,
        programs: &Path,
        confs: [PathBuf; 2],
        locations: [String; 2],
    ) -> Meeting {
        let peer = match (setup.transport, setup.ends) {
            (Transport::Pipe, _) | (_, Ends::Ours) => Peer::None,
            (_, Ends::Dovecots | Ends::WeCall) => {
                Peer::Dovecot(Service::start(dovecot, dir, &locations[1], PASSWORD))
            }
            (_, Ends::DovecotCalls) => serve(dovecot, dir, programs, &confs[1]),
        };
        let ca = dir.join("ca.pem");
        fs::copy(certificates().join("ca.pem"), &ca).expect("copied");
        let mut text = fs::read_to_string(&confs[0]).expect("read");
        text.push_str(&format!("doveadm_password = {PASSWORD}\nssl_client_ca_file = {}\n", ca.display()));
        let client = dir.join("client.conf");
        // Dovecot opens no TLS connection with ssl = no.
        fs::write(&client, text.replace("ssl = no", "ssl = yes")).expect("written");
        Meeting { setup, confs, locations, programs: programs.to_owned(), client, peer }
    }

    /// The command that syncs A with B; `-s` with a state, if one is given.
    pub fn command(
        &self,
        dovecot: &Dovecot,
        mode: &str,
        arguments: &[String],
        state: Option<&str>,
    ) -> Command {
        let doveadm = &program("doveadm");
        let we_call = matches!(self.setup.ends, Ends::Ours | Ends::WeCall);
        let mut command =
            if we_call { dovecot.as_user(&self.programs.join("dsync")) } else { dovecot.as_user(doveadm) };
        let arguments = arguments.iter().map(String::as_str);
        let said =
            [mode].into_iter().chain(arguments).chain(state.into_iter().flat_map(|state| ["-s", state]));
        let said: Vec<&str> = said.collect();
        command.arg("-c").arg(&self.client);
        if we_call {
            command.args(said);
        } else {
            command.args(words(&said));
        }
        if we_call {
            command.arg("--source").arg(&self.locations[0]);
        }
        match (&self.peer, self.setup.ends) {
            (Peer::Dovecot(service), _) if self.setup.transport == Transport::Tls => {
                command.arg(service.tls());
            }
            (Peer::Dovecot(service), _) => drop(command.arg(service.tcp())),
            (Peer::Ours { port, .. }, _) => {
                let kind = if self.setup.transport == Transport::Tls { "tcps" } else { "tcp" };
                command.arg(format!("{kind}:localhost:{port}"));
            }
            (Peer::None, Ends::Ours) => drop(command.arg(&self.locations[1])),
            (Peer::None, Ends::DovecotCalls) => self.our_server(&mut command),
            (Peer::None, Ends::Dovecots | Ends::WeCall) => {
                let options = mail_options(&self.locations[1]);
                command.arg(doveadm).arg("-c").arg(&self.confs[1]).args(options).args(dsync_server());
            }
        }
        command
    }

    /// Appends our server as the command to run.
    pub fn our_server(&self, command: &mut Command) {
        command.arg(self.programs.join("dsync-server")).arg("-c").arg(&self.confs[1]);
        command.args(["--stdio", "-u", "alice"]);
    }

    /// What a Dovecot that was called has logged.
    pub fn log(&self) -> String {
        match &self.peer {
            Peer::Dovecot(service) => service.log(),
            Peer::None | Peer::Ours { .. } => String::new(),
        }
    }
}

fn serve(dovecot: &Dovecot, dir: &Path, programs: &Path, conf: &Path) -> Peer {
    let port = free_port();
    for file in ["server.pem", "server.key"] {
        fs::copy(certificates().join(file), dir.join(file)).expect("copied");
        dovecot.own(&dir.join(file));
    }
    let mut text = fs::read_to_string(conf).expect("read").replace("ssl = no", "ssl = yes");
    text.push_str(&format!(
        "listen = 127.0.0.1\ndoveadm_port = {port}\ndoveadm_password = {PASSWORD}\n{}{}",
        certificate(dir),
        home(&dir.join("home"))
    ));
    let conf = dir.join("served.conf");
    fs::write(&conf, text).expect("written");
    let mut command = dovecot.as_user(&programs.join("dsync-server"));
    command.arg("-c").arg(conf);
    Peer::Ours { _server: Server::start(command), port }
}
