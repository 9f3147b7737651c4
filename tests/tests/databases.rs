//! Users in SQLite, PostgreSQL and LDAP, and those of Dovecot's own auth service: the real servers, both of Dovecot's syntaxes.

use std::fs;
use std::path::Path;

use dsync_accounts::{Settings, User, iterate, lookup, verify};
use dsync_tests::databases::{mariadb, postgres, slapd};
use dsync_tests::dovecot::{Dovecot, PASSWORD, Service, installed};
use dsync_tests::installation::{is_24, program};
use dsync_tests::maildirs::Account;
use dsync_tests::programs::programs;

const TABLE: &str = "CREATE TABLE users (userid varchar(128) NOT NULL, domain varchar(128), home text, uid integer, \
                     gid bigint, password varchar(200), active char(1) DEFAULT 'Y', quota smallint);\
                     INSERT INTO users VALUES ('alice', 'example.org', '/srv/%u/a', 5000, 5001, '{PLAIN}secret', 'Y', 7);\
                     INSERT INTO users VALUES ('o''neil', 'example.org', '/srv/o', 5000, 5001, '$2y$05$1UxyAzv.9xEPrzyElhn3/.41HLSdptZBN37kYVx/lS01dLBtjhWES', 'Y', NULL);\
                     INSERT INTO users VALUES ('gone', 'example.org', '/srv/g', 5000, 5001, 'x', 'N', NULL);";

/// A configuration whose userdb and passdb are that file of 2.3's.
fn old(dir: &Path, kind: &str, file: &str) -> Settings {
    let args = dir.join(format!("{kind}.conf.ext"));
    fs::write(&args, file).expect("written");
    let conf = dir.join("dovecot.conf");
    let args = args.display();
    let text = format!(
        "passdb {{\n driver = {kind}\n args = {args}\n}}\nuserdb {{\n driver = prefetch\n}}\nuserdb {{\n driver = {kind}\n args = {args}\n}}\n"
    );
    fs::write(&conf, text).expect("written");
    Settings::load(Some(&conf), &[]).expect("read")
}

fn new(dir: &Path, text: &str) -> Settings {
    let conf = dir.join("dovecot24.conf");
    fs::write(&conf, text).expect("written");
    Settings::load(Some(&conf), &[]).expect("read")
}

const QUERIES: &str = "default_pass_scheme = CRYPT\n\
    user_query = SELECT home, 'maildir:~/Maildir:INDEX=/idx/%d/%n' AS mail, uid, gid, quota \\\n  FROM users WHERE userid = '%n' AND domain = '%d' AND active = 'Y'\n\
    password_query = SELECT userid AS username, domain, password FROM users WHERE userid = '%n' AND domain = '%d'\n\
    iterate_query = SELECT userid AS username, domain FROM users WHERE active = 'Y'\n";

fn check_sql(settings: &Settings) {
    let User { name, home, mail, uid, gid, extra } = lookup(settings, "alice@example.org").expect("is there");
    assert_eq!(name, "alice@example.org");
    // What the database says is no template.
    assert_eq!(home.as_deref(), Some(Path::new("/srv/%u/a")));
    assert_eq!(mail.as_deref(), Some("maildir:~/Maildir:INDEX=/idx/example.org/alice"));
    assert_eq!((uid, gid, extra["quota"].as_str()), (Some(5000), Some(5001), "7"));
    assert_eq!(
        lookup(settings, "o'neil@example.org").expect("is there").home.as_deref(),
        Some(Path::new("/srv/o"))
    );
    assert_eq!(iterate(settings).expect("lists"), ["alice@example.org", "o'neil@example.org"]);
    for evil in [
        "gone@example.org",
        "x'/**/OR/**/'1'='1@example.org",
        "alice'--@x",
        "alice\\'@example.org",
        "%n@example.org",
    ] {
        // A slash is no part of a name at all; all else the database looks for, and does not find.
        assert_eq!(lookup(settings, evil).expect_err(evil).status(), 67, "{evil}");
    }
    assert!(verify(settings, "alice@example.org", "secret").expect("is checked"));
    assert!(verify(settings, "o'neil@example.org", "secret").expect("is checked"));
    assert!(!verify(settings, "alice@example.org", "' OR '1'='1").expect("is checked"));
    assert!(!verify(settings, "nobody@example.org", "secret").expect("is checked"));
}

