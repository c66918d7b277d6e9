use std::panic::{AssertUnwindSafe, catch_unwind};

use super::*;

/// Damaged inputs for each target, unless `FUZZING_RUNS` says otherwise.
const RUNS: usize = 2_000;
/// No input is longer, as none of the fuzzer's is.
const MAX_BYTES: usize = 65_536;

type Target = (&'static str, fn(&[u8]));

macro_rules! targets {
    ($($name:ident),* $(,)?) => {
        const TARGETS: &[Target] = &[$((stringify!($name), $name)),*];
        mod survives {
            $(#[test] fn $name() { super::survives(&(stringify!($name), super::$name)); })*
        }
    };
}

targets! {
    agent_config, apiserver_checks, arguments, certificate, component_config, cri_log, dqlite_files, dqlite_wire, go_build,
    journal_export, journal_line, journal_signatures, kmsg, kubeconfig, longhorn_object, mountinfo, os_release, superblock,
    unit_file, volume_state, web_config, yaml,
}

/// What numbers and texts break on.
const TOKENS: [&[u8]; 28] = [
    b"",
    b"\n",
    b"\n\n",
    b"\0",
    b" ",
    b"\t",
    b"\\",
    b"\"",
    b"'",
    b"=",
    b":",
    b": ",
    b"- ",
    b"{",
    b"}",
    b"[",
    b"]",
    b"$",
    b"\xff",
    b"\xc3\xa9",
    b"\xf0\x9f\x92\xa5",
    b"0",
    b"-1",
    b"18446744073709551615",
    b"9223372036854775808",
    b"1e999",
    b"\xff\xff\xff\xff\xff\xff\xff\xff",
    b"\0\0\0\0\0\0\0\x80",
];

/// The seeds as they are, then what grows from them; the same in each run.
fn survives((name, run): &Target) {
    let seeds = seeds(name);
    assert!(!seeds.is_empty(), "{name} has no seed");
    let check = |input: &[u8]| {
        let done = catch_unwind(AssertUnwindSafe(|| run(input)));
        assert!(done.is_ok(), "{name} fails with b\"{}\"", input.escape_ascii());
    };
    check(b"");
    for seed in &seeds {
        check(seed);
    }
    let runs = std::env::var("FUZZING_RUNS").ok().and_then(|runs| runs.parse().ok());
    let mut random = fastrand::Rng::with_seed(0x0c0f_fee0);
    for _ in 0..runs.unwrap_or(RUNS) {
        let mut input = random.choice(&seeds).cloned().unwrap_or_default();
        for _ in 0..random.usize(1..6) {
            damage(&mut input, &seeds, &mut random);
        }
        input.truncate(MAX_BYTES);
        check(&input);
    }
}

fn damage(input: &mut Vec<u8>, seeds: &[Vec<u8>], random: &mut fastrand::Rng) {
    let start = random.usize(..=input.len());
    let end = random.usize(start..=input.len().min(start + 64));
    match random.u8(..8) {
        0 => input.truncate(start),
        1 if start < input.len() => input[start] ^= 1 << random.u8(..8),
        2 if start < input.len() => input[start] = random.u8(..),
        3 => drop(input.drain(start..end)),
        4 => {
            let again = input[start..end].to_vec();
            input.splice(start..start, again);
        }
        5 => {
            let other = random.choice(seeds).cloned().unwrap_or_default();
            let from = random.usize(..=other.len());
            let to = random.usize(from..=other.len().min(from + 256));
            input.splice(start..end, other[from..to].iter().copied());
        }
        6 => {
            // A number takes the place of a number.
            let digits = |at: &usize| input[*at].is_ascii_digit();
            let Some(first) = (start..input.len()).find(digits) else { return };
            let last = (first..input.len()).find(|at| !digits(at)).unwrap_or(input.len());
            let token = random.choice(&TOKENS[21..26]).copied().unwrap_or_default();
            input.splice(first..last, token.iter().copied());
        }
        _ => {
            let token = random.choice(TOKENS).unwrap_or_default();
            input.splice(start..end, token.iter().copied());
        }
    }
}

#[test]
fn every_target_can_be_fuzzed_and_every_fuzzed_one_is_tested() {
    let names: Vec<_> = TARGETS.iter().map(|(name, _)| (*name).to_owned()).collect();
    let crate_file = text("tests/fuzz/Cargo.toml");
    let lines = crate_file.lines().filter_map(|line| line.strip_prefix("name = \""));
    let mut built: Vec<_> =
        lines.map(|line| line.trim_end_matches('"').to_owned()).skip(1).collect();
    built.sort_unstable();
    assert_eq!(names, built);
    for name in names {
        let file = text(&format!("tests/fuzz/targets/{name}.rs"));
        assert!(file.contains(&format!("write_seeds(\"{name}\")")), "{name}");
        assert!(file.contains(&format!("fuzzing::{name}(bytes)")), "{name}");
    }
}
