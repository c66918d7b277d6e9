//! The list of samplers. Each is one file here and one line in the list: its name is its file, its
//! section of the configuration, its `sampler` label and the prefix of its metrics.

use crate::sampler::SamplerDef;

macro_rules! samplers {
    ($($name:ident),* $(,)?) => {
        $(pub mod $name;)*
        /// Every sampler by name, in the order of `/metrics`.
        pub static ALL: &[(&str, &SamplerDef)] = &[$((stringify!($name), &$name::SAMPLER)),*];
    };
}

samplers! {
    exporter,
    etcd,
    etcd_snapshot,
    dqlite,
    kine,
    apiserver,
    args,
    settings,
    certificate,
    registry_keys,
    fdatasync,
    kernel,
    journal,
    systemd,
    static_pod,
    filesystem,
    volume,
    snap,
}

/// The sampler with this name.
pub fn find(name: &str) -> Option<&'static SamplerDef> {
    ALL.iter().find(|(known, _)| *known == name).map(|(_, def)| *def)
}
