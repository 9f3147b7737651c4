//! Tests of whole configurations: both syntaxes, errors with their place, Debian's files, any bytes.

use std::{fs, path::Path, path::PathBuf};

use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};

use super::*;
use crate::user::User;

fn settings(text: &str) -> Settings {
    Settings::parse(text).unwrap()
}

/// A directory that goes away with the value.
struct TempDir(PathBuf);

impl TempDir {
    fn new(name: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("dsync-conf-{}-{name}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        Self(dir)
    }

    fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn alice() -> User {
    User { home: Some("/home/alice".into()), ..User::named("alice@example.org") }
}

#[test]
fn defaults_are_dovecots() {
    let settings = Settings::defaults();
    assert_eq!(settings.listen().unwrap(), ["*", "::"]);
    assert_eq!(settings.doveadm_port().unwrap(), 12345);
    assert!(settings.doveadm_password().unwrap().is_none());
    assert_eq!(settings.ssl().unwrap(), Ssl::No);
    assert_eq!(settings.ssl_cert().unwrap(), None);
    assert!(!settings.ssl_verify_client_cert().unwrap());
    assert_eq!(settings.mail_fsync().unwrap(), Fsync::Optimized);
    assert_eq!(settings.max_connections().unwrap(), 256);
    assert_eq!(settings.max_connections_per_ip().unwrap(), 32);
    assert_eq!(settings.max_unauthenticated().unwrap(), 64);
    assert_eq!(settings.silence_secs().unwrap(), 600);
    assert_eq!(settings.dsync_remote_cmd(), "ssh -l%{login} %{host} dsync-server --stdio -u%u");
    assert_eq!(settings.mail_location(&alice()).unwrap(), None);
    assert_eq!(settings.file(), None);
}

#[test]
fn settings_are_read_and_the_last_one_wins() {
    let settings = settings(
        "listen = 127.0.0.1, ::1\ndoveadm_port = 1\ndoveadm_port = 0 # none\nmail_fsync = never\nssl = required\n\
         doveadm_password = \"a # b\"\nlong = one \\\n  two # three\ndsync_admin_certs = a, b c\nother = $long $no $6$x\n\
         namespace inbox {\n  separator = /\n}\nprotocol imap {\n mail_fsync = always\n}\n",
    );
    assert_eq!(settings.listen().unwrap(), ["127.0.0.1", "::1"]);
    assert_eq!(settings.doveadm_port().unwrap(), 12345);
    assert_eq!(settings.mail_fsync().unwrap(), Fsync::Never);
    assert_eq!(settings.ssl().unwrap(), Ssl::Required);
    assert_eq!(settings.doveadm_password().unwrap().unwrap().expose(), "a # b");
    assert_eq!(settings.text("long").as_deref(), Some("one two"));
    assert_eq!(settings.text("other").as_deref(), Some("one two $no $6$x"));
    assert_eq!(settings.dsync_admin_certs(), ["a", "b", "c"]);
    assert_eq!(settings.namespaces(&alice()).unwrap()[0].separator, Some('/'));
}

#[test]
fn a_wrong_value_names_its_line() {
    let text = "\n\n\n\n\n\ndoveadm_port = abc\nssl = perhaps\ndsync_silence_secs = 0\n";
    let settings = settings(text);
    assert_eq!(
        settings.doveadm_port().unwrap_err().to_string(),
        "/etc/dsync/dsync.conf: line 7: doveadm_port: \"abc\" is not a port number (1 to 65535)"
    );
    assert_eq!(settings.ssl().unwrap_err().status(), 78);
    assert!(settings.silence_secs().is_err());
    for (text, want) in [
        ("a = b\n}\n", "line 2: \"}\" closes nothing"),
        ("a = b\nsection x {\n\n", "line 2: section \"section\" is not closed"),
        ("word\n", "line 1: expected \"=\" or \"{\" after \"word\""),
        ("\n!include /nonexistent/file\n", "line 2: !include: /nonexistent/file"),
    ] {
        let error = Settings::parse(text).unwrap_err().to_string();
        assert_eq!(error, format!("/etc/dsync/dsync.conf: {want}"));
    }
}

#[test]
fn files_are_found_next_to_the_file_that_names_them() {
    let dir = TempDir::new("files");
    fs::create_dir_all(dir.join("conf.d")).unwrap();
    fs::write(
        dir.join("main.conf"),
        "!include conf.d/*.conf\n!include_try gone.conf\nssl_client_ca_file = <ca.pem\n",
    )
    .unwrap();
    fs::write(dir.join("conf.d/1.conf"), "mail_fsync = always\nssl_cert = <../cert.pem\nssl_key = <gone\n")
        .unwrap();
    fs::write(dir.join("conf.d/2.conf"), "mail_fsync = never\nssl_client_cert = x\n").unwrap();
    fs::write(dir.join("conf.d/3.ext"), "nonsense\n").unwrap();
    fs::write(dir.join("cert.pem"), "CERT\n").unwrap();
    fs::write(dir.join("ca.pem"), "CA\n").unwrap();
    let overrides = ["doveadm_port = 99".to_owned(), "mail_fsync=optimized".to_owned()];
    let settings = Settings::load(Some(&dir.join("main.conf")), &overrides).unwrap();
    assert_eq!(settings.mail_fsync().unwrap(), Fsync::Optimized);
    assert_eq!(settings.doveadm_port().unwrap(), 99);
    assert_eq!(settings.ssl().unwrap(), Ssl::Yes);
    assert_eq!(settings.ssl_cert().unwrap().as_deref(), Some(&b"CERT\n"[..]));
    assert_eq!(settings.ssl_client_ca().unwrap().as_deref(), Some(&b"CA\n"[..]));
    assert!(settings.ssl_key().unwrap_err().to_string().contains("1.conf: line 3: ssl_key: "));
    assert!(settings.ssl_client_cert().unwrap_err().to_string().contains("neither PEM nor"));
    let wrong = Settings::load(Some(&dir.join("main.conf")), &["doveadm_port=x".to_owned()]).unwrap();
    assert_eq!(
        wrong.doveadm_port().unwrap_err().to_string(),
        "-o: doveadm_port: \"x\" is not a port number (1 to 65535)"
    );
    assert!(Settings::load(Some(&dir.join("main.conf")), &["secret".to_owned()]).is_err());
    assert!(Settings::load(Some(&dir.join("gone.conf")), &[]).is_err());
}

#[test]
fn endless_inclusion_and_nesting_end() {
    let dir = TempDir::new("endless");
    fs::write(dir.join("self.conf"), "!include self.conf\n!include self.conf\n").unwrap();
    fs::write(dir.join("tree.conf"), "!include_try *.none\n!include_try self2.conf\n").unwrap();
    assert!(Settings::load(Some(&dir.join("self.conf")), &[]).is_err());
    assert!(Settings::load(Some(&dir.join("tree.conf")), &[]).is_ok());
    assert!(Settings::parse(&"a {\n".repeat(100)).is_err());
    assert!(Settings::load(Some(Path::new("/dev/zero")), &[]).is_err());
}

#[test]
fn mail_is_where_either_syntax_says() {
    for (text, want) in [
        (
            "mail_location = maildir:%h/Maildir:INBOX=/var/%d/%n",
            "maildir:/home/alice/Maildir:INBOX=/var/example.org/alice",
        ),
        ("mail_driver = maildir\nmail_path = ~/Maildir", "maildir:~/Maildir"),
        (
            "mail_driver = mdbox\nmail_path = %{home}/m\nmail_index_path = /i/%{user}\nmailbox_list_layout = fs\n\
             mail_inbox_path = /in\nmail_control_path = /c",
            "mdbox:/home/alice/m:INBOX=/in:INDEX=/i/alice@example.org:CONTROL=/c:LAYOUT=fs:FULLDIRNAME=dbox-Mails",
        ),
        ("mail_path = /m", "/m"),
        ("mail_location = a\nprotocol doveadm {\n mail_location = b\n}", "b"),
    ] {
        assert_eq!(settings(text).mail_location(&alice()).unwrap().as_deref(), Some(want), "{text}");
    }
    let own = User { mail: Some("maildir:/own/%u".to_owned()), ..alice() };
    assert_eq!(settings("mail_location = x").mail_location(&own).unwrap(), own.mail);
    let error = settings("mail_location = %h").mail_location(&User::named("bob")).unwrap_err();
    assert!(std::error::Error::source(&error).unwrap().to_string().contains("%h: user \"bob\" has no home"));
    assert!(settings("mail_driver = maildir").mail_location(&alice()).is_err());
}

#[test]
fn each_setting_of_2_4_has_its_word_in_a_location() {
    for (setting, want) in [
        ("mail_inbox_path = .", ":INBOX=~/m"),
        ("mail_inbox_path = in/box", ":INBOX=~/m/in/box"),
        ("mail_inbox_path = ~/in", ":INBOX=~/in"),
        ("mail_index_path = /i/%{user | domain}", ":INDEX=/i/example.org"),
        ("mail_index_path = MEMORY", ":INDEX=MEMORY"),
        ("mail_cache_path = /c", ":INDEXCACHE=/c"),
        ("mail_control_path = /a:b", ":CONTROL=/a::b"),
        ("mail_alt_path = ~/alt", ":ALT=~/alt"),
        ("mail_alt_check = no", ":ALTNOCHECK"),
        ("mail_alt_check = yes", ""),
        ("mail_volatile_path = /run/x", ":VOLATILEDIR=/run/x"),
        ("mailbox_list_layout = index", ":LAYOUT=index"),
        ("mailbox_subscriptions_filename = s", ":SUBSCRIPTIONS=s"),
        ("mailbox_directory_name = m", ":FULLDIRNAME=m"),
        ("mailbox_directory_name = m\nmailbox_directory_name_legacy = yes", ":DIRNAME=m"),
        ("mailbox_root_directory_name = boxes", ":MAILBOXDIR=boxes"),
        ("mailbox_list_index_prefix = li", ":LISTINDEX=li"),
        ("mailbox_list_utf8 = yes", ":UTF-8"),
        ("mailbox_list_utf8 = no", ""),
    ] {
        let text = format!("mail_driver = maildir\nmail_path = ~/m\n{setting}");
        let location = settings(&text).mail_location(&alice()).unwrap();
        assert_eq!(location, Some(format!("maildir:~/m{want}")), "{setting}");
    }
    for (text, want) in [
        ("mail_driver = sdbox\nmail_path = ~/m", "sdbox:~/m"),
        (
            "mail_driver = mdbox\nmail_path = ~/m\nmail_index_path = /i",
            "mdbox:~/m:INDEX=/i:FULLDIRNAME=dbox-Mails",
        ),
        (
            "mail_driver = sdbox\nmail_path = ~/m\nmail_control_path = /c\nmailbox_directory_name_legacy = yes",
            "sdbox:~/m:CONTROL=/c:DIRNAME=dbox-Mails",
        ),
        ("mail_driver = auto\nmail_path = mail", "auto:mail"),
        ("mail_path = /a:b\nmail_index_path = /c:", "/a::b:INDEX=/c::"),
    ] {
        assert_eq!(settings(text).mail_location(&alice()).unwrap().as_deref(), Some(want), "{text}");
    }
    let error = settings("mail_path = /m\nmailbox_list_utf8 = maybe").mail_location(&alice()).unwrap_err();
    assert_eq!(error.status(), 78);
}

/// Its default changed in 2.4.2, and a configuration does not say which Dovecot reads it.
#[test]
fn where_indexes_of_a_2_4_1_are_is_asked() {
    let told = |version: &str, more: &str| {
        let text = format!("dovecot_config_version = {version}\nmail_driver = sdbox\nmail_path = /m\n{more}");
        settings(&text).mail_location(&alice()).map(Option::unwrap_or_default)
    };
    let apart = "mail_index_path = /i\n";
    for version in ["2.4.0", "2.4.1"] {
        let error = told(version, apart).unwrap_err();
        assert_eq!(error.status(), 78);
        assert!(error.to_string().contains("mailbox_directory_name_legacy"), "{error}");
        assert_eq!(told(version, "").unwrap(), "sdbox:/m");
        for (value, want) in [("yes", "DIRNAME"), ("no", "FULLDIRNAME")] {
            let more = format!("{apart}mailbox_directory_name_legacy = {value}\n");
            assert_eq!(told(version, &more).unwrap(), format!("sdbox:/m:INDEX=/i:{want}=dbox-Mails"));
        }
    }
    for version in ["2.4.2", "2.4.4", "3.0.0", "2.4.10"] {
        assert_eq!(told(version, apart).unwrap(), "sdbox:/m:INDEX=/i:FULLDIRNAME=dbox-Mails", "{version}");
    }
}

#[test]
fn debians_configuration_just_works() {
    let path = Path::new("/etc/dovecot/dovecot.conf");
    if !path.exists() {
        println!("skipped: Dovecot is not installed");
        return;
    }
    let settings = Settings::load(Some(path), &[]).unwrap();
    let user = alice();
    let location = settings.mail_location(&user).unwrap();
    assert!(settings.ssl().is_ok() && settings.listen().is_ok() && settings.doveadm_port().is_ok());
    // A changed configuration need not say what Debian's says, only what Dovecot reads from it.
    let doveconf = std::process::Command::new("doveconf").args(["-h", "mail_location"]).output();
    let told =
        doveconf.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned()).unwrap_or_default();
    if told.is_empty() {
        println!("skipped: doveconf does not tell mail_location");
    } else {
        let vars = crate::variables::Vars::of(&user);
        assert_eq!(location, crate::variables::expand(&told, &vars).ok());
    }
    assert!(crate::lookup(&settings, "root").is_ok());
    let refused = crate::verify(&settings, "root", "x");
    assert!(matches!(refused, Err(crate::UserError::Unsupported(_))), "{refused:?}");
}

#[test]
fn no_bytes_make_it_panic() {
    let seeds = [
        "a = b\nnamespace \"x y\" {\n prefix = \\\n  %h\n}\n!include_try x*[a-]?\nssl_cert = </x\n$a = $a 'q\\'\n",
        "doveadm_port = 0\nuserdb static {\n fields {\n home = %1.2Lu%{user | lower}\n}\n}\nlisten = é, #\n",
    ];
    let mut random = StdRng::seed_from_u64(7);
    for round in 0..4000 {
        let mut bytes = seeds[round % seeds.len()].as_bytes().to_vec();
        for _ in 0..random.random_range(1..8) {
            let at = random.random_range(0..bytes.len());
            match random.random_range(0..3) {
                0 => bytes[at] = random.random(),
                1 => bytes.truncate(at + 1),
                _ => bytes.insert(at, b"{}=#\\\"'%$<!\n\0 "[random.random_range(0..14)]),
            }
        }
        let text = String::from_utf8_lossy(&bytes);
        // Included files are not read: the text may name any.
        if text.contains("!include ") || text.contains("$ENV") {
            continue;
        }
        if let Ok(settings) = Settings::parse(&text) {
            let _ = (
                settings.doveadm_port(),
                settings.listen(),
                settings.namespaces(&alice()),
                settings.ssl_cert(),
            );
            let _ = settings.mail_location(&alice());
            let _ = crate::lookup(&settings, "alice@x");
        }
    }
}

#[test]
fn the_directory_of_attachments_is_expanded() {
    let place = |text: &str| settings(text).mail_attachment_dir(&alice()).map_err(|error| error.to_string());
    assert_eq!(place(""), Ok(None));
    assert_eq!(place("mail_attachment_dir = ~/att\n"), Ok(Some("/home/alice/att".into())));
    let user = "mail_ext_attachment_path = /srv/att/%{user}\n";
    assert_eq!(place(user), Ok(Some("/srv/att/alice@example.org".into())));
    let both = format!("{user}mail_attachment_dir = %h/att/%n\n");
    assert_eq!(place(&both), Ok(Some("/home/alice/att/alice".into())));
    assert!(place("mail_attachment_dir = att\n").is_err_and(|error| error.contains("no absolute path")));
}

#[test]
fn mdbox_files_rotate_as_configured() {
    let rotation = |text: &str| {
        let settings = settings(text);
        let size = settings.mdbox_rotate_size().map_err(|error| error.to_string())?;
        Ok((size, settings.mdbox_rotate_interval().map_err(|error: ConfError| error.to_string())?))
    };
    assert_eq!(rotation(""), Ok((None, 0)));
    assert_eq!(rotation("mdbox_rotate_size = 2M\nmdbox_rotate_interval = 1d\n"), Ok((Some(2 << 20), 86_400)));
    assert!(rotation("mdbox_rotate_size = much\n").is_err_and(|error: String| error.contains("such as 10M")));
}

#[test]
fn encryption_is_seen_in_the_settings() {
    let encrypts = |text: &str| settings(text).encrypts().is_some();
    assert!(encrypts("mail_plugins = zlib mail_crypt\n"));
    assert!(encrypts("mail_plugins {\n  zlib = yes\n  mail_crypt = yes\n}\n"));
    for text in ["", "mail_plugins = zlib\n", "mail_plugins {\n  mail_crypt = no\n}\n"] {
        assert!(!encrypts(text), "{text}");
    }
}

#[test]
fn the_dict_of_attributes_is_expanded() {
    let dict = |text: &str| settings(text).mail_attribute_dict(&alice()).map_err(|error| error.to_string());
    assert_eq!(dict(""), Ok(None));
    assert_eq!(dict("mail_attribute_dict =\n"), Ok(None));
    let file = "mail_attribute_dict = file:%h/Maildir/dovecot-attributes\n";
    assert_eq!(dict(file), Ok(Some("file:/home/alice/Maildir/dovecot-attributes".into())));
    assert_eq!(dict("mail_attribute_dict = file:~/a\n"), Ok(Some("file:/home/alice/a".into())));
    assert_eq!(dict("mail_attribute_dict = proxy::x/%n\n"), Ok(Some("proxy::x/alice".into())));
    // As Dovecot 2.4 writes it, in each of its ways.
    for block in [
        "dict file {\n path = %{home}/a\n }",
        "dict mine {\n driver = file\n path = ~/a\n }",
        "dict_driver = file\n dict_file_path = %{home}/a",
        "dict_driver = file\n dict_file {\n path = ~/a\n }",
    ] {
        let text = format!("mail_attribute {{\n {block}\n}}\n");
        assert_eq!(dict(&text), Ok(Some("file:/home/alice/a".into())), "{text}");
        let printed = settings(&text).printed(crate::Print { non_default: true, secrets: false }).join("\n");
        assert_eq!(dict(&printed), dict(&text), "{printed}");
        let both = format!("mail_attribute_dict = file:/b\n{text}");
        assert_eq!(dict(&both), Ok(Some("file:/b".into())));
    }
    let proxy = "mail_attribute {\n dict proxy {\n name = metadata\n }\n}\n";
    assert_eq!(dict(proxy), Ok(Some("proxy".into())));
    assert!(dict("mail_attribute {\n dict file {\n }\n}\n").is_err_and(|error| error.contains("no path")));
    assert_eq!(dict("mail_attribute {\n}\n"), Ok(None));
}

#[test]
fn locks_of_mbox_files_are_as_set() {
    let locks = |text: &str| settings(text).mbox_locks().map_err(|error| error.to_string());
    assert_eq!(locks(""), Ok(crate::MboxLocks::default()));
    let text = "mbox_write_locks = dotlock fcntl\nmbox_lock_timeout = 1 mins\n";
    let found = locks(text).unwrap();
    assert_eq!((found.write.as_deref(), found.read), (Some("dotlock fcntl"), None));
    assert_eq!(found.timeout, Some(std::time::Duration::from_secs(60)));
    for bad in ["mbox_read_locks = posix\n", "mbox_lock_timeout = soon\n"] {
        assert!(locks(bad).is_err(), "{bad}");
    }
}

/// A user of a 2.4 whose mail is elsewhere: not where the configuration says, which a mirror would empty or fill for nothing.
#[test]
fn a_userdb_says_where_mail_is_in_the_words_of_2_4() {
    let field = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let mut carol = User::named("carol");
    carol
        .set_found(&[field("mail_path", "/big/%{user}"), field("mail_driver", "mdbox"), field("home", "/h")])
        .unwrap();
    let text = "mail_driver = sdbox\nmail_path = ~/mail\n";
    let told = |settings: Settings, user: &User| settings.mail_location(user).unwrap().unwrap();
    assert_eq!(told(settings(text), &carol), "mdbox:/big/carol");
    assert_eq!(told(settings(text), &User::named("bob")), "sdbox:~/mail");
    let overrides = ["mail_driver=sdbox".to_owned(), "mail_path=/over".to_owned()];
    assert_eq!(
        told(Settings::load(Some(Path::new("/dev/null")), &overrides).unwrap(), &carol),
        "sdbox:/over"
    );
}

/// What a user does not have, whatever the others have: his indexes lie with his mail, he has no replica.
#[test]
fn an_empty_field_of_a_userdb_is_none() {
    let text = "mail_driver = sdbox\nmail_path = ~/mail\nmail_index_path = /index/%{user}\nmail_ext_attachment_path = /parts\n\
        mail_attribute_dict = file:/attributes\nplugin {\n mail_replica = tcp:other\n}\n";
    let conf = settings(text);
    let location = |user: &User| conf.mail_location(user).unwrap().unwrap();
    let bob = User::named("bob");
    assert_eq!(location(&bob), "sdbox:~/mail:INDEX=/index/bob:FULLDIRNAME=dbox-Mails");
    let names = [
        "mail",
        "home",
        "uid",
        "mail_index_path",
        "mail_ext_attachment_path",
        "mail_attribute_dict",
        "mail_replica",
    ];
    let fields = names.map(|name| (name.to_owned(), String::new()));
    let (mut found, mut set) =
        (User { uid: Some(7), ..User::named("carol") }, User { uid: Some(7), ..User::named("carol") });
    found.set_found(&fields).unwrap();
    set.set_fields(&fields).unwrap();
    for carol in [found, set] {
        assert_eq!(location(&carol), "sdbox:~/mail");
        assert_eq!(conf.mail_attachment_dir(&carol).unwrap(), None);
        assert_eq!(conf.mail_attribute_dict(&carol).unwrap(), None);
        assert_eq!(conf.mail_replica(&carol).unwrap(), None);
        assert_eq!((carol.uid, carol.home, carol.mail), (Some(7), None, None));
    }
    assert!(conf.mail_attachment_dir(&bob).unwrap().is_some() && conf.mail_replica(&bob).unwrap().is_some());
    // -o goes before that, too.
    let overridden = Settings::load(
        Some(Path::new("/dev/null")),
        &["mail_path=/m".to_owned(), "mail_index_path=/i".to_owned()],
    );
    let mut carol = User::named("carol");
    carol.set_fields(&fields).unwrap();
    assert_eq!(overridden.unwrap().mail_location(&carol).unwrap().as_deref(), Some("/m:INDEX=/i"));
}
