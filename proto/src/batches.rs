//! Divides lists into pieces that fit into a frame each.

use std::iter;

use bincode::Encode;
use bincode::enc::write::SizeWriter;
use bincode::enc::{Encoder as _, EncoderImpl};

use crate::BATCH_MAX;
use crate::native::config;

/// Size that a piece is filled to: a quarter of a frame.
const BATCH_BYTES: usize = crate::FRAME_BYTES_MAX / 4;

/// Pieces of a list in its order: each of at most [`BATCH_MAX`] elements and a quarter of a frame, or of one element that is larger.
pub fn batches<T: Encode>(mut list: &[T]) -> impl Iterator<Item = &[T]> {
    iter::from_fn(move || {
        let (mut count, mut bytes) = (0, 0);
        for element in list.iter().take(BATCH_MAX) {
            bytes += size(element);
            if count > 0 && bytes > BATCH_BYTES {
                break;
            }
            count += 1;
        }
        let (batch, rest) = list.split_at_checked(count).filter(|_| count > 0)?;
        list = rest;
        Some(batch)
    })
}

/// Bytes that the element takes on the wire.
fn size(element: &impl Encode) -> usize {
    let mut encoder = EncoderImpl::new(SizeWriter::default(), config());
    // What cannot be encoded is told when it is sent.
    if element.encode(&mut encoder).is_err() {
        return usize::MAX / (BATCH_MAX + 1);
    }
    encoder.writer().bytes_written
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sizes(list: &[Vec<u8>]) -> Vec<usize> {
        batches(list).map(<[_]>::len).collect()
    }

    #[test]
    fn a_piece_ends_at_its_limit_of_elements_or_bytes() {
        assert_eq!(sizes(&[]), [0; 0]);
        assert_eq!(sizes(&vec![vec![1]; 1001]), [500, 500, 1]);
        let half = vec![0; BATCH_BYTES / 2];
        assert_eq!(sizes(&[half.clone(), vec![1], half.clone(), vec![1]]), [2, 2]);
        assert_eq!(
            sizes(&[vec![0; 2 * BATCH_BYTES], vec![0; 2 * BATCH_BYTES]]),
            [1, 1],
            "one alone may be larger"
        );
    }
}
