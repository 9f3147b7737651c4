//! Listens: permit, accept, first bytes, a thread for each connection; on a signal, running syncs reach a safe point.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use bytes::BytesMut;
use dsync_accounts::Settings;
use dsync_session::greet::PREFACE_WAIT;
use dsync_session::link::Stream;
use dsync_session::proto::preface::{Spoken, recognise};
use dsync_worker::Pool;
use rustls::ServerConfig;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::AsyncReadExt;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use crate::limits::{Doorman, Limits, Permit};
use crate::serve::{Peer, Service};
use crate::{tls, unix};

/// How long running syncs get to reach a safe point.
const FAREWELL: Duration = Duration::from_secs(10);
/// How often to look for workers that were idle for long.
const SWEEP_EVERY: Duration = Duration::from_secs(30);
/// The stack of a connection's thread.
const STACK_BYTES: usize = 2 << 20;

/// Listens until a signal comes.
pub fn run(settings: Settings, conf: Vec<String>) -> anyhow::Result<()> {
    let (settings, conf) = (Arc::new(settings), Arc::new(conf));
    let tls = tls::config(&settings)?;
    let port = settings.doveadm_port()?;
    let listeners = bind(&settings.listen()?, port)?;
    let sockets = unix::bind(&settings.doveadm_sockets()?)?;
    let limits = Limits {
        total: settings.max_connections()?,
        per_address: settings.max_connections_per_ip()?,
        unauthenticated: settings.max_unauthenticated()?,
    };
    let doorman = Doorman::new(limits);
    let pool = Arc::new(Pool::new());
    let (stop, stopped) = watch::channel(false);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        // Before the log says that we listen: who reads it may stop us at once.
        let (mut term, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        let mut doors = Vec::new();
        let door = Door {
            settings: settings.clone(),
            conf: conf.clone(),
            tls: tls.clone(),
            doorman: doorman.clone(),
            pool: pool.clone(),
            stop: stopped.clone(),
        };
        for listener in listeners {
            let address = listener.local_addr()?;
            tracing::info!("listening on {address}, {}", if tls.is_some() { "TLS" } else { "no TLS" });
            doors.push(tokio::spawn(door.clone().stand(tokio::net::TcpListener::from_std(listener)?)));
        }
        for (listener, path) in sockets {
            tracing::info!("listening on {}", path.display());
            doors.push(tokio::spawn(door.clone().stand_at_socket(tokio::net::UnixListener::from_std(listener)?)));
        }
        let sweep = async {
            loop {
                tokio::time::sleep(SWEEP_EVERY).await;
                pool.sweep();
            }
        };
        tokio::select! { _ = term.recv() => {}, _ = interrupt.recv() => {}, () = sweep => {} }
        doors.iter().for_each(tokio::task::JoinHandle::abort);
        tracing::info!("stopping; {} connections are open", doorman.open());
        stop.send_replace(true);
        let empty = async {
            while doorman.open() > 0 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::select! {
            () = empty => {}
            () = tokio::time::sleep(FAREWELL) => tracing::warn!("{} connections did not end in time", doorman.open()),
            _ = term.recv() => {}
        }
        Ok(())
    })
}

fn bind(listen: &[String], port: u16) -> anyhow::Result<Vec<TcpListener>> {
    let mut listeners = Vec::new();
    for host in listen {
        let addresses: Vec<SocketAddr> = match host.as_str() {
            "*" => vec![(IpAddr::from(Ipv4Addr::UNSPECIFIED), port).into()],
            "::" | "[::]" => vec![(IpAddr::from(Ipv6Addr::UNSPECIFIED), port).into()],
            host => {
                let host = host.trim_start_matches('[').trim_end_matches(']');
                std::net::ToSocketAddrs::to_socket_addrs(&(host, port))
                    .with_context(|| format!("listen: {host}"))?
                    .collect()
            }
        };
        for address in addresses {
            match bind_one(address) {
                Ok(listener) => listeners.push(listener),
                // A machine without IPv6 is no reason to serve nobody.
                Err(error) if host == "::" && error.kind() != std::io::ErrorKind::AddrInUse => {
                    tracing::debug!("{address}: {error}");
                }
                Err(error) => {
                    let holder = if error.kind() == std::io::ErrorKind::AddrInUse {
                        holder(address.port())
                    } else {
                        String::new()
                    };
                    return Err(error).with_context(|| format!("cannot listen on {address}{holder}"));
                }
            }
        }
    }
    anyhow::ensure!(!listeners.is_empty(), "the setting listen names no address that this machine has");
    Ok(listeners)
}

