//! What a program written in Go says of its own build: the versions that were linked into it.
//!
//! Reads the headers of the ELF file and its section `.go.buildinfo`, at most a quarter of a megabyte, wherever the
//! program is large. Programs that were built with `-trimpath` (Debian's, kubeadm's kubelet) do not tell; k3s, RKE2 and
//! their containerd do.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

use object::LittleEndian;
use object::read::elf::ElfFile64;
use object::read::{Object, ObjectSection, ReadCache};

use super::Host;
use super::read::open_host;

/// Bytes of the section; k3s', the largest, has 60 KB, most of it the list of its modules.
const MAX_SECTION: u64 = 256 << 10;
const MAGIC: &[u8] = b"\xff Go buildinf:";
/// Where the texts begin, since Go 1.18.
const HEADER: usize = 32;
/// The module's description stands between two marks of this length.
const MARK: usize = 16;

/// The value of the first of these variables that was linked into the program, as `-X NAME=value` of its build says.
/// `None` when the file is no such program or tells none of them.
///
/// # Errors
///
/// When the file cannot be read.
pub(crate) fn linked(host: &Host, path: &Path, names: &[&str]) -> io::Result<Option<String>> {
    let Some(section) = section(open_host(host, path)?)? else { return Ok(None) };
    let flags = build_flags(&section).unwrap_or_default();
    Ok(names.iter().find_map(|name| value(&flags, name)))
}

pub(super) fn section(file: File) -> io::Result<Option<Vec<u8>>> {
    let mut file = file;
    let range = {
        let cache = ReadCache::new(&mut file);
        // As the programs of x86_64 and aarch64 are.
        let Ok(program) = ElfFile64::<LittleEndian, _>::parse(&cache) else { return Ok(None) };
        program.section_by_name(".go.buildinfo").and_then(|found| found.file_range())
    };
    // A damaged header may name a place that no file has.
    let Some((start, length)) = range.filter(|(start, _)| i64::try_from(*start).is_ok()) else {
        return Ok(None);
    };
    file.seek(SeekFrom::Start(start))?;
    let mut bytes = Vec::new();
    file.take(length.min(MAX_SECTION)).read_to_end(&mut bytes)?;
    Ok(Some(bytes))
}

/// The line `-ldflags` of the description of the build.
pub(super) fn build_flags(section: &[u8]) -> Option<String> {
    let inline = section.get(MAGIC.len() + 1)? & 2 != 0;
    if !section.starts_with(MAGIC) || !inline {
        return None;
    }
    let (_, rest) = text(section.get(HEADER..)?)?;
    let (module, _) = text(rest)?;
    let module = String::from_utf8_lossy(module.get(MARK..module.len().checked_sub(MARK)?)?);
    module.lines().find_map(|line| Some(line.strip_prefix("build\t-ldflags=")?.to_owned()))
}

/// A text behind its length, and what follows.
fn text(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let mut length = 0_usize;
    for (n, byte) in bytes.iter().enumerate().take(4) {
        length |= usize::from(byte & 0x7f) << (7 * n);
        if byte & 0x80 == 0 {
            return bytes.get(n + 1..)?.split_at_checked(length);
        }
    }
    None
}

/// The value of `-X name=value` in the flags, which Go quotes as a string of its own.
pub(super) fn value(flags: &str, name: &str) -> Option<String> {
    let flags = flags.replace("\\n", " ").replace("\\t", " ");
    let mut words = flags.split(|c: char| c.is_whitespace() || matches!(c, '"' | '\'' | '\\'));
    let found = words.find_map(|word| word.strip_prefix(name)?.strip_prefix('='))?;
    (!found.is_empty()).then(|| found.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const K3S: &str = "github.com/k3s-io/k3s/pkg/version.Version";

    /// The section of a program that Go 1.19 built with the flags of k3s' own script.
    const PROGRAM: &[u8] = include_bytes!("../../tests/data/go-build-info.elf");

    fn linked_in(program: &[u8], name: &str) -> Option<String> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("program"), program).unwrap();
        linked(&Host::at(dir.path()), Path::new("/program"), &["no.such/variable", name]).unwrap()
    }

    #[test]
    fn a_program_tells_what_was_linked_into_it() {
        assert_eq!(linked_in(PROGRAM, K3S).as_deref(), Some("v1.33.1+k3s1"));
        assert_eq!(linked_in(PROGRAM, "github.com/k3s-io/k3s/pkg/version.Vers"), None);
    }

    #[test]
    fn flags_are_read_however_go_quotes_them() {
        for flags in [r#""-X a/b.V=1.2 -s""#, r#""\n\t-X 'a/b.V=1.2'\n""#, "-X=x -X a/b.V=1.2"] {
            assert_eq!(value(flags, "a/b.V").as_deref(), Some("1.2"), "{flags}");
        }
        assert_eq!(value("-X a/b.V=", "a/b.V"), None);
    }

    #[test]
    fn what_is_no_program_of_go_tells_nothing() {
        for bytes in [&b"#!/bin/sh\nexec k3s\n"[..], b"", b"\x7fELF", &PROGRAM[..700]] {
            assert_eq!(linked_in(bytes, K3S), None);
        }
        let own = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        assert_eq!(linked_in(&own, K3S), None);
    }

    #[test]
    fn a_section_beyond_the_end_of_any_file_tells_nothing() {
        let mut program = PROGRAM.to_vec();
        // The place of the section, in its header.
        program[0x1238..0x1240].fill(0xff);
        assert_eq!(linked_in(&program, K3S), None);
    }

    #[test]
    fn a_program_that_is_not_there_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let error = linked(&Host::at(dir.path()), Path::new("/program"), &[K3S]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }

    proptest::proptest! {
        #[test]
        fn damage_is_survived(cut in 0..PROGRAM.len(), at in 0..PROGRAM.len(), byte: u8) {
            let mut program = PROGRAM.to_vec();
            program[at] = byte;
            program.truncate(cut.max(at));
            linked_in(&program, K3S);
        }
    }
}
