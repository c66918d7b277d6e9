//! The first bytes of an LZ4 frame.
//!
//! A snapshot's first hundred bytes tell the size of the database, and its first block alone may be 4 MB. So
//! this decodes no more than is asked for, from the first few kilobytes of the file, and checks no checksum:
//! those are behind what it reads.

use super::Malformed;
use super::bytes::Bytes;

const MAGIC: &[u8] = &[0x04, 0x22, 0x4d, 0x18];

/// The first `want` bytes of what `head`, the beginning of a file, holds: as it is, or decompressed where it is an
/// LZ4 frame. Fewer when `head` ends before.
///
/// # Errors
///
/// When the frame is of a kind that dqlite does not write, or damaged.
pub(super) fn first_bytes(head: &[u8], want: usize) -> Result<Vec<u8>, Malformed> {
    let Some(frame) = head.strip_prefix(MAGIC) else {
        return Ok(head[..head.len().min(want)].to_vec());
    };
    let mut frame = Bytes(frame);
    let (Some(flags), Some(_block_size)) = (frame.u8(), frame.u8()) else {
        return Ok(Vec::new());
    };
    if flags >> 6 != 1 || flags & 1 != 0 {
        return Err(Malformed::new("an LZ4 frame of an unknown version or with a dictionary"));
    }
    // The size of the content, if it is there, and the header's checksum.
    let mut out = Vec::with_capacity(want);
    if frame.take(if flags & 8 == 0 { 1 } else { 9 }).is_none() {
        return Ok(out);
    }
    while out.len() < want {
        let Some(size) = frame.u32().filter(|size| *size != 0) else { break };
        let plain = size & 0x8000_0000 != 0;
        let size = usize::try_from(size & 0x7fff_ffff).unwrap_or(usize::MAX);
        let block = &frame.0[..frame.0.len().min(size)];
        if plain {
            out.extend(block.iter().take(want - out.len()));
        } else {
            decode(block, want, &mut out)?;
        }
        let checksum = if flags & 0x10 == 0 { 0 } else { 4 };
        if frame.take(size.saturating_add(checksum)).is_none() {
            break;
        }
    }
    Ok(out)
}

/// Appends what a block holds until `out` is `want` bytes long or the block ends, be it cut off.
fn decode(block: &[u8], want: usize, out: &mut Vec<u8>) -> Result<(), Malformed> {
    let mut block = Bytes(block);
    while out.len() < want {
        let Some(token) = block.u8() else { break };
        let Some(literals) = length(token >> 4, &mut block) else { break };
        let given = &block.0[..block.0.len().min(literals)];
        out.extend(given.iter().take(want - out.len()));
        if block.take(literals).is_none() || out.len() == want {
            break;
        }
        let (Some(low), Some(high)) = (block.u8(), block.u8()) else { break };
        let distance = usize::from(u16::from_le_bytes([low, high]));
        if distance == 0 || distance > out.len() {
            return Err(Malformed::new("LZ4 data that refer to before their beginning"));
        }
        let Some(repeated) = length(token & 15, &mut block) else { break };
        for _ in 0..repeated.saturating_add(4).min(want - out.len()) {
            out.push(out[out.len() - distance]);
        }
    }
    Ok(())
}

/// A length whose first four bits are `start`: 15 means that more bytes follow, up to one that is not 255.
fn length(start: u8, block: &mut Bytes<'_>) -> Option<usize> {
    let mut length = usize::from(start);
    if start == 15 {
        loop {
            let more = block.u8()?;
            length = length.saturating_add(usize::from(more));
            if more != 255 {
                break;
            }
        }
    }
    Some(length)
}

#[cfg(test)]
mod tests {
    use super::super::sample;
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn real_snapshots_begin_with_the_database() {
        for file in
            ["v1.11.1-voter/snapshot-1-2048-1248063", "v1.18.7-voter/snapshot-3-3072-2286721"]
        {
            let compressed = sample(file);
            let bytes = first_bytes(&compressed, 200).unwrap();
            assert_eq!(bytes.len(), 200);
            assert_eq!(&bytes[16..20], b"demo");
            assert_eq!(&bytes[40..56], b"SQLite format 3\0");
            for cut in 0..compressed.len().min(300) {
                let fewer = first_bytes(&compressed[..cut], 200).unwrap();
                assert!(cut < 4 || bytes.starts_with(&fewer), "{file} cut at {cut}");
            }
        }
    }

    #[test]
    fn the_whole_content_of_a_frame_has_the_length_that_its_header_says() {
        for (file, length) in [
            ("v1.11.1-voter/snapshot-1-2048-1248063", 309_000),
            ("v1.18.7-voter/snapshot-3-3072-2286721", 12_328),
        ] {
            assert_eq!(first_bytes(&sample(file), 1 << 20).unwrap().len(), length);
        }
    }

    #[test]
    fn what_is_no_frame_is_taken_as_it_is() {
        assert_eq!(first_bytes(b"abcdef", 3).unwrap(), b"abc");
        assert_eq!(first_bytes(b"", 3).unwrap(), b"");
    }

    #[test]
    fn a_reference_to_before_the_beginning_is_refused() {
        let frame = [MAGIC, &[0x40, 0x40, 0, 4, 0, 0, 0, 0x10, b'a', 2, 0]].concat();
        assert!(first_bytes(&frame, 100).is_err());
        let runs = [MAGIC, &[0x40, 0x40, 0, 4, 0, 0, 0, 0x10, b'a', 1, 0]].concat();
        assert_eq!(first_bytes(&runs, 100).unwrap(), b"aaaaa");
    }

    proptest! {
        #[test]
        fn no_input_panics_or_yields_more_than_was_asked_for(
            bytes: Vec<u8>, flags in 0x40_u8..0x80, want in 0..1_000_usize,
        ) {
            let frame = [MAGIC, &[flags, 0x40, 0], &bytes[..]].concat();
            for input in [&bytes, &frame] {
                prop_assert!(first_bytes(input, want).map_or(0, |out| out.len()) <= want);
            }
        }

        #[test]
        fn a_damaged_snapshot_is_survived(at: usize, byte: u8) {
            let mut bytes = sample("v1.18.7-voter/snapshot-3-3072-2286721");
            let at = at % bytes.len();
            bytes[at] = byte;
            drop(first_bytes(&bytes, 4096));
        }
    }
}