fn bind_one(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.bind(&address.into())?;
    socket.listen(1024)?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

/// Who has the port, as far as /proc tells: ` (held by dovecot, pid 123)`.
fn holder(port: u16) -> String {
    let listening = |table: &str| -> Vec<String> {
        let text = std::fs::read_to_string(table).unwrap_or_default();
        let rows = text.lines().skip(1).filter_map(|line| {
            let columns: Vec<&str> = line.split_whitespace().collect();
            let (local, state, inode) = (columns.get(1)?, columns.get(3)?, columns.get(9)?);
            let here = u16::from_str_radix(local.rsplit(':').next()?, 16).ok()?;
            (here == port && *state == "0A").then(|| format!("socket:[{inode}]"))
        });
        rows.collect()
    };
    let sockets: Vec<String> = ["/proc/net/tcp", "/proc/net/tcp6"].into_iter().flat_map(listening).collect();
    for process in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let files = std::fs::read_dir(process.path().join("fd")).into_iter().flatten().flatten();
        let mut links = files.filter_map(|file| std::fs::read_link(file.path()).ok());
        if links.any(|link| sockets.iter().any(|socket| link.as_os_str() == socket.as_str())) {
            let name = std::fs::read_to_string(process.path().join("comm")).unwrap_or_default();
            return format!(" (held by {}, pid {})", name.trim(), process.file_name().to_string_lossy());
        }
    }
    String::new()
}

#[derive(Clone)]
struct Door {
    settings: Arc<Settings>,
    conf: Arc<Vec<String>>,
    tls: Option<Arc<ServerConfig>>,
    doorman: Arc<Doorman>,
    pool: Arc<Pool>,
    stop: watch::Receiver<bool>,
}

impl Door {
    async fn stand(self, listener: tokio::net::TcpListener) {
        loop {
            let (stream, address) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Out of descriptors, most likely: what is open goes on.
                    tracing::error!("cannot accept: {error}");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            self.let_in(address, stream.into_std().map(Caller::Tcp));
        }
    }