#[test]
fn users_in_sqlite() {
    let dir = tempfile::tempdir().expect("made");
    let path = dir.path().join("users.db");
    let runtime = tokio::runtime::Runtime::new().expect("starts");
    runtime.block_on(async {
        use sqlx::Connection;
        let options = sqlx::sqlite::SqliteConnectOptions::new().filename(&path).create_if_missing(true);
        let mut connection = sqlx::SqliteConnection::connect_with(&options).await.expect("opens");
        sqlx::raw_sql(TABLE).execute(&mut connection).await.expect("made");
    });
    let path = path.display();
    check_sql(&old(dir.path(), "sql", &format!("driver = sqlite\nconnect = {path}\n{QUERIES}")));
    let text = format!(
        "sql_driver = sqlite\nsqlite_path = {path}\npassdb sql {{\n default_password_scheme = CRYPT\n \
         query = SELECT password FROM users WHERE userid = '%{{user | username}}' AND domain = '%{{user | domain}}'\n}}\n\
         userdb sql {{\n query = SELECT home, uid, gid, quota FROM users WHERE active = 'Y' AND userid = '%{{user|username}}' AND domain = '%{{user|domain}}'\n \
         iterate_query = SELECT userid AS user, domain FROM users WHERE active = 'Y'\n \
         fields {{\n mail = maildir:~/Maildir:INDEX=/idx/%{{user|domain}}/%{{user|username}}\n }}\n}}\n"
    );
    check_sql(&new(dir.path(), &text));
    // Whoever can be asked later, and what must be mended now.
    let gone = old(dir.path(), "sql", &format!("driver = sqlite\nconnect = {path}.gone\n{QUERIES}"));
    assert_eq!(lookup(&gone, "alice@example.org").expect_err("is not there").status(), 75);
    assert!(!dir.path().join("users.db.gone").exists());
    let wrong = old(dir.path(), "sql", "driver = oracle\nuser_query = SELECT 1\n");
    assert_eq!(lookup(&wrong, "alice").expect_err("is refused").status(), 78);
}

#[test]
fn users_in_postgresql() {
    let database = postgres(TABLE);
    let dir = tempfile::tempdir().expect("made");
    let place = &database.place;
    let connect = |password: &str| {
        format!("driver = pgsql\nconnect = host={place} dbname=postgres user=vmail password={password}\n")
    };
    check_sql(&old(dir.path(), "sql", &format!("{}{QUERIES}", connect("secret"))));
    let text = format!(
        "sql_driver = pgsql\npgsql {place} {{\n parameters {{\n  user = vmail\n  password = secret\n  dbname = postgres\n }}\n}}\n\
         passdb sql {{\n default_password_scheme = CRYPT\n query = SELECT password FROM users WHERE userid = '%{{user|username}}' AND domain = '%{{user|domain}}'\n}}\n\
         userdb sql {{\n query = SELECT home, uid, gid, quota, '/x' AS a FROM users WHERE active = 'Y' AND userid = '%{{user|username}}' AND domain = '%{{user|domain}}'\n \
         iterate_query = SELECT userid AS username, domain FROM users WHERE active = 'Y'\n \
         fields {{\n mail = maildir:~/Maildir:INDEX=/idx/%{{user|domain}}/%{{user|username}}\n }}\n}}\n"
    );
    check_sql(&new(dir.path(), &text));
    // Another host answers where the first does not, at once and later.
    let first = dir.path().join("first");
    std::os::unix::fs::symlink(place, &first).expect("linked");
    let words = "dbname=postgres user=vmail password=secret";
    let several = |words: &str| {
        let hosts = format!("host=/nowhere host={} host={place}", first.display());
        old(dir.path(), "sql", &format!("driver = pgsql\nconnect = {hosts} {words}\n{QUERIES}"))
    };
    let settings = several(&format!("{words} maxconns=1"));
    let others = "FROM pg_stat_activity WHERE usename = 'vmail' AND pid <> pg_backend_pid()";
    let connections = || database.sql(&format!("SELECT count(*) {others}")).parse::<u32>().expect("a number");
    let look = |settings: &Settings| {
        let found = lookup(settings, "alice@example.org").expect("is there");
        assert_eq!(found.uid, Some(5000));
    };
    let before = connections();
    look(&settings);
    std::thread::scope(|scope| (0..4).for_each(|_| drop(scope.spawn(|| look(&settings)))));
    assert_eq!(connections(), before + 1);
    fs::remove_file(&first).expect("removed");
    database.sql(&format!("SELECT pg_terminate_backend(pid) {others}"));
    look(&settings);
    let text = text.replace("pgsql /", "pgsql /nowhere {\n user = nobody\n connection_limit = 2\n}\npgsql /");
    look(&new(dir.path(), &text));
    for count in ["0", "none", "1001"] {
        let wrong = several(&format!("{words} maxconns={count}"));
        assert_eq!(lookup(&wrong, "alice@example.org").expect_err("is refused").status(), 78, "{count}");
    }
    let wrong = old(dir.path(), "sql", &format!("{}{QUERIES}", connect("wrong-one")));
    let error = lookup(&wrong, "alice@example.org").expect_err("is refused");
    let text = format!("{:#}", anyhow::Error::from(error));
    assert!(text.contains("password authentication failed") && !text.contains("wrong-one"), "{text}");
}

