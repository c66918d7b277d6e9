//! Whatever lies in a dqlite directory: each parser gets the same bytes. None may panic, hang, or promise more than it was given.
#![no_main]

use std::io::Cursor;

use controlplane_exporter::dqlite::{membership, metadata, names, segment, snapshot, store};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let text = String::from_utf8_lossy(bytes);
    names::parse(&text);
    let listed = store::members(&text).map_or(0, |members| members.len());
    assert!(listed <= bytes.len(), "{listed} members in {} bytes", bytes.len());
    drop(store::own(&text));
    drop(metadata::parse(bytes));
    let members = membership::parse(bytes).map_or(0, |members| members.len());
    assert!(members <= bytes.len(), "{members} members in {} bytes", bytes.len());
    drop(snapshot::meta(bytes));
    drop(snapshot::contents(bytes));
    let scan = segment::scan(Cursor::new(bytes)).expect("memory can be read");
    assert!(scan.entries <= bytes.len() as u64, "{} entries in {} bytes", scan.entries, bytes.len());
});