    async fn stand_at_socket(self, listener: tokio::net::UnixListener) {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => {
                    let address = (IpAddr::from(Ipv4Addr::LOCALHOST), 0).into();
                    self.let_in(address, stream.into_std().map(Caller::Unix));
                }
                Err(error) => {
                    tracing::error!("cannot accept: {error}");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    /// Begins a thread for a connection, if there may be one more.
    fn let_in(&self, address: SocketAddr, caller: std::io::Result<Caller>) {
        let permit = match self.doorman.admit(address.ip()) {
            Ok(permit) => permit,
            Err(limit) => {
                tracing::warn!("peer={address} turned away: {limit}");
                return;
            }
        };
        let visit = Visit {
            settings: self.settings.clone(),
            conf: self.conf.clone(),
            tls: self.tls.clone(),
            pool: self.pool.clone(),
            stop: self.stop.clone(),
            address,
            permit: Some(permit),
        };
        let thread = std::thread::Builder::new().name(format!("sync {address}")).stack_size(STACK_BYTES);
        let started = caller.and_then(|caller| thread.spawn(move || visit.receive(caller)));
        if let Err(error) = started {
            tracing::error!("peer={address} cannot be served: {error}");
        }
    }
}

/// A connection just made.
enum Caller {
    Tcp(std::net::TcpStream),
    Unix(std::os::unix::net::UnixStream),
}

struct Visit {
    settings: Arc<Settings>,
    conf: Arc<Vec<String>>,
    tls: Option<Arc<ServerConfig>>,
    pool: Arc<Pool>,
    stop: watch::Receiver<bool>,
    address: SocketAddr,
    permit: Option<Permit>,
}

impl Visit {
    fn receive(self, caller: Caller) {
        let address = self.address;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let served = runtime.map_err(anyhow::Error::from).and_then(|runtime| match caller {
            Caller::Tcp(stream) => runtime.block_on(self.talk(stream)),
            Caller::Unix(stream) => runtime.block_on(self.talk_here(stream)),
        });
        if let Err(error) = served {
            tracing::warn!("peer={address} {error:#}");
        }
    }

    fn service(&self) -> Service<'_> {
        Service { settings: &self.settings, pool: &self.pool, conf: &self.conf, stop: self.stop.clone() }
    }

    /// A connection by a unix socket.
    async fn talk_here(mut self, stream: std::os::unix::net::UnixStream) -> anyhow::Result<()> {
        let mut stream = tokio::net::UnixStream::from_std(stream)?;
        let uid = stream.peer_cred()?.uid();
        let peer = Peer {
            name: format!("uid {uid}"),
            certificate: Vec::new(),
            trusted_user: None,
            exposed: false,
            local: true,
            trusted: unix::is_trusted(uid),
        };
        let early =
            timeout(PREFACE_WAIT, self.first_words(&mut stream, &peer)).await.context("said nothing")??;
        let permit = self.permit.take();
        self.service().serve(&mut stream, early, &peer, permit).await;
        Ok(())
    }

    async fn talk(mut self, stream: std::net::TcpStream) -> anyhow::Result<()> {
        let stream = tokio::net::TcpStream::from_std(stream)?;
        stream.set_nodelay(true)?;
        let local = self.address.ip().is_loopback();
        let mut first = [0; 1];
        let peeked = timeout(PREFACE_WAIT, stream.peek(&mut first)).await.context("said nothing")??;
        if peeked == 0 {
            anyhow::bail!("went away without a word");
        }
        let mut peer = Peer {
            name: self.address.to_string(),
            certificate: Vec::new(),
            trusted_user: None,
            exposed: !local,
            local,
            trusted: false,
        };
        let permit = self.permit.take();
        let service = self.service();
        if recognise(&first) != Some(Spoken::Tls) {
            let mut stream = stream;
            let early = self.first_words(&mut stream, &peer).await?;
            service.serve(&mut stream, early, &peer, permit).await;
            return Ok(());
        }
        let Some(config) = self.tls.clone() else { anyhow::bail!("wants TLS, and ssl = no") };
        let shaken = timeout(PREFACE_WAIT, TlsAcceptor::from(config).accept(stream))
            .await
            .context("TLS: took too long")?;
        let mut stream = shaken.context("TLS")?;
        peer.exposed = false;
        let certificate = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
        peer.certificate = certificate.map(tls::names).unwrap_or_default();
        let early = self.first_words(&mut stream, &peer).await?;
        service.serve(&mut stream, early, &peer, permit).await;
        Ok(())
    }

    /// Reads until it is clear what the peer speaks, and answers in kind where it is not dsync.
    async fn first_words(&self, stream: &mut dyn Stream, peer: &Peer) -> anyhow::Result<BytesMut> {
        let mut early = BytesMut::new();
        let spoken = timeout(PREFACE_WAIT, async {
            loop {
                if let Some(spoken) = recognise(&early) {
                    return Ok(spoken);
                }
                if stream.read_buf(&mut early).await? == 0 {
                    anyhow::bail!("went away in the middle of its first words");
                }
            }
        });
        let answer: &[u8] = match spoken.await.context("said too little")?? {
            Spoken::Native | Spoken::Dovecot => return Ok(early),
            Spoken::Http => b"HTTP/1.0 400 Bad Request\r\nContent-Length: 40\r\n\r\nThis is dsync-server, not a web server.\r\n",
            Spoken::Other | Spoken::Tls => b"",
        };
        let told = tokio::io::AsyncWriteExt::write_all(stream, answer).await;
        if let Err(error) = told {
            tracing::debug!("peer={} {error}", peer.name);
        }
        anyhow::bail!("does not speak dsync's protocol")
    }
}
