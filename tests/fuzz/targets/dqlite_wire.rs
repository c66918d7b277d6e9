//! Whatever a server sends: one message, taken for the answer to each question. No length in it may be believed beyond
//! what has come.
#![no_main]

use controlplane_exporter::dqlite::wire::{self, Answer, Request};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Some((header, body)) = bytes.split_first_chunk::<{ wire::HEADER }>() else { return };
    let Ok((length, kind)) = wire::header(*header) else { return };
    assert!(length <= 64 << 10, "{length}");
    let body = &body[..length.min(body.len())];
    for request in [Request::Leader, Request::Cluster, Request::Describe] {
        if let Ok(Answer::Cluster(members)) = wire::answer(request, kind, body) {
            assert!(members.len() <= body.len() / 8, "{} in {} bytes", members.len(), body.len());
        }
    }
});