#[test]
fn users_in_mariadb() {
    let Some(database) = mariadb(TABLE) else { return };
    let dir = tempfile::tempdir().expect("made");
    let place = &database.place;
    let connect = |password: &str| {
        format!("driver = mysql\nconnect = host={place} dbname=mail user=vmail password={password}\n")
    };
    check_sql(&old(dir.path(), "sql", &format!("{}{QUERIES}", connect("secret"))));
    let wrong = old(dir.path(), "sql", &format!("{}{QUERIES}", connect("wrong-one")));
    let error = lookup(&wrong, "alice@example.org").expect_err("is refused");
    let text = format!("{:#}", anyhow::Error::from(error));
    assert!(text.contains("Access denied") && !text.contains("wrong-one"), "{text}");
}

#[test]
fn users_in_ldap() {
    let mut ldif =
        "dn: dc=example\nobjectClass: dcObject\nobjectClass: organization\no: x\ndc: example\n\n".to_owned();
    for n in 0..25 {
        ldif.push_str(&format!(
            "dn: uid=u{n},dc=example\nobjectClass: account\nobjectClass: posixAccount\nuid: u{n}\ncn: u{n}\n\
             uidNumber: {}\ngidNumber: 6000\nhomeDirectory: /home/u{n}\nuserPassword: {{SSHA}}gowDSxwzu8Bj8TRjYdeyGehde31v9dv8\n\n",
            7000 + n
        ));
    }
    let server = slapd(&ldif);
    let dir = tempfile::tempdir().expect("made");
    let place = &server.place;
    let common = format!("uris = {place}\ndn = cn=admin,dc=example\ndnpass = secret\nbase = dc=example\n");
    let file = format!(
        "{common}auth_bind = yes\nuser_attrs = homeDirectory=home,uidNumber=uid,gidNumber=gid,cn=quota_rule=*:bytes=%$,=mail=maildir:~/%{{ldap:uid}}\n\
         user_filter = (&(objectClass=posixAccount)(uid=%n))\npass_filter = (&(objectClass=posixAccount)(uid=%n))\n\
         iterate_attrs = uid=user\niterate_filter = (objectClass=posixAccount)\n"
    );
    let auth_bind = old(dir.path(), "ldap", &file);
    let text = format!(
        "ldap_uris = ldap://127.0.0.1:1 {place}\nldap_auth_dn = cn=admin,dc=example\nldap_auth_dn_password = secret\nldap_base = dc=example\n\
         passdb ldap {{\n filter = (uid=%{{user | username}})\n fields {{\n  password = %{{ldap:userPassword}}\n }}\n}}\n\
         userdb ldap {{\n filter = (uid=%{{user | username}})\n iterate_filter = (objectClass=posixAccount)\n \
         iterate_fields {{\n  user = %{{ldap:uid}}\n }}\n fields {{\n  home = %{{ldap:homeDirectory}}\n  uid = %{{ldap:uidNumber}}\n  gid = %{{ldap:gidNumber}}\n  \
         mail = maildir:~/%{{ldap:uid}}\n  quota_rule = *:bytes=%{{ldap:cn}}\n }}\n}}\n"
    );
    for settings in [auth_bind, new(dir.path(), &text)] {
        let user = lookup(&settings, "u3@x").expect("is there");
        assert_eq!(user.home.as_deref(), Some(Path::new("/home/u3")));
        assert_eq!(
            (user.uid, user.gid, user.extra["quota_rule"].as_str()),
            (Some(7003), Some(6000), "*:bytes=u3")
        );
        assert_eq!(user.mail.as_deref(), Some("maildir:~/u3"));
        for evil in ["*", "u*", "u3)(uid=u4", "u3)(|(uid=*", "\\2a"] {
            assert_eq!(lookup(&settings, evil).expect_err(evil).status(), 67, "{evil}");
        }
        // More than the server gives at once.
        assert_eq!(iterate(&settings).expect("lists").len(), 25);
        assert!(verify(&settings, "u3", "secret").expect("is checked"));
        assert!(!verify(&settings, "u3", "Secret").expect("is checked"));
        assert!(!verify(&settings, "u3", "").expect("is checked"));
        assert!(!verify(&settings, "nobody", "secret").expect("is checked"));
    }
    let bind_dn = format!("{file}auth_bind_userdn = uid=%n,dc=example\n");
    let settings = old(dir.path(), "ldap", &bind_dn);
    assert!(verify(&settings, "u3", "secret").expect("is checked"));
    assert!(!verify(&settings, "u3,dc=example", "secret").expect("is checked"));
    let wrong = old(dir.path(), "ldap", &file.replace("dnpass = secret", "dnpass = wrong-one"));
    let text = format!("{:#}", anyhow::Error::from(lookup(&wrong, "u3").expect_err("is refused")));
    assert!(!text.contains("wrong-one"), "{text}");
}

