//! Static pod manifests: the arguments and image of the first container.

use std::path::{Path, PathBuf};

use super::flags::Flags;
use super::read::Probe;
use super::yaml::Node;

/// What detection wants of a static pod.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct StaticPod {
    pub(super) flags: Flags,
    image: String,
    /// Paths inside the container, and what they are on the host.
    pub(super) volumes: Vec<(PathBuf, PathBuf)>,
}

impl StaticPod {
    /// Reads a manifest; `None` when it is absent, or cannot be read, which is noted.
    pub(super) fn read(probe: &Probe, path: &Path) -> Option<Self> {
        let text = probe.text(path)?;
        match Node::parse(&text) {
            Ok(manifest) => Self::from_node(&manifest),
            Err(error) => {
                probe.note(format!("{} could not be read: {error}", path.display()));
                None
            }
        }
    }

    pub(super) fn from_node(manifest: &Node) -> Option<Self> {
        let spec = manifest.get("spec")?;
        let container = spec.get("containers")?.items().first()?;
        let args: Vec<String> = ["command", "args"]
            .iter()
            .filter_map(|key| container.get(key))
            .flat_map(Node::texts)
            // `sh -c "exec etcd --data-dir=…"` is one argument.
            .flat_map(|arg| {
                if arg.contains(" --") {
                    arg.split_whitespace().map(str::to_owned).collect()
                } else {
                    vec![arg]
                }
            })
            .collect();
        Some(Self {
            flags: Flags::parse(&args),
            image: container.text_at(&["image"]).unwrap_or_default().to_owned(),
            volumes: volumes(spec, container),
        })
    }

    /// A path of the container as the host has it. kubeadm mounts each at its own place.
    pub(super) fn host_path(&self, path: impl AsRef<Path>) -> PathBuf {
        let path = path.as_ref();
        let outside = self
            .volumes
            .iter()
            .filter_map(|(inside, outside)| {
                Some((inside, outside, path.strip_prefix(inside).ok()?))
            })
            .max_by_key(|(inside, ..)| inside.components().count());
        match outside {
            Some((_, outside, rest)) if rest.as_os_str().is_empty() => outside.clone(),
            Some((_, outside, rest)) => outside.join(rest),
            None => path.to_owned(),
        }
    }

    /// The value of a flag that is a path, as the host has it.
    pub(super) fn path_flag(&self, name: &str) -> Option<PathBuf> {
        self.flags.get(name).map(|path| self.host_path(path))
    }

    /// The tag of the image, `v1.33.1`.
    pub(super) fn image_tag(&self) -> Option<&str> {
        let name = self.image.split('@').next()?;
        let (_, tag) = name.rsplit('/').next()?.split_once(':')?;
        Some(tag).filter(|tag| !tag.is_empty())
    }
}

fn volumes(spec: &Node, container: &Node) -> Vec<(PathBuf, PathBuf)> {
    let sources = spec.get("volumes").map(Node::items).unwrap_or_default();
    let mounts = container.get("volumeMounts").map(Node::items).unwrap_or_default();
    mounts
        .iter()
        .filter_map(|mount| {
            let name = mount.text_at(&["name"])?;
            let source = sources.iter().find(|s| s.text_at(&["name"]) == Some(name))?;
            let inside = mount.text_at(&["mountPath"])?;
            Some((inside.into(), source.text_at(&["hostPath", "path"])?.into()))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(text: &str) -> Option<StaticPod> {
        StaticPod::from_node(&Node::parse(text).unwrap())
    }

    #[test]
    fn arguments_image_and_volumes_are_read() {
        let pod = pod(concat!(
            "apiVersion: v1\nkind: Pod\nspec:\n  containers:\n  - command: [etcd]\n",
            "    args:\n    - --data-dir=/data\n    - --quota-backend-bytes=8589934592\n",
            "    image: registry.example:5000/etcd:3.6.4-0@sha256:00\n",
            "    volumeMounts:\n    - mountPath: /data\n      name: data\n",
            "  volumes:\n  - hostPath: {path: /srv/etcd}\n    name: data\n",
        ))
        .unwrap();
        assert_eq!(pod.image_tag(), Some("3.6.4-0"));
        assert_eq!(pod.flags.get("quota-backend-bytes"), Some("8589934592"));
        assert_eq!(pod.path_flag("data-dir"), Some("/srv/etcd".into()));
        assert_eq!(pod.host_path("/data/member"), Path::new("/srv/etcd/member"));
        assert_eq!(pod.host_path("/database"), Path::new("/database"));
    }

    #[test]
    fn a_command_inside_a_shell_is_split() {
        let pod = pod("spec:\n  containers:\n  - command: [sh, -c, exec etcd --data-dir=/d -v]\n");
        assert_eq!(pod.unwrap().flags.get("data-dir"), Some("/d"));
    }

    #[test]
    fn an_image_without_a_tag_has_no_version() {
        let image = |image: &str| StaticPod { image: image.to_owned(), ..StaticPod::default() };
        assert_eq!(image("registry:5000/kube-apiserver").image_tag(), None);
        assert_eq!(image("kube-apiserver:v1.33.1").image_tag(), Some("v1.33.1"));
        assert_eq!(image("").image_tag(), None);
    }

    #[test]
    fn a_manifest_of_the_wrong_shape_is_no_pod() {
        assert_eq!(pod("spec: text"), None);
        assert_eq!(pod("spec:\n  containers: {}\n"), None);
        assert_eq!(pod("[]"), None);
    }
}
