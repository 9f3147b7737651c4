//! When what was saved is made durable.

/// Saves after which a commit is due, and bytes.
const MESSAGES: u64 = 2_000;
const BYTES: u64 = 256 << 20;
/// A commit looks at the whole mailbox: none is made for less than this part of it.
const PART: u64 = 8;

/// Says whether saves that are not durable yet, so many messages of so many bytes, are to be committed to a mailbox that holds `held`
/// messages. Steps grow with the mailbox, so that all commits together cost no more than in proportion to it.
pub(crate) fn is_due((messages, bytes): (u64, u64), held: u64) -> bool {
    (messages >= MESSAGES || bytes >= BYTES) && messages >= held / PART
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_work_of_all_commits_is_in_proportion_to_the_mailbox() {
        for (total, size) in [(20_000, 3_000), (2_000_000, 3_000), (2_000_000, 10 << 20), (10, 1 << 30)] {
            let (mut held, mut unsaved, mut looked_at) = (0, (0, 0), 0);
            for _ in 0..total {
                unsaved = (unsaved.0 + 1, unsaved.1 + size);
                if is_due(unsaved, held) {
                    held += unsaved.0;
                    looked_at += held;
                    unsaved = (0, 0);
                }
            }
            assert!(looked_at <= 11 * total, "{total} messages of {size} bytes: {looked_at} looked at");
            assert!(unsaved.0 <= MESSAGES.max(total / PART), "{total} messages: {} are not safe", unsaved.0);
        }
    }
}
