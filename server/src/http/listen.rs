//! Where the server listens: an address and a port, or a file that clients on the same machine connect to (a Unix domain socket).

use super::socket::Listener;
use socket2::{Domain, SockAddr, Socket, Type};
use std::fs::Permissions;
use std::io::{Error, ErrorKind, Result};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use tokio::net::{TcpListener, UnixListener};

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ListenOn {
    Tcp {
        host: String,
        port: u16,
    },
    Unix {
        path: PathBuf,
        /// Who may connect, as for writing to a file.
        mode: u32,
    },
}

impl std::fmt::Display for ListenOn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tcp { host, port } => write!(f, "{host} port {port}"),
            Self::Unix { path, mode: _ } => write!(f, "{}", path.display()),
        }
    }
}

impl ListenOn {
    /// The file is there until what comes with the listener is dropped.
    pub async fn bind(&self) -> Result<(Listener, Option<SocketFile>)> {
        match self {
            Self::Tcp { host, port } => {
                Ok((Listener::Tcp(TcpListener::bind((host.as_str(), *port)).await?), None))
            }
            Self::Unix { path, mode } => {
                let (listener, file) = bind_file(path, *mode)?;
                Ok((Listener::Unix(listener), Some(file)))
            }
        }
    }
}

/// Connections that wait to be accepted, as many as Linux takes by itself.
const BACKLOG: i32 = 4096;

/// Nobody can connect before the file has its permissions: `listen` comes after them.
fn bind_file(path: &Path, mode: u32) -> Result<(UnixListener, SocketFile)> {
    let address = SockAddr::unix(path).map_err(|_| {
        Error::new(ErrorKind::InvalidInput, "the path is too long for a socket: 107 bytes are the most")
    })?;
    remove_stale(path, &address)?;
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.bind(&address)?;
    let file = SocketFile::of(path)?;
    std::fs::set_permissions(path, Permissions::from_mode(mode))?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    let listener = std::os::unix::net::UnixListener::from(OwnedFd::from(socket));
    Ok((UnixListener::from_std(listener)?, file))
}

/// What a server left that had no time to go: nobody listens behind it.
fn remove_stale(path: &Path, address: &SockAddr) -> Result<()> {
    let there = match path.symlink_metadata() {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        there => there?,
    };
    if !there.file_type().is_socket() {
        return Err(Error::new(ErrorKind::AlreadyExists, "a file is there that is no socket"));
    }
    let probe = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    // Where very many wait to be accepted, a connection would wait as well.
    probe.set_nonblocking(true)?;
    match probe.connect(address) {
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => std::fs::remove_file(path),
        Err(error) if error.kind() == ErrorKind::PermissionDenied => Err(error),
        _ => Err(Error::new(ErrorKind::AddrInUse, "another process listens there")),
    }
}

/// The socket's file. Dropping it removes the file, unless another has taken its place.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    device: u64,
    inode: u64,
}

impl SocketFile {
    fn of(path: &Path) -> Result<Self> {
        let meta = path.symlink_metadata()?;
        // The working directory may change.
        let path = std::path::absolute(path)?;
        Ok(Self { path, device: meta.dev(), inode: meta.ino() })
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let is_ours = |meta: std::fs::Metadata| (meta.dev(), meta.ino()) == (self.device, self.inode);
        if self.path.symlink_metadata().is_ok_and(is_ours)
            && let Err(error) = std::fs::remove_file(&self.path)
        {
            tracing::warn!(path = %self.path.display(), %error, "failed to remove the socket");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::socket::Address;
    use super::*;
    use std::env;
    use std::os::unix::net::UnixStream;

    #[tokio::test]
    async fn files_are_taken_over_from_the_dead_and_from_nobody_else() {
        let folder = env::temp_dir().join(format!("perilune-{}-listen", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let path = folder.join("socket");
        let on = |path: &Path| ListenOn::Unix { path: path.to_owned(), mode: 0o640 };
        let refused = async |path: &Path| on(path).bind().await.unwrap_err();

        let (listener, file) = on(&path).bind().await.unwrap();
        assert_eq!(path.metadata().unwrap().mode() & 0o7777, 0o640);
        assert!(UnixStream::connect(&path).is_ok());
        assert_eq!(refused(&path).await.kind(), ErrorKind::AddrInUse);
        // Killed: the file stays, and nobody listens.
        drop(listener);
        std::mem::forget(file);
        let (listener, file) = on(&path).bind().await.unwrap();
        assert!(matches!(listener.address().unwrap(), Address::Unix(at) if at == path));
        // Somebody put another in its place.
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, "notes").unwrap();
        drop((listener, file));
        assert_eq!(std::fs::read(&path).unwrap(), b"notes");
        assert!(refused(&path).await.to_string().contains("no socket"));
        assert_eq!(std::fs::read(&path).unwrap(), b"notes");
        std::fs::remove_file(&path).unwrap();
        let bound = on(&path).bind().await.unwrap();
        drop(bound);
        assert!(!path.exists());
        let long = folder.join("x".repeat(120));
        assert!(refused(&long).await.to_string().contains("too long"));
        assert_eq!(refused(&folder.join("none/socket")).await.kind(), ErrorKind::NotFound);
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
