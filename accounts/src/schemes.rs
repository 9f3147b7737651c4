//! Password schemes: `{SCHEME}hash` as `doveadm pw` writes it.

use argon2::{Algorithm, Argon2, Params, Version};
use base64::{
    Engine as _, alphabet,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use md5::Md5;
use sha_crypt::{PasswordHashRef, PasswordVerifier as _, ShaCrypt};
use sha1::Sha1;
use sha2::{Digest, Sha256, Sha512};
use subtle::ConstantTimeEq as _;
use yescrypt::Yescrypt;
use zeroize::Zeroizing;

use crate::{md5_crypt, user::UserError};

/// Longest password that is looked at: hashing time grows with it.
const PASSWORD_BYTES_MAX: usize = 1024;
/// Most memory of one Argon2 or yescrypt hash, KiB.
const ARGON2_KIB_MAX: u32 = 1 << 20;
/// Most passes of one Argon2 hash.
const ARGON2_PASSES_MAX: u32 = 1000;
/// Most rounds of SHA-crypt and PBKDF2.
const ROUNDS_MAX: u32 = 10_000_000;
/// Highest cost of bcrypt: each step doubles the time.
const BCRYPT_COST_MAX: u32 = 18;

/// 32 bytes, six bits a character.
const YESCRYPT_CHARACTERS: usize = 43;

/// Base64 with or without its padding.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new()
        .with_encode_padding(false)
        .with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Hashes a password as `{ARGON2ID}$argon2id$...` with a new random salt.
pub fn hash_password(password: &str) -> Result<String, UserError> {
    if password.len() > PASSWORD_BYTES_MAX {
        return Err(UserError::Invalid(format!("password is longer than {PASSWORD_BYTES_MAX} bytes")));
    }
    let salt: [u8; 16] = rand::random();
    let mut out = [0; 32];
    argon2(Algorithm::Argon2id, Version::V0x13, [65536, 3, 1], password, &salt, &mut out)?;
    let (salt, hash) = (BASE64.encode(salt), BASE64.encode(out));
    Ok(format!("{{ARGON2ID}}$argon2id$v=19$m=65536,t=3,p=1${salt}${hash}"))
}

/// Checks a password against `{SCHEME}hash`, or against a bare hash of scheme `default`.
///
/// A malformed hash and a scheme that is not supported are errors, which never quote the hash.
pub(crate) fn verify(stored: &str, default: &str, password: &str) -> Result<bool, UserError> {
    let prefixed = stored.strip_prefix('{').and_then(|rest| rest.split_once('}'));
    let (scheme, hash) = prefixed.unwrap_or((default, stored));
    if password.len() > PASSWORD_BYTES_MAX || password.contains('\0') {
        return Ok(false);
    }
    let scheme = scheme.to_ascii_uppercase();
    let (name, encoding) = match scheme.split_once('.') {
        Some((name, "HEX")) => (name, Encoding::Hex),
        Some((name, "B64" | "BASE64")) => (name, Encoding::Base64),
        Some(_) => return Err(unsupported(&scheme)),
        None => (scheme.as_str(), Encoding::Default),
    };
    let bytes = || decode(hash, encoding, name).ok_or_else(|| malformed(&scheme));
    let text = || match encoding {
        Encoding::Default => Ok(Zeroizing::new(hash.to_owned())),
        _ => String::from_utf8(bytes()?).map(Zeroizing::new).map_err(|_| malformed(&scheme)),
    };
    match name {
        "PLAIN" | "CLEARTEXT" | "CLEAR" => Ok(same(text()?.as_bytes(), password.as_bytes())),
        "ARGON2ID" | "ARGON2I" => check_argon2(&text()?, password, &scheme),
        "CRYPT" | "SHA512-CRYPT" | "SHA256-CRYPT" | "BLF-CRYPT" | "MD5-CRYPT" => {
            check_crypt(&text()?, password, &scheme)
        }
        "PBKDF2" => check_pbkdf2(&text()?, password, &scheme),
        "SHA" | "SHA1" => digest::<Sha1>(&bytes()?, false, password, &scheme),
        "SHA256" => digest::<Sha256>(&bytes()?, false, password, &scheme),
        "SHA512" => digest::<Sha512>(&bytes()?, false, password, &scheme),
        // Dovecot's name for both.
        "MD5" if hash.starts_with("$1$") => check_crypt(&text()?, password, &scheme),
        "PLAIN-MD5" | "LDAP-MD5" | "MD5" => digest::<Md5>(&bytes()?, false, password, &scheme),
        "SSHA" => digest::<Sha1>(&bytes()?, true, password, &scheme),
        "SSHA256" => digest::<Sha256>(&bytes()?, true, password, &scheme),
        "SSHA512" => digest::<Sha512>(&bytes()?, true, password, &scheme),
        "SMD5" => digest::<Md5>(&bytes()?, true, password, &scheme),
        _ => Err(unsupported(&scheme)),
    }
}

#[derive(Clone, Copy)]
enum Encoding {
    Default,
    Hex,
    Base64,
}

fn unsupported(scheme: &str) -> UserError {
    let scheme: String = scheme.chars().take(32).collect();
    UserError::Unsupported(format!("password scheme {scheme:?} is not supported by dsync"))
}

fn malformed(scheme: &str) -> UserError {
    UserError::Invalid(format!("a stored password is not a {scheme} hash"))
}

fn excessive(scheme: &str) -> UserError {
    UserError::Unsupported(format!(
        "a stored {scheme} password asks for more memory or time than dsync gives"
    ))
}

/// Compares without telling by the time where, or whether in length, the two differ.
fn same(a: &[u8], b: &[u8]) -> bool {
    Sha256::digest(a).ct_eq(&Sha256::digest(b)).into()
}

/// Decodes hex or base64; a plain digest without a suffix is whichever its length says, as in Dovecot.
fn decode(text: &str, encoding: Encoding, name: &str) -> Option<Vec<u8>> {
    let digits = match name {
        "PLAIN-MD5" | "LDAP-MD5" | "MD5" => 32,
        "SHA" | "SHA1" => 40,
        "SHA256" => 64,
        "SHA512" => 128,
        _ => 0,
    };
    let hex = match encoding {
        Encoding::Hex => true,
        Encoding::Base64 => false,
        Encoding::Default => text.len() == digits,
    };
    if hex { from_hex(text) } else { BASE64.decode(text).ok() }
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: u8| (byte as char).to_digit(16);
    let (pairs, []) = text.as_bytes().as_chunks::<2>() else { return None };
    pairs.iter().map(|&[high, low]| u8::try_from(digit(high)? << 4 | digit(low)?).ok()).collect()
}

/// Checks `digest(password salt)`, the salt following the digest in `stored`.
fn digest<D: Digest>(stored: &[u8], salted: bool, password: &str, scheme: &str) -> Result<bool, UserError> {
    let len = <D as Digest>::output_size();
    if stored.len() < len || (stored.len() > len) != salted {
        return Err(malformed(scheme));
    }
    let (want, salt) = stored.split_at(len);
    let got = D::new().chain_update(password.as_bytes()).chain_update(salt).finalize();
    Ok(got.as_slice().ct_eq(want).into())
}

fn argon2(
    algorithm: Algorithm,
    version: Version,
    [memory, passes, lanes]: [u32; 3],
    password: &str,
    salt: &[u8],
    out: &mut [u8],
) -> Result<(), UserError> {
    let error = |error: argon2::Error| UserError::Invalid(format!("a stored ARGON2 password: {error}"));
    let params = Params::new(memory, passes, lanes, Some(out.len())).map_err(error)?;
    Argon2::new(algorithm, version, params).hash_password_into(password.as_bytes(), salt, out).map_err(error)
}

/// Checks `$argon2id$v=19$m=65536,t=3,p=1$salt$hash`.
fn check_argon2(text: &str, password: &str, scheme: &str) -> Result<bool, UserError> {
    let bad = || malformed(scheme);
    let mut parts = text.strip_prefix('$').ok_or_else(bad)?.split('$').peekable();
    let algorithm = match parts.next() {
        Some("argon2id") => Algorithm::Argon2id,
        Some("argon2i") => Algorithm::Argon2i,
        _ => return Err(bad()),
    };
    let version = match parts.next_if(|part| part.starts_with("v=")) {
        Some("v=19") => Version::V0x13,
        Some("v=16") | None => Version::V0x10,
        Some(_) => return Err(bad()),
    };
    let (Some(costs), Some(salt), Some(hash), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(bad());
    };
    let mut cost = [0; 3];
    for pair in costs.split(',') {
        let (key, number) = pair.split_once('=').ok_or_else(bad)?;
        let at = ["m", "t", "p"].iter().position(|name| *name == key).ok_or_else(bad)?;
        cost[at] = number.parse().map_err(|_| bad())?;
    }
    if cost[0] > ARGON2_KIB_MAX || cost[1] > ARGON2_PASSES_MAX || cost[2] > 255 {
        return Err(excessive(scheme));
    }
    let salt = BASE64.decode(salt).map_err(|_| bad())?;
    let want = BASE64.decode(hash).map_err(|_| bad())?;
    if !(12..=512).contains(&want.len()) {
        return Err(bad());
    }
    let mut got = vec![0; want.len()];
    argon2(algorithm, version, cost, password, &salt, &mut got)?;
    Ok(got.ct_eq(&want).into())
}

/// Checks what crypt(3) makes: yescrypt, SHA-512, SHA-256, bcrypt and MD5. The 13 characters of DES are refused: they say nothing of what
/// follows the eighth character of a password, and no crate that is kept up reads them.
fn check_crypt(text: &str, password: &str, scheme: &str) -> Result<bool, UserError> {
    let bad = || malformed(scheme);
    let mut parts = text.split('$').skip(1);
    let (kind, second) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    match kind {
        "5" | "6" => {
            if let Some(rounds) = second.strip_prefix("rounds=") {
                let rounds: u32 = rounds.parse().map_err(|_| bad())?;
                if rounds > ROUNDS_MAX {
                    return Err(excessive(scheme));
                }
            }
            let hash = PasswordHashRef::new(text).map_err(|_| bad())?;
            match ShaCrypt::default().verify_password(password.as_bytes(), hash) {
                Ok(()) => Ok(true),
                Err(sha_crypt::password_hash::Error::PasswordInvalid) => Ok(false),
                Err(_) => Err(bad()),
            }
        }
        "2a" | "2b" | "2x" | "2y" => {
            if second.parse::<u32>().map_err(|_| bad())? > BCRYPT_COST_MAX {
                return Err(excessive(scheme));
            }
            bcrypt::verify(password, text).map_err(|_| bad())
        }
        "1" => md5_crypt::verify(text, password).ok_or_else(bad),
        "y" => check_yescrypt(text, second, password, scheme),
        _ if text.len() == 13 && !text.contains('$') => Err(unsupported("DES-CRYPT")),
        _ => Err(bad()),
    }
}

/// Checks `$y$params$salt$hash`, Debian's since 11. Only what crypt(3) makes itself: flags, N and r.
fn check_yescrypt(text: &str, params: &str, password: &str, scheme: &str) -> Result<bool, UserError> {
    let bad = || malformed(scheme);
    let hash = text.rsplit('$').next().unwrap_or_default();
    if hash.len() != YESCRYPT_CHARACTERS || params.len() > 4 {
        return Err(bad());
    }
    let costs: yescrypt::Params = params.parse().map_err(|_| bad())?;
    if costs.n().saturating_mul(u64::from(costs.r())) / 8 > ARGON2_KIB_MAX.into() {
        return Err(excessive(scheme));
    }
    match Yescrypt::default().verify_password(password.as_bytes(), text) {
        Ok(()) => Ok(true),
        Err(yescrypt::password_hash::Error::PasswordInvalid) => Ok(false),
        Err(_) => Err(bad()),
    }
}

/// Checks Dovecot's `$1$salt$rounds$hex`: HMAC-SHA1, the salt as its text.
fn check_pbkdf2(text: &str, password: &str, scheme: &str) -> Result<bool, UserError> {
    let bad = || malformed(scheme);
    let parts: Vec<&str> = text.split('$').collect();
    let &["", "1", salt, rounds, hash] = parts.as_slice() else { return Err(bad()) };
    let rounds: u32 = rounds.parse().map_err(|_| bad())?;
    if rounds > ROUNDS_MAX {
        return Err(excessive(scheme));
    }
    let want = from_hex(hash).filter(|want| want.len() == 20 && rounds > 0).ok_or_else(bad)?;
    let mut got = [0; 20];
    pbkdf2::pbkdf2_hmac::<Sha1>(password.as_bytes(), salt.as_bytes(), rounds, &mut got);
    Ok(got.as_slice().ct_eq(&want).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Made by `doveadm pw -s SCHEME -p secret` of Dovecot 2.3.19.
    const VECTORS: &[&str] = &[
        "{ARGON2ID}$argon2id$v=19$m=65536,t=3,p=1$FrUlMatEd765uGQxZLN+jQ$KgjAtDszRbYeCOdyXZDbxTnO/EsOaxUAR4fhezXOY+w",
        "{ARGON2I}$argon2i$v=19$m=32768,t=4,p=1$j+2tTo3lvhZxoMwfSE4lkw$iLBzqf+WnsrKYkKH/y6EtqVfaFL4lF7ai18z6R1oaGY",
        "{SHA512-CRYPT}$6$XJfOGR8ERBnUP5s6$cPTTOjSos9sM/q4.IZBpIM8BZ2YkjLcf7ZucffFmVArSC4LlaZpOyeL2MioHYjL9POtvdhqSLdIoQWe42Tv9O.",
        "{SHA256-CRYPT}$5$qsSdi61RvuT.Ob2N$MPXgzHKa.sQ0cpA8h4emD8GELOSIy44KHrfb8nXgCC1",
        "{BLF-CRYPT}$2y$05$1UxyAzv.9xEPrzyElhn3/.41HLSdptZBN37kYVx/lS01dLBtjhWES",
        "{CRYPT}$2y$05$hBH3DVsc2OKsCA5HW0Dc/uCrWQ0j65Rzex4J7jLcL0WwXwObI0lJi",
        "{SSHA}gowDSxwzu8Bj8TRjYdeyGehde31v9dv8",
        "{SSHA256}Jhyccd3kdfFegi8m0S36vGU0yvfwZavM3KiIbTk4qrFU/CY2",
        "{SSHA512}GmE9xedRNfMWiVsO4ozuUBtYgkzdHYnspT+dQuYBWe+Rn54sC6+5uBUCpaxveMITLLhyOPl/sg2hiOkE3bNFSNMTDHo=",
        "{SHA}5en6G6MezRroT3XKqkdPOmY/BfQ=",
        "{SHA1}5en6G6MezRroT3XKqkdPOmY/BfQ=",
        "{SHA256}K7gNU3sdo+OL0wNhqoVWhr3g6s1xYv72ol/pe/Unols=",
        "{SHA512}vSsar3708Jvp9Szi2NWZZ02Bqp1qRCFpbcTZPdBhnWgs5WtNZKnvCXdhztmeD2cmW192CF5bDufKRpayrW/isg==",
        "{SMD5}N1+q11HXrHVyb9YRPJw0TdcL8NA=",
        "{LDAP-MD5}Xr4ilOzQ4PCOq3aQ0qbuaQ==",
        "{PLAIN-MD5}5ebe2294ecd0e0f08eab7690d2a6ee69",
        "{PBKDF2}$1$sjDruPJPXHX2imBX$5000$053f4147632fa21cfe15ff9faecd6648a9e7d54c",
        "{PLAIN}secret",
        "{CLEARTEXT}secret",
        "{SSHA.HEX}d610c80e760ecba48ae3bb0c4c88d48f3a131474e03dee1f",
        "{SSHA512.HEX}1f672fb902a9c56838d81e6eb45b884b813135135edc1296d4315da88afc49e18732c1a997f59994a9fd2ea7d5042117b994d4f3cf838a6db0b1cc3097bd2d6b547ed582",
        "{SHA256.HEX}2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b",
        "{SHA256.B64}K7gNU3sdo+OL0wNhqoVWhr3g6s1xYv72ol/pe/Unols=",
        "{PLAIN-MD5.B64}Xr4ilOzQ4PCOq3aQ0qbuaQ==",
        "{PLAIN.B64}c2VjcmV0",
        "{PLAIN.HEX}736563726574",
        "{SHA512-CRYPT.B64}JDYkMUlKdzFHeS40NVdUV3psMCRFYkE4cjZqblhFQWlQZUw4NWZWQkxBTENWRy5ackJ2d0c3a1A4a20uL0w1M3B5cjR6Z1NabVd5aS5KZ0lqOXN5Vm13Ui9obFN4SUZSQy8ueXdETWluMA==",
        "{SMD5.HEX}7c957145feb7f4d5d576b651caa50f349d8d7a2d",
        "{SHA512-CRYPT}$6$rounds=1000$n0c3ua2HG1Ap4vUO$Nh8rK3kLlYY3y7J90AwuKdNksrvcFo8iIRhruqH3qjJrlN79JS541P3JHTowidscPmeXgICFsNDSBN9UQrfjx0",
        "{SHA256-CRYPT}$5$rounds=1000$D.5me6ChyYuPMvoJ$7bhZQIldePcPa0G21UUnSiNIiJIyJIpcxafUIdrncJ4",
        "{SHA256}2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b",
        "$2y$05$1UxyAzv.9xEPrzyElhn3/.41HLSdptZBN37kYVx/lS01dLBtjhWES",
        "{MD5-CRYPT}$1$UQBH1NK/$TNAXYzdZYf6.Al7D60x5E/",
        "{MD5}$1$UQBH1NK/$TNAXYzdZYf6.Al7D60x5E/",
        "{CRYPT}$1$UQBH1NK/$TNAXYzdZYf6.Al7D60x5E/",
        "$1$UQBH1NK/$TNAXYzdZYf6.Al7D60x5E/",
        // By crypt(3) of Debian 12: `doveadm pw` makes none, and Dovecot accepts it.
        "{CRYPT}$y$j9T$F5Jx5fExrKuPp53xLKQ..1$GmcwIgvdUC9qLWcKCi6gklUa1dM3ziD43YxYNURLKy0",
    ];

    #[test]
    fn dovecots_hashes_verify() {
        for stored in VECTORS {
            assert!(verify(stored, "CRYPT", "secret").unwrap(), "{stored}");
            assert!(!verify(stored, "CRYPT", "Secret").unwrap(), "{stored}");
            assert!(!verify(stored, "CRYPT", "").unwrap(), "{stored}");
        }
    }

    #[test]
    fn a_new_hash_verifies() {
        let stored = hash_password("pässword").unwrap();
        assert!(stored.starts_with("{ARGON2ID}$argon2id$v=19$m=65536,t=3,p=1$"));
        assert!(verify(&stored, "PLAIN", "pässword").unwrap());
        assert_ne!(stored, hash_password("pässword").unwrap());
    }

    #[test]
    fn other_schemes_are_refused_by_name() {
        for (stored, name) in [
            ("R2Gf6pr6tcnrM", "DES-CRYPT"),
            ("{CRAM-MD5}cd3b", "CRAM-MD5"),
            ("{PLAIN.ROT13}x", "PLAIN.ROT13"),
        ] {
            let error = verify(stored, "CRYPT", "secret").unwrap_err();
            assert_eq!(error.status(), 78);
            assert!(error.to_string().contains(name), "{error}");
        }
    }

    #[test]
    fn costly_hashes_are_refused() {
        for stored in [
            "{ARGON2ID}$argon2id$v=19$m=1048577,t=3,p=1$F/mYEMsrwKuJCB29hf14EQ$jaQXCJm9rueaG0suSZdrTXewPxn9uXKaRbJvxR1h5LQ",
            "{BLF-CRYPT}$2y$31$JIDiMKgVLA/jsJuGqe3g4OUy/bU9wW.vQKN.a6HaGAfdvFazXTU3G",
            "{PBKDF2}$1$b01i4UXiop8yI89n$4000000000$b773a0b209e449b179443cffc099dd5e1db2fc22",
            "{SHA512-CRYPT}$6$rounds=999999999$x$y",
            "{CRYPT}$y$jTT$F5Jx5fExrKuPp53xLKQ..1$GmcwIgvdUC9qLWcKCi6gklUa1dM3ziD43YxYNURLKy0",
        ] {
            let error = verify(stored, "CRYPT", "secret").unwrap_err();
            assert!(error.to_string().contains("more memory or time"), "{error}");
        }
    }

    #[test]
    fn malformed_hashes_are_errors_that_do_not_show_them() {
        for scheme in [
            "ARGON2ID",
            "CRYPT",
            "SHA512-CRYPT",
            "BLF-CRYPT",
            "PBKDF2",
            "SHA",
            "SSHA256",
            "SMD5",
            "PLAIN.HEX",
        ] {
            for hash in ["", "$", "x!private!", "$1$", "$6$", "$2y$10$", "$y$j9T$a$", "$argon2id$v=19$m=1$$"]
            {
                let stored = format!("{{{scheme}}}{hash}");
                if let Err(error) = verify(&stored, "CRYPT", "secret") {
                    assert!(!error.to_string().contains("private"), "{error}");
                } else {
                    assert!(!verify(&stored, "CRYPT", "secret").unwrap(), "{stored}");
                }
            }
        }
        assert!(!verify("{PLAIN}x", "PLAIN", &"x".repeat(5000)).unwrap());
    }
}
