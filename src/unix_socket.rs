//! Connecting to a Unix socket whose path may be long.
//!
//! The address of a Unix socket holds 107 bytes of path. Below `--path.rootfs`, and with the instance
//! directories of snaps, real paths are longer. Then the folder is opened (`O_PATH`, which reads
//! nothing) and the socket is named through it, as `/proc/self/fd/<folder>/<name>`.

use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use tokio::net::UnixStream;

/// `sun_path` without the byte that ends it (unix(7)).
const LONGEST: usize = 107;

/// Connects to the socket at `path`.
///
/// # Errors
///
/// Those of connect(2), and of open(2) for the folder of a long path.
pub async fn connect(path: &Path) -> io::Result<UnixStream> {
    if path.as_os_str().len() <= LONGEST {
        return UnixStream::connect(path).await;
    }
    let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let folder = rustix::fs::open(
        folder,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    let short = Path::new("/proc/self/fd").join(folder.as_raw_fd().to_string()).join(name);
    UnixStream::connect(short).await
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    fn long_folder() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let long = dir.path().join("a".repeat(200));
        std::fs::create_dir(&long).unwrap();
        (dir, long)
    }

    #[tokio::test]
    async fn a_socket_is_reached_by_a_path_that_no_address_can_hold() {
        let (_dir, folder) = long_folder();
        // Bound by a short name, through the same door.
        let handle = std::fs::File::open(&folder).unwrap();
        let short = format!("/proc/self/fd/{}/kine.sock:12379", handle.as_raw_fd());
        let _listener = tokio::net::UnixListener::bind(short).unwrap();
        connect(&folder.join("kine.sock:12379")).await.unwrap();
    }

    #[tokio::test]
    async fn a_socket_that_is_not_there_is_so_at_any_length() {
        let (dir, folder) = long_folder();
        let absent = [dir.path().join("s"), folder.join("s"), folder.join("x").join("s")];
        for path in absent {
            let error = connect(&path).await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::NotFound, "{}", path.display());
        }
    }
}
