//! The Unix socket on which the node's own check command asks, whatever guards the port.
//!
//! It serves health and status only. Anybody on the node may ask: nothing secret is served, and a
//! monitoring user has no other way in when the port wants a certificate or a password. Who wants
//! that narrower gives its directory another mode.

use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::{Path, PathBuf};

use tokio::net::UnixListener;

/// A listening socket; its file goes away with it.
#[derive(Debug)]
pub struct Socket {
    pub(super) listener: UnixListener,
    path: PathBuf,
}

/// Listens on `path`; makes its directory if that is the only one missing.
///
/// A file that a dead agent left behind is replaced; an agent that answers there keeps it.
///
/// # Errors
///
/// When an agent answers there already, something else is there, or the kernel refuses.
pub fn bind(path: &Path) -> io::Result<Socket> {
    if let Some(folder) = path.parent()
        && let Err(error) = std::fs::create_dir(folder)
        && error.kind() != io::ErrorKind::AlreadyExists
    {
        return Err(io::Error::new(error.kind(), format!("{}: {error}", folder.display())));
    }
    if let Ok(there) = std::fs::symlink_metadata(path) {
        if !there.file_type().is_socket() {
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, "something else is there"));
        }
        if StdUnixStream::connect(path).is_ok() {
            return Err(io::Error::new(io::ErrorKind::AddrInUse, "another agent answers there"));
        }
        std::fs::remove_file(path)?;
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o666))?;
    Ok(Socket { listener, path: path.to_owned() })
}

impl Drop for Socket {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.path) {
            tracing::debug!(%error, path = %self.path.display(), "the socket stays behind");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_socket_left_behind_is_replaced_one_in_use_is_not_and_the_file_goes_at_the_end() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run/agent.sock");
        std::fs::create_dir(path.parent().unwrap()).unwrap();
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(path.exists(), "as a killed agent leaves it");
        let socket = bind(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o666);
        assert_eq!(bind(&path).unwrap_err().to_string(), "another agent answers there");
        drop(socket);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn a_missing_directory_is_made_and_a_file_that_is_no_socket_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        drop(bind(&folder.path().join("run/agent.sock")).unwrap());
        let deep = bind(&folder.path().join("a/b/agent.sock")).unwrap_err().to_string();
        assert!(deep.contains("/a/b: No such file"), "{deep}");
        let file = folder.path().join("file");
        std::fs::write(&file, "precious").unwrap();
        assert_eq!(bind(&file).unwrap_err().to_string(), "something else is there");
        assert_eq!(std::fs::read(&file).unwrap(), b"precious");
    }
}
