//! `metadata1` and `metadata2`: the term, and for whom this node voted in it.
//!
//! They are written in turn; the one with the higher version counts. A node that lost its quorum does not
//! raise its term, so a constant term does not mean that all is well.

use serde::{Deserialize, Serialize};

use super::Malformed;
use super::bytes::Bytes;

/// The length of a whole file; a shorter one was caught while it was written.
pub const LENGTH: usize = 32;

/// One of the two files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Metadata {
    /// Grows with each write: by two where the node took part in an election, else by one.
    pub version: u64,
    /// The term.
    pub term: u64,
    /// Whom it voted for in this term; 0 for nobody.
    pub vote: u64,
}

/// Reads one file; `None` when it is too short to be whole.
///
/// # Errors
///
/// When its format is unknown.
pub fn parse(bytes: &[u8]) -> Result<Option<Metadata>, Malformed> {
    let mut bytes = Bytes(bytes);
    let mut next = || bytes.u64();
    let (Some(format), Some(version), Some(term), Some(vote)) = (next(), next(), next(), next())
    else {
        return Ok(None);
    };
    if format != 1 {
        return Err(Malformed::new(format!("metadata of format {format}")));
    }
    Ok(Some(Metadata { version, term, vote }))
}

/// The one that counts.
///
/// # Errors
///
/// When both have the same version, which dqlite takes for corruption.
pub fn newest(
    first: Option<Metadata>,
    second: Option<Metadata>,
) -> Result<Option<Metadata>, Malformed> {
    match (first, second) {
        (Some(a), Some(b)) if a.version == b.version => {
            Err(Malformed::new(format!("metadata1 and metadata2 both have version {}", a.version)))
        }
        (a, b) => Ok([a, b].into_iter().flatten().max_by_key(|metadata| metadata.version)),
    }
}

#[cfg(test)]
mod tests {
    use super::super::sample;
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn of_the_files_of_a_real_node_the_one_with_the_higher_version_counts() {
        for (node, version, term, vote) in [
            ("v1.11.1-voter", 3, 2, 3_297_041_220_608_546_238),
            ("v1.18.7-voter", 5, 3, 7_767_700_068_979_770_475),
        ] {
            let file = |name: &str| parse(&sample(&format!("{node}/{name}"))).unwrap();
            let (one, two) = (file("metadata1"), file("metadata2"));
            let expected = Some(Metadata { version, term, vote });
            assert_eq!(newest(one, two).unwrap(), expected, "{node}");
            assert_eq!(newest(two, one).unwrap(), expected);
            assert_eq!(newest(one, None).unwrap(), expected, "before the first election");
        }
    }

    #[test]
    fn a_file_that_is_cut_is_absent_and_equal_versions_are_corruption() {
        let whole = sample("v1.11.1-voter/metadata1");
        assert_eq!(parse(&whole[..31]).unwrap(), None);
        assert_eq!(parse(&[]).unwrap(), None);
        assert!(parse(&[2; LENGTH]).is_err());
        let one = parse(&whole).unwrap();
        assert!(newest(one, one).is_err());
        assert_eq!(newest(None, None).unwrap(), None);
    }

    proptest! {
        #[test]
        fn no_input_panics(bytes: Vec<u8>) {
            drop(parse(&bytes));
        }
    }
}
