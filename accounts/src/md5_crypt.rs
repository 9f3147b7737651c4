//! MD5-crypt, `$1$salt$hash`: what crypt(3) made before SHA-crypt, and what old passwd-files hold. It is only checked, never made.
//!
//! Weak: a stolen hash is guessed fast. No crate that is kept up has it.

use md5::{Digest, Md5};
use subtle::ConstantTimeEq as _;

const ROUNDS: u32 = 1000;
/// A longer salt is cut.
const SALT_BYTES_MAX: usize = 8;
const ALPHABET: &[u8; 64] = b"./0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/// Checks a password; `None` if the text is no such hash.
pub(crate) fn verify(text: &str, password: &str) -> Option<bool> {
    let (salt, hash) = text.strip_prefix("$1$")?.split_once('$')?;
    let known = hash.len() == 22 && hash.bytes().all(|byte| ALPHABET.contains(&byte));
    let salt = salt.as_bytes();
    let salt = &salt[..salt.len().min(SALT_BYTES_MAX)];
    known.then(|| encoded(&digest(password.as_bytes(), salt)).ct_eq(hash.as_bytes()).into())
}

fn digest(password: &[u8], salt: &[u8]) -> [u8; 16] {
    let again = Md5::new().chain_update(password).chain_update(salt).chain_update(password).finalize();
    let mut first = Md5::new().chain_update(password).chain_update("$1$").chain_update(salt);
    (0..password.len()).for_each(|i| first.update(&again[i % 16..=i % 16]));
    let mut bits = password.len();
    while bits > 0 {
        // As it was first written: a zero byte for a one, else the password's first.
        first.update(if bits & 1 == 1 { &[0] } else { &password[..1] });
        bits >>= 1;
    }
    let mut sum: [u8; 16] = first.finalize().into();
    for round in 0..ROUNDS {
        let odd = round % 2 == 1;
        let mut next = Md5::new();
        next.update(if odd { password } else { &sum });
        if round % 3 != 0 {
            next.update(salt);
        }
        if round % 7 != 0 {
            next.update(password);
        }
        next.update(if odd { &sum } else { password });
        sum = next.finalize().into();
    }
    sum
}

/// The 22 characters, six bits each, the lowest first, of bytes in an order of their own.
fn encoded(sum: &[u8; 16]) -> [u8; 22] {
    let mut out = [0; 22];
    for (group, out) in out.chunks_mut(4).enumerate() {
        let byte = |at: usize| u32::from(sum[at]);
        let mut bits = match group {
            5 => byte(11),
            4 => byte(4) << 16 | byte(10) << 8 | byte(5),
            _ => byte(group) << 16 | byte(group + 6) << 8 | byte(group + 12),
        };
        for character in out {
            *character = ALPHABET[(bits & 63) as usize];
            bits >>= 6;
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Made by `openssl passwd -1 -salt SALT PASSWORD` of OpenSSL 3.0.
    const VECTORS: &[(&str, &str)] = &[
        ("secret", "$1$pU9GlF4P$Ng6Igk3NhdELFqUjkFbe1."),
        ("x", "$1$a$TYcRT0JumNkKBBlirG1X4/"),
        ("exactly sixteen.", "$1$12345678$zHoJ5EFuSkGZNPAqtggpU0"),
        ("seventeen letters", "$1$abcdefgh$BL0EuF5U9CHgZ01VaRv3O1"),
        ("pässwörd", "$1$zz$Q.ilnYeg0TLR1Ydb1sNY40"),
        (
            "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
            "$1$saltsalt$MXt1vO5UTCaPdasq6/ipZ/",
        ),
        ("", "$1$salt$UsdFqFVB.FsuinRDK5eE.."),
    ];

    #[test]
    fn passwords_of_all_lengths_verify() {
        for (password, text) in VECTORS {
            assert_eq!(verify(text, password), Some(true), "{text}");
            assert_eq!(verify(text, "other"), Some(false), "{text}");
        }
    }

    #[test]
    fn what_is_no_hash_is_none() {
        for text in
            ["", "$1$", "$1$salt", "$1$salt$", "$1$salt$short", "$1$salt$Ng6Igk3NhdELFqUjkFbe1!", "$6$a$b"]
        {
            assert_eq!(verify(text, ""), None, "{text}");
        }
    }
}