/// Every scheme that dsync takes, made by Dovecot itself.
#[test]
fn passwords_that_doveadm_makes_are_taken() {
    if !dsync_tests::dovecot::installed() {
        return;
    }
    let schemes = "ARGON2ID ARGON2I BLF-CRYPT SHA512-CRYPT SHA256-CRYPT CRYPT SSHA SSHA256 SSHA512 SHA SHA1 SHA256 SHA512 SMD5 LDAP-MD5 \
                   PLAIN-MD5 PBKDF2 PLAIN CLEARTEXT CLEAR SSHA.HEX SSHA256.B64 SHA512.HEX SHA256.HEX SHA1.B64 PLAIN.B64 PBKDF2.B64 BLF-CRYPT.HEX";
    for scheme in schemes.split_whitespace() {
        let mut command = std::process::Command::new("/usr/bin/doveadm");
        command.args(["-c", "/dev/null", "pw", "-s", scheme, "-p", "geheim"]);
        // Dovecot's own costs are much for a test.
        if scheme.contains("ARGON2") || scheme.starts_with("BLF") {
            command.args(["-r", "4"]);
        } else if scheme.ends_with("-CRYPT") {
            command.args(["-r", "1000"]);
        }
        let output = command.output().expect("doveadm runs");
        let made = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        assert!(
            made.starts_with(&format!("{{{scheme}}}")),
            "{scheme}: {made} {}",
            String::from_utf8_lossy(&output.stderr)
        );
        let secret = dsync_accounts::Secret::new(made);
        assert!(dsync_accounts::verify_secret(&secret, "geheim").expect(scheme), "{scheme}");
        assert!(!dsync_accounts::verify_secret(&secret, "Geheim").expect(scheme), "{scheme}");
    }
}

