//! Modified UTF-7 (RFC 3501 §5.1.3): mailbox names on disk.

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+,";

/// Encodes any text.
pub fn encode(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut units: Vec<u16> = Vec::new();
    let mut buffer = [0; 2];
    for c in text.chars() {
        if (' '..='~').contains(&c) {
            flush(&mut units, &mut out);
            out.push(c);
            if c == '&' {
                out.push('-');
            }
        } else {
            units.extend_from_slice(c.encode_utf16(&mut buffer));
        }
    }
    flush(&mut units, &mut out);
    out
}

fn flush(units: &mut Vec<u16>, out: &mut String) {
    if units.is_empty() {
        return;
    }
    out.push('&');
    let (mut bits, mut count) = (0u32, 0);
    for unit in units.drain(..) {
        bits = bits << 16 | u32::from(unit);
        count += 16;
        while count >= 6 {
            count -= 6;
            out.push(char::from(ALPHABET[(bits >> count & 63) as usize]));
        }
        bits &= (1 << count) - 1;
    }
    if count > 0 {
        out.push(char::from(ALPHABET[(bits << (6 - count) & 63) as usize]));
    }
    out.push('-');
}

/// Decodes what [`encode`] makes; anything else, other spellings of the same text too, is `None`: two names on disk must
/// never be one mailbox.
pub fn decode(stored: &str) -> Option<String> {
    let mut out = String::with_capacity(stored.len());
    let mut rest = stored;
    while let Some(at) = rest.find('&') {
        out.push_str(&rest[..at]);
        let (run, after) = rest[at + 1..].split_once('-')?;
        if run.is_empty() {
            out.push('&');
        } else {
            let (mut units, mut bits, mut count) = (Vec::new(), 0u32, 0);
            for c in run.bytes() {
                let value = ALPHABET.iter().position(|a| *a == c)?;
                bits = (bits << 6 | value as u32) & 0x3f_ffff;
                count += 6;
                if count >= 16 {
                    count -= 16;
                    units.push((bits >> count & 0xffff) as u16);
                }
            }
            out.push_str(&String::from_utf16(&units).ok()?);
        }
        rest = after;
    }
    out.push_str(rest);
    (encode(&out) == stored).then_some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_names() {
        for (text, stored) in [
            ("Entwürfe", "Entw&APw-rfe"),
            ("A & B", "A &- B"),
            ("日本", "&ZeVnLA-"),
            ("plain", "plain"),
            ("😀x", "&2D3eAA-x"),
        ] {
            assert_eq!(encode(text), stored);
            assert_eq!(decode(stored).as_deref(), Some(text));
        }
        for bad in ["&&-", "&****-", "&AGE-", "ü", "&", "&AP-", "\u{7f}"] {
            assert_eq!(decode(bad), None, "{bad}");
        }
    }

    proptest::proptest! {
        #[test]
        fn whatever_is_encoded_is_decoded(text: String) {
            proptest::prop_assert_eq!(decode(&encode(&text)), Some(text));
        }

        #[test]
        fn no_text_is_read_two_ways(stored: String) {
            if let Some(text) = decode(&stored) {
                proptest::prop_assert_eq!(encode(&text), stored);
            }
        }
    }
}
