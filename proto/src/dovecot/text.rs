//! Values of an item's line: tab-escaping, unset values, lists within values.

use super::ELEMENTS_MAX;

const ESCAPE: u8 = 0x01;
const UNSET: u8 = 0x02;

/// Appends `value`, tab-escaped.
pub fn escape(value: &[u8], output: &mut Vec<u8>) {
    for byte in value {
        match byte {
            0 => output.extend_from_slice(b"\x010"),
            &ESCAPE => output.extend_from_slice(b"\x011"),
            b'\t' => output.extend_from_slice(b"\x01t"),
            b'\r' => output.extend_from_slice(b"\x01r"),
            b'\n' => output.extend_from_slice(b"\x01n"),
            byte => output.push(*byte),
        }
    }
}

/// Takes the tab-escaping away. A lone escape at the end is dropped.
pub fn unescape(value: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(value.len());
    let mut bytes = value.iter();
    while let Some(byte) = bytes.next() {
        if *byte != ESCAPE {
            plain.push(*byte);
            continue;
        }
        match bytes.next() {
            Some(b'0') => plain.push(0),
            Some(b'1') => plain.push(ESCAPE),
            Some(b't') => plain.push(b'\t'),
            Some(b'r') => plain.push(b'\r'),
            Some(b'n') => plain.push(b'\n'),
            Some(other) => plain.push(*other),
            None => {}
        }
    }
    plain
}

/// Appends the values of a line, without its end. Unset values at the end are left out.
pub fn join(values: &[Option<Vec<u8>>], output: &mut Vec<u8>) {
    let set = values.iter().rposition(Option::is_some).map_or(0, |last| last + 1);
    for (i, value) in values[..set].iter().enumerate() {
        if i > 0 {
            output.push(b'\t');
        }
        match value {
            None => output.push(UNSET),
            Some(value) => {
                if value.first() == Some(&UNSET) {
                    output.push(UNSET);
                }
                escape(value, output);
            }
        }
    }
}

/// Splits what stands behind the tag of a line into its values.
pub fn split(line: &[u8]) -> impl Iterator<Item = Option<Vec<u8>>> + '_ {
    let values = (!line.is_empty()).then(|| line.split(|byte| *byte == b'\t'));
    values.into_iter().flatten().map(|value| match value {
        [UNSET] => None,
        [UNSET, rest @ ..] => Some(unescape(rest)),
        value => Some(unescape(value)),
    })
}

/// Makes one value of a list.
pub fn join_list<T: AsRef<[u8]>>(elements: &[T]) -> Vec<u8> {
    let mut value = Vec::new();
    for (i, element) in elements.iter().enumerate() {
        if i > 0 {
            value.push(b'\t');
        }
        escape(element.as_ref(), &mut value);
    }
    value
}

/// Takes a list out of a value; `None` if it is longer than any list may be. The empty value is the empty list.
pub fn split_list(value: &[u8]) -> Option<Vec<Vec<u8>>> {
    if value.is_empty() {
        return Some(Vec::new());
    }
    let elements = value.split(|byte| *byte == b'\t');
    if elements.clone().count() > ELEMENTS_MAX {
        return None;
    }
    Some(elements.map(unescape).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_come_back_as_they_were() {
        let values =
            [Some(b"a\tb\n\r\0\x01".to_vec()), None, Some(Vec::new()), Some(b"\x02x".to_vec()), None];
        let mut line = Vec::new();
        join(&values, &mut line);
        assert_eq!(line, b"a\x01tb\x01n\x01r\x010\x011\t\x02\t\t\x02\x02x");
        assert!(split(&line).eq(values[..4].iter().cloned()));
        assert_eq!(split(b"").count(), 0);
    }

    #[test]
    fn lists_are_escaped_twice() {
        let mut line = Vec::new();
        let list = ["Work".as_bytes(), b"Su\tb"];
        join(&[Some(join_list(&list))], &mut line);
        assert_eq!(line, b"Work\x01tSu\x011tb");
        let value = split(&line).next().unwrap().unwrap();
        assert_eq!(split_list(&value).unwrap(), list);
        assert_eq!(split_list(&vec![b'\t'; ELEMENTS_MAX + 1]), None);
    }
}