/// Asked for everything, or only where the configuration names drivers that dsync does not have.
#[test]
fn a_running_dovecot_answers_for_its_users() {
    use std::os::unix::fs::PermissionsExt;
    if !installed() {
        return;
    }
    let dir = tempfile::tempdir().expect("made");
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).expect("set");
    let dovecot = Dovecot::new(dir.path());
    dovecot.own(&dir.path().join("home"));
    let service = Service::start(&dovecot, dir.path(), "maildir:~/Maildir", "unused");
    let homes =
        [dir.path().join("home"), service.add_user("bob", "geheim"), service.add_user("ben", "geheim")];
    let base = service.base_dir().display().to_string();
    let settings = [
        format!("auth_socket_path = {base}/auth-userdb\n"),
        format!("base_dir = {base}\npassdb {{\n driver = pam\n}}\nuserdb {{\n driver = lua\n}}\n"),
    ];
    let mail = "mail_location = maildir:~/Maildir\nfirst_valid_uid = 1\n";
    let confs = settings.map(|text| new(dir.path(), &format!("{mail}{text}")));
    for settings in &confs {
        let alice = lookup(settings, "Alice").expect("is there");
        assert_eq!((alice.name.as_str(), alice.home.as_ref()), ("alice", Some(&homes[0])));
        assert!(alice.uid.is_some() && alice.gid.is_some());
        assert_eq!(lookup(settings, "eve").expect_err("is not there").status(), 67);
        assert_eq!(iterate(settings).expect("lists"), ["alice", "ben", "bob"]);
        for (user, password, right) in [
            ("alice", PASSWORD, true),
            ("bob", "geheim", true),
            ("bob", PASSWORD, false),
            ("bob", "", false),
            ("eve", "geheim", false),
        ] {
            assert_eq!(verify(settings, user, password).expect("answers"), right, "{user} {password}");
        }
    }
    for (home, name) in homes.iter().zip(["alice", "bob", "ben"]) {
        let text = format!("Subject: of {name}\n\nText.\n");
        dovecot.save(&format!("maildir:{}/Maildir", home.display()), "INBOX", &text);
    }
    let dsync = dir.path().join("dsync");
    fs::copy(programs().join("dsync"), &dsync).expect("copied");
    let backup = |users: &[&str], to: &str| {
        let mut command = dovecot.as_user(&dsync);
        let to = format!("maildir:{}/home/{to}/%u", dir.path().display());
        command.arg("-c").arg(dir.path().join("dovecot24.conf")).arg("backup").args(users).arg(to);
        let output = command.output().expect("runs");
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{users:?}: {text}");
        text
    };
    assert!(backup(&["-A"], "all").starts_with("3 users: 3 ok"));
    assert!(backup(&["-u", "b*"], "some").starts_with("2 users: 2 ok"));
    for (home, name) in homes.iter().zip(["alice", "bob", "ben"]) {
        let copy = |of: &str| Account::new(dir.path().join("home").join(of).join(name));
        assert_eq!(Account::new(home.join("Maildir")).view(), copy("all").view(), "{name}");
        assert_eq!(copy("some").root.exists(), name != "alice", "{name}");
    }
}

/// A user whose indexes are with his mail, by an empty field of a 2.4's userdb; to a 2.3 it is no setting. Where Dovecot has them is where we find the mail.
#[test]
fn an_empty_field_of_a_userdb_is_none_as_in_dovecot() {
    use std::os::unix::fs::PermissionsExt;
    if !installed() {
        return;
    }
    let dir = tempfile::tempdir().expect("made");
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).expect("set");
    let dovecot = Dovecot::new(dir.path());
    let home = dir.path().join("home");
    dovecot.own(&home);
    let location = format!("sdbox:{0}/mail:INDEX={0}/index", home.display());
    let service = Service::start(&dovecot, dir.path(), &location, "unused");
    service.set_extra_fields("userdb_mail_index_path=");
    let dsync = dir.path().join("dsync");
    fs::copy(programs().join("dsync"), &dsync).expect("copied");
    let run = |program: &Path, words: &[&str]| {
        let mut command = dovecot.as_user(program);
        command.arg("-c").arg(service.conf()).args(words).stdin(fs::File::open("/dev/null").expect("opened"));
        let output = command.output().expect("runs");
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success() && text.is_empty(), "{words:?}: {} {text}", output.status);
    };
    run(&program("doveadm"), &["save", "-u", "alice"]);
    run(&program("doveadm"), &["flags", "add", "-u", "alice", "$Kept", "mailbox", "INBOX"]);
    let index = home.join(if is_24() { "mail/mailboxes/INBOX/dbox-Mails" } else { "index/mailboxes/INBOX" });
    assert!(index.join("dovecot.index.log").exists(), "{}", index.display());
    let copy = home.join("copy");
    run(&dsync, &["backup", "-u", "alice", &format!("maildir:{}", copy.display())]);
    let view = dovecot.doveadm(&format!("maildir:{}", copy.display()), &["fetch", "flags", "all"]);
    assert!(view.contains("$Kept"), "{view}");
    assert_eq!(home.join("index").exists(), !is_24());
}
