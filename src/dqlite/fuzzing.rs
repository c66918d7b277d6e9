//! See `crate::fuzzing`.

use std::io::Cursor;

use super::wire::{self, Answer, Request};
use super::{membership, metadata, names, segment, snapshot, store};

/// Each parser of files gets the same bytes: none may panic, hang, or promise more than it was given.
pub fn dqlite_files(bytes: &[u8]) {
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
    assert!(
        scan.entries <= bytes.len() as u64,
        "{} entries in {} bytes",
        scan.entries,
        bytes.len()
    );
}

/// One message, taken for the answer to each question: no length in it may be believed beyond what has come.
pub fn dqlite_wire(bytes: &[u8]) {
    let Some((header, body)) = bytes.split_first_chunk::<{ wire::HEADER }>() else { return };
    let Ok((length, kind)) = wire::header(*header) else { return };
    assert!(length <= 64 << 10, "{length}");
    let body = &body[..length.min(body.len())];
    for request in [Request::Leader, Request::Cluster, Request::Describe] {
        if let Ok(Answer::Cluster(members)) = wire::answer(request, kind, body) {
            assert!(members.len() <= body.len() / 8, "{} in {} bytes", members.len(), body.len());
        }
    }
}
