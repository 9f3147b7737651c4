//! Who is let in: certificates, passwords; strange peers and floods are not.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Command;
use std::time::Duration;

use dsync_tests::programs::{Place, certificates, programs};

use super::{account, source};

#[test]
fn a_client_certificate_opens_its_users_mail_only() {
    let certs = certificates();
    let place = Place::new(&format!("ssl_ca = <{}/ca.pem", certs.display()));
    let _server = place.serve();
    let mail = account(&place, 3);
    let (cert, key) = (
        format!("ssl_client_cert=<{}/client.pem", certs.display()),
        format!("ssl_client_key=<{}/client.key", certs.display()),
    );
    let run = |user: &str| {
        place.run(&[
            "-o",
            "doveadm_password=",
            "-o",
            &cert,
            "-o",
            &key,
            "backup",
            "-u",
            user,
            "--source",
            &source(&mail),
            &place.tls(),
        ])
    };
    assert_eq!(run("alice"), (0, String::new()));
    let (status, text) = run("bob");
    assert!(status == 77 && text.contains("certificate is not for this user"), "{status} {text}");
}

#[test]
fn hashed_passwords_are_checked() {
    let mut child = Command::new(programs().join("dsync"))
        .arg("hash-password")
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .expect("starts");
    child.stdin.take().expect("piped").write_all(b"a secret for tests\n").expect("written");
    let output = child.wait_with_output().expect("ends");
    let hash = String::from_utf8(output.stdout).expect("text");
    assert!(hash.starts_with("{ARGON2ID}$argon2id$"), "{hash}");
    let place = Place::new(&format!("doveadm_password = {hash}"));
    let _server = place.serve();
    let mail = account(&place, 3);
    assert_eq!(place.run(&["backup", "--source", &source(&mail), &place.tls()]), (0, String::new()));
    let (status, _) =
        place.run(&["-o", "doveadm_password=no", "backup", "--source", &source(&mail), &place.tls()]);
    assert_eq!(status, 77);
}

#[test]
fn an_expired_certificate_is_refused() {
    let place = Place::new("");
    let ca_key = rcgen::KeyPair::generate().expect("made");
    let mut ca = rcgen::CertificateParams::new(Vec::<String>::new()).expect("made");
    ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let ca_cert = ca.self_signed(&ca_key).expect("made");
    let key = rcgen::KeyPair::generate().expect("made");
    let mut leaf = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).expect("made");
    leaf.not_before = rcgen::date_time_ymd(2020, 1, 1);
    leaf.not_after = rcgen::date_time_ymd(2021, 1, 1);
    let leaf = leaf.signed_by(&key, &rcgen::Issuer::new(ca, ca_key)).expect("made");
    for (name, text) in
        [("ca.pem", ca_cert.pem()), ("server.pem", leaf.pem()), ("server.key", key.serialize_pem())]
    {
        std::fs::write(place.path(name), text).expect("written");
    }
    let dir = place.dir.path().display();
    let conf = std::fs::read_to_string(place.path("server.conf")).expect("read");
    let conf = format!("{conf}ssl_cert = <{dir}/server.pem\nssl_key = <{dir}/server.key\n");
    std::fs::write(place.path("server.conf"), conf).expect("written");
    let _server = place.serve();
    let mail = account(&place, 1);
    let ca = format!("ssl_client_ca_file={dir}/ca.pem");
    let (status, text) = place.run(&["-o", &ca, "backup", "--source", &source(&mail), &place.tls()]);
    assert!(status == 77 && text.to_lowercase().contains("expired"), "{status} {text}");
}

#[test]
fn strange_peers_are_turned_away_and_the_server_lives() {
    let place = Place::new("");
    let server = place.serve();
    let mail = account(&place, 3);
    let long = vec![b'x'; 1 << 20];
    let mut huge = b"dsync\x00\x01\n".to_vec();
    huge.extend_from_slice(b"\xff\xff\xff\xff\xff\xff");
    let strange: &[&[u8]] = &[
        b"GET / HTTP/1.1\r\n\r\n",
        b"VERSION\tdoveadm-server\t1\t2\n",
        b"\x16\x03\x01\xff\xff garbage that is no TLS at all",
        b"dsync\x00\x01\n\x00",
        b"",
        b"\x00\x01\x02",
        &huge,
        &long,
    ];
    for bytes in strange {
        let mut stream = TcpStream::connect(("127.0.0.1", place.port)).expect("connects");
        stream.set_read_timeout(Some(Duration::from_secs(10))).expect("set");
        // The server may hang up while we still talk.
        let _ = stream.write_all(bytes);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        if bytes.starts_with(b"GET") {
            assert!(answer.starts_with(b"HTTP/1.0 400"), "{answer:?}");
        }
    }
    let (status, text) = place.run(&["backup", "--source", &source(&mail), &place.tls()]);
    assert_eq!((status, text.as_str()), (0, ""));
    server.wait_for("status=0");
}

#[test]
fn a_flood_is_held_off_and_the_server_lives() {
    let place = Place::new("dsync_max_connections_per_ip = 5");
    let server = place.serve();
    let mail = account(&place, 3);
    let flood: Vec<TcpStream> =
        (0..40).map(|_| TcpStream::connect(("127.0.0.1", place.port)).expect("connects")).collect();
    server.wait_for("dsync_max_connections_per_ip is reached");
    let (status, _) = place.run(&["backup", "--source", &source(&mail), &place.tls()]);
    assert!(status == 75 || status == 76, "{status}");
    drop(flood);
    let mut last = (1, String::new());
    for _ in 0..50 {
        // The server notices in its own time that they are gone.
        last = place.run(&["backup", "--source", &source(&mail), &place.tls()]);
        if last.0 == 0 {
            break;
        }
    }
    assert_eq!(last, (0, String::new()));
}
