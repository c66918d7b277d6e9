//! What the superblocks of ext4 and xfs say of themselves, as a pure function on bytes.
//!
//! ext4 keeps both times; xfs keeps neither, only its UUID. Numbers of ext4 are little-endian.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Bytes from the beginning of the device that hold either superblock.
pub(super) const BYTES: usize = 4096;

/// Where ext4's superblock begins.
const EXT4: usize = 1024;

/// A superblock.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Superblock {
    /// In the usual spelling.
    pub(super) uuid: String,
    /// When the filesystem was made.
    pub(super) created: Option<SystemTime>,
    /// When it was last mounted.
    pub(super) mounted: Option<SystemTime>,
}

/// The superblock in the first bytes of a device; `None` when they hold neither of the two.
pub(super) fn parse(bytes: &[u8]) -> Option<Superblock> {
    if bytes.starts_with(b"XFSB") {
        let uuid = uuid(bytes.get(32..48)?);
        return Some(Superblock { uuid, ..Superblock::default() });
    }
    let block = bytes.get(EXT4..)?;
    if block.get(0x38..0x3a)? != [0x53, 0xef] {
        return None;
    }
    // The fifth byte of each time came later, and is zero until 2106.
    let time = |low: usize, high: usize| -> Option<SystemTime> {
        let low: [u8; 4] = block.get(low..low + 4)?.try_into().ok()?;
        let seconds = u64::from(u32::from_le_bytes(low)) | u64::from(*block.get(high)?) << 32;
        (seconds > 0).then(|| UNIX_EPOCH + Duration::from_secs(seconds))
    };
    Some(Superblock {
        uuid: uuid(block.get(0x68..0x78)?),
        created: time(0x108, 0x276),
        mounted: time(0x2c, 0x275),
    })
}

fn uuid(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(36);
    for (i, byte) in bytes.iter().enumerate() {
        if [4, 6, 8, 10].contains(&i) {
            text.push('-');
        }
        text.push_str(&format!("{byte:02x}"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of `mkfs.ext4`, after two mounts, by the offsets that `dumpe2fs -h` confirmed.
    fn ext4() -> Vec<u8> {
        let mut bytes = vec![0; BYTES];
        let mut put = |at: usize, what: &[u8]| {
            bytes[EXT4 + at..EXT4 + at + what.len()].copy_from_slice(what);
        };
        put(0x2c, &1_795_934_205_u32.to_le_bytes());
        put(0x38, &[0x53, 0xef]);
        put(0x68, &0x1a77_41b3_fefb_4d12_9008_511d_4d49_e807_u128.to_be_bytes());
        put(0x108, &1_795_934_200_u32.to_le_bytes());
        bytes
    }

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn ext4_says_when_it_was_made_and_last_mounted() {
        let found = parse(&ext4()).unwrap();
        assert_eq!(found.uuid, "1a7741b3-fefb-4d12-9008-511d4d49e807");
        assert_eq!(
            (found.created, found.mounted),
            (Some(at(1_795_934_200)), Some(at(1_795_934_205)))
        );
    }

    #[test]
    fn the_times_of_ext4_go_beyond_32_bits() {
        let mut bytes = ext4();
        bytes[EXT4 + 0x276] = 1;
        assert_eq!(parse(&bytes).unwrap().created, Some(at(1_795_934_200 + (1 << 32))));
    }

    #[test]
    fn an_ext4_without_times_has_none() {
        let mut bytes = ext4();
        bytes[EXT4 + 0x2c..EXT4 + 0x30].fill(0);
        bytes[EXT4 + 0x108..EXT4 + 0x10c].fill(0);
        let found = parse(&bytes).unwrap();
        assert_eq!((found.created, found.mounted), (None, None));
    }

    #[test]
    fn xfs_says_its_uuid_only() {
        // The first 64 bytes of `mkfs.xfs` 6.13.
        let mut bytes = b"XFSB\0\0\x10\0\0\0\0\0\0\x01\x90\0".to_vec();
        bytes.resize(32, 0);
        bytes.extend(0x29ec_2d8b_ec3b_41e0_9cad_f89a_c2c2_b657_u128.to_be_bytes());
        let found = parse(&bytes).unwrap();
        assert_eq!(found.uuid, "29ec2d8b-ec3b-41e0-9cad-f89ac2c2b657");
        assert_eq!((found.created, found.mounted), (None, None));
    }

    #[test]
    fn other_bytes_and_too_few_of_them_are_no_superblock() {
        assert_eq!(parse(&[0; BYTES]), None);
        assert_eq!(parse(b"XFSB"), None);
        assert_eq!(parse(&ext4()[..EXT4 + 0x100]).and_then(|found| found.created), None);
        assert_eq!(parse(&ext4()[..EXT4 + 4]), None);
        assert_eq!(parse(b""), None);
    }
}
