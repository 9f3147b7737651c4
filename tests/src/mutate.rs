//! Damage, made to measure: what a cut, a flipped bit or a liar makes of a file. One seed settles all.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use crate::world::Dice;

/// Memory that a process may have while it reads damaged files; zstd alone takes 128 MiB where it is told to.
const MEMORY_BYTES_MAX: u64 = 2 << 30;
/// Most changes that one mutation makes.
const CHANGES_MAX: u64 = 4;
/// Longest run of bytes that is inserted, removed or doubled.
const BLOCK_BYTES_MAX: u64 = 300;
/// What is written in place of a number in digits.
const DIGITS: [&str; 8] =
    ["0", "1", "-1", "4294967295", "7fffffffffffffff", "ffffffffffffffff", "18446744073709551616", ""];
/// What is written in place of a number in four or eight bytes, little-endian.
const LIMITS: [&[u8]; 6] = [
    &[0; 4],
    &[1, 0, 0, 0],
    &[0xfe, 0xff, 0xff, 0xff],
    &[0xff; 4],
    &[0xff; 8],
    &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f],
];

/// Feeds `parse` with each sample and with `count` mutations of it, or as many times more as `DSYNC_MUTATIONS` says. It must neither panic nor take much memory: more
/// than 2 GiB ends the whole process, so this belongs in a test binary of its own.
///
/// Seeds go up from 0. To go on where another run ended, `DSYNC_MUTATIONS_AFTER` says how many times `count` it did.
///
/// A panic is reported with the seed that [`mutation`] makes the same bytes from.
pub fn feed(what: &str, samples: &[Vec<u8>], count: u64, mut parse: impl FnMut(&[u8])) {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (_, most) = getrlimit(Resource::RLIMIT_AS).expect("a limit is known");
    setrlimit(Resource::RLIMIT_AS, MEMORY_BYTES_MAX.min(most), most).expect("a limit can be lowered");
    let number = |name, unset| std::env::var(name).map_or(unset, |text| text.parse().expect("a number"));
    let (after, times): (u64, u64) = (number("DSYNC_MUTATIONS_AFTER", 0), number("DSYNC_MUTATIONS", 1));
    for (number, sample) in samples.iter().enumerate() {
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| parse(sample))) {
            eprintln!("{what}: sample {number}: {:?}", String::from_utf8_lossy(sample));
            resume_unwind(panic);
        }
        for seed in count * after..count * (after + times) {
            let mutated = mutation(seed, sample);
            if let Err(panic) = catch_unwind(AssertUnwindSafe(|| parse(&mutated))) {
                eprintln!("{what}: sample {number}, seed {seed}: {:?}", String::from_utf8_lossy(&mutated));
                resume_unwind(panic);
            }
        }
    }
}

/// One mutation of a sample.
pub fn mutation(seed: u64, sample: &[u8]) -> Vec<u8> {
    let mut dice = Dice::new(seed);
    let mut bytes = sample.to_vec();
    for _ in 0..=dice.roll(CHANGES_MAX) {
        change(&mut dice, &mut bytes);
    }
    bytes
}

/// The sample with each of its 32-bit numbers in turn at a limit of what it can be: every `step`th of all these.
pub fn at_limits(sample: &[u8], step: usize) -> Vec<Vec<u8>> {
    let whole = (0..sample.len() / 4).flat_map(|word| LIMITS.map(|limit| (word * 4, limit)));
    let set = |(at, limit): (usize, &[u8])| {
        let mut bytes = sample.to_vec();
        let end = (at + limit.len()).min(bytes.len());
        bytes[at..end].copy_from_slice(&limit[..end - at]);
        bytes
    };
    whole.step_by(step).map(set).collect()
}

fn change(dice: &mut Dice, bytes: &mut Vec<u8>) {
    // Half of the changes come near one of the ends, where headers and trailers are.
    let at = |dice: &mut Dice, bytes: &[u8]| {
        let length = bytes.len() as u64;
        (match dice.roll(4) {
            0 => dice.roll(length.clamp(1, 64)),
            1 => length - dice.roll(length.clamp(1, 64)),
            _ => dice.roll(length + 1),
        }) as usize
    };
    let start = at(dice, bytes);
    let end = start + dice.roll(BLOCK_BYTES_MAX.min((bytes.len() - start) as u64) + 1) as usize;
    match dice.roll(9) {
        0 => bytes.truncate(start),
        1 | 2 if start < bytes.len() => bytes[start] ^= 1 << dice.roll(8),
        3 => {
            let block: Vec<u8> = (start..=end).map(|_| dice.roll(256) as u8).collect();
            bytes.splice(start..start, block);
        }
        4 => drop(bytes.drain(start..end)),
        5 => {
            let block = bytes[start..end].to_vec();
            let to = at(dice, bytes);
            bytes.splice(to..to, block);
        }
        6 => {
            let width = (1 << dice.roll(4)).min(bytes.len() - start);
            let mut number = match dice.roll(4) {
                0 => vec![0; width],
                1 => vec![0xff; width],
                2 => vec![0x80; width],
                _ => vec![0x7f; width],
            };
            // A limit of signed numbers has its odd byte at one end.
            if let Some(last) = number.last_mut().filter(|byte| matches!(**byte, 0x7f | 0x80)) {
                *last = !*last;
            }
            bytes.splice(start..start + width, number);
        }
        7 => {
            // The next run of digits.
            let is_digit = |byte: &u8| byte.is_ascii_hexdigit();
            let from = bytes[start..].iter().position(is_digit).map_or(bytes.len(), |skip| start + skip);
            let digits = bytes[from..].iter().take_while(|byte| is_digit(byte)).count();
            let number = DIGITS[dice.roll(DIGITS.len() as u64) as usize];
            bytes.splice(from..from + digits, number.bytes());
        }
        _ => bytes[start..end].reverse(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_the_same_damage_and_another_seed_other_damage() {
        let sample: Vec<u8> = (0..=255).collect();
        let all: std::collections::BTreeSet<Vec<u8>> =
            (0..1000).map(|seed| mutation(seed, &sample)).collect();
        assert!(all.len() > 950, "{}", all.len());
        assert_eq!(mutation(7, &sample), mutation(7, &sample));
        (0..1000).for_each(|seed| drop((mutation(seed, b""), mutation(seed, b"x"))));
    }
}
