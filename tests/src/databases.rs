//! Databases of users as Debian has them, each started by a test with private files and ended when dropped.

use std::fs;
use std::io::{BufRead, BufReader, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::dovecot::{own, unprivileged};
use crate::programs::free_port;

/// A running server.
pub struct Database {
    child: Child,
    dir: tempfile::TempDir,
    /// Where it listens: a directory for PostgreSQL, a URI for slapd.
    pub place: String,
}

impl Database {
    /// What PostgreSQL answers.
    pub fn sql(&self, sql: &str) -> String {
        let mut psql = Command::new("psql");
        psql.args([
            "-qAt",
            "-v",
            "ON_ERROR_STOP=1",
            "-U",
            "vmail",
            "-d",
            "postgres",
            "-h",
            &self.place,
            "-c",
            sql,
        ]);
        let output = psql.env("PGPASSWORD", "secret").stderr(Stdio::inherit()).output().expect("psql runs");
        assert!(output.status.success(), "{sql}");
        String::from_utf8_lossy(&output.stdout).trim_end().to_owned()
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        // Started through setpriv, which becomes the server: this is its own pid.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn directory() -> tempfile::TempDir {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().expect("made");
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).expect("set");
    own(dir.path());
    dir
}

/// Starts a server and waits until its log says `ready`; the rest of the log is read and dropped.
fn start(mut command: Command, ready: &str) -> Child {
    let mut child =
        command.stderr(Stdio::piped()).stdin(Stdio::null()).stdout(Stdio::null()).spawn().expect("starts");
    let mut lines = BufReader::new(child.stderr.take().expect("piped")).lines().map_while(Result::ok);
    let mut seen = Vec::new();
    loop {
        match lines.next() {
            Some(line) if line.contains(ready) => break,
            Some(line) => seen.push(line),
            None => panic!("it never says {ready:?}: {seen:#?}"),
        }
    }
    std::thread::spawn(move || lines.for_each(drop));
    child
}

fn postgresql(program: &str) -> PathBuf {
    let mut versions: Vec<PathBuf> = fs::read_dir("/usr/lib/postgresql")
        .expect("PostgreSQL is installed: tests/run installs it")
        .map(|entry| entry.expect("read").path())
        .collect();
    versions.sort();
    versions.pop().expect("a version").join("bin").join(program)
}

/// Starts PostgreSQL on a Unix socket, with the tables of `sql`.
pub fn postgres(sql: &str) -> Database {
    let dir = directory();
    let (data, place) = (dir.path().join("data"), dir.path().display().to_string());
    let password = dir.path().join("password");
    fs::write(&password, "secret\n").expect("written");
    own(&password);
    let made = unprivileged(&postgresql("initdb"))
        .args(["-A", "scram-sha-256", "-U", "vmail", "--no-sync", "--locale=C.UTF-8", "--pwfile"])
        .arg(&password)
        .arg("-D")
        .arg(&data)
        .stdout(Stdio::null())
        .current_dir("/")
        .status();
    assert!(made.expect("initdb runs").success());
    let mut server = unprivileged(&postgresql("postgres"));
    server
        .arg("-D")
        .arg(&data)
        .arg("-k")
        .arg(dir.path())
        .args(["-c", "listen_addresses=", "-F"])
        .current_dir("/");
    let child = start(server, "ready to accept connections");
    let database = Database { child, dir, place };
    database.sql(sql);
    database
}

/// Starts MariaDB on a Unix socket, with the tables of `sql` in the database `mail`; `None` if it is not installed.
pub fn mariadb(sql: &str) -> Option<Database> {
    let program = Path::new("/usr/sbin/mariadbd");
    if !program.exists() {
        eprintln!("skipped: no mariadbd on this machine (Debian: mariadb-server-core)");
        return None;
    }
    let dir = directory();
    let (data, socket) = (dir.path().join("data"), dir.path().join("socket"));
    fs::create_dir(&data).expect("made");
    own(&data);
    let datadir = format!("--datadir={}", data.display());
    let mut tables = "create database mysql;\nuse mysql;\n".to_owned();
    for name in ["mysql_system_tables", "mysql_system_tables_data"] {
        tables.push_str(&fs::read_to_string(format!("/usr/share/mysql/{name}.sql")).expect("installed"));
    }
    let mut made = unprivileged(program);
    made.args(["--no-defaults", &datadir, "--bootstrap", "--innodb-log-file-size=4M"]);
    let mut made = made.stdin(Stdio::piped()).stderr(Stdio::null()).current_dir("/").spawn().expect("starts");
    made.stdin.take().expect("piped").write_all(tables.as_bytes()).expect("written");
    assert!(made.wait().expect("ends").success(), "the tables of MariaDB are not made");
    let init = dir.path().join("init.sql");
    let sql = sql.replace(';', ";\n");
    let text = format!(
        "CREATE DATABASE mail;\nUSE mail;\n{sql}CREATE USER vmail IDENTIFIED BY 'secret';\nGRANT SELECT ON mail.* TO vmail;\n"
    );
    fs::write(&init, text).expect("written");
    own(&init);
    let mut server = unprivileged(program);
    server
        .arg("--no-defaults")
        .current_dir("/")
        .args(["--skip-networking", "--innodb-flush-log-at-trx-commit=0"]);
    server.arg(datadir).arg(format!("--socket={}", socket.display()));
    server.arg(format!("--init-file={}", init.display()));
    let child = start(server, "ready for connections");
    let place = socket.display().to_string();
    Some(Database { child, dir, place })
}

/// Starts slapd on a free port with these entries below `dc=example`.
pub fn slapd(ldif: &str) -> Database {
    let dir = directory();
    let here = dir.path();
    let conf = format!(
        "include /etc/ldap/schema/core.schema\ninclude /etc/ldap/schema/cosine.schema\ninclude /etc/ldap/schema/nis.schema\n\
         modulepath /usr/lib/ldap\nmoduleload back_mdb\npidfile {0}/pid\nsizelimit size.soft=7 size.prtotal=unlimited\n\
         database mdb\nsuffix dc=example\nrootdn cn=admin,dc=example\nrootpw secret\ndirectory {0}/data\n\
         access to attrs=userPassword by anonymous auth by * none\naccess to * by users read by * none\n",
        here.display()
    );
    fs::write(here.join("slapd.conf"), conf).expect("written");
    fs::write(here.join("data.ldif"), ldif).expect("written");
    fs::create_dir(here.join("data")).expect("made");
    own(here);
    let added = unprivileged(Path::new("/usr/sbin/slapadd"))
        .arg("-q")
        .arg("-f")
        .arg(here.join("slapd.conf"))
        .arg("-l")
        .arg(here.join("data.ldif"))
        .status();
    assert!(added.expect("slapadd runs: tests/run installs slapd").success());
    let port = free_port();
    let place = format!("ldap://127.0.0.1:{port}");
    let mut server = unprivileged(Path::new("/usr/sbin/slapd"));
    server.arg("-f").arg(here.join("slapd.conf")).args(["-h", &place, "-d", "stats"]);
    let child = start(server, "slapd starting");
    // It says so a moment before it listens.
    let listens = (0..2000).any(|_| {
        std::thread::sleep(Duration::from_millis(5));
        TcpStream::connect(("127.0.0.1", port)).is_ok()
    });
    assert!(listens, "slapd does not listen");
    Database { child, dir, place }
}

impl Database {
    /// A place for files of the test.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
}
