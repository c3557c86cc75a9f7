//! The handoff socket: where instances and the tool on the host talk to the supervisor.
//!
//! It lies in a directory that only its owner can enter, and whoever connects must be that user or root.
//! Who an instance is its pid says, which the kernel vouches for. Nothing here blocks: what a peer does not
//! read waits, up to a bound, and a peer beyond that bound is cut off.

use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use fairlead_daemon::files;

use crate::handoff::words::{FromSupervisor, LINE_BYTES_MAX, ToSupervisor};

/// Connections at a time: a few instances, and somebody who asks.
const PEERS_MAX: usize = 16;
/// What may wait for a peer that does not read.
const UNREAD_BYTES_MAX: usize = 1024 * 1024;

/// One connection.
pub(super) struct Peer {
    stream: UnixStream,
    /// The process at the other end.
    pub(super) pid: u32,
    /// Told which instance it is.
    pub(super) greeted: bool,
    read: Vec<u8>,
    unsent: Vec<u8>,
    gone: bool,
}

/// The socket and those who are connected.
pub(super) struct Socket {
    listener: UnixListener,
    pub(super) peers: Vec<Peer>,
}

impl Socket {
    /// Makes the directory and listens in it.
    pub(super) fn listen(path: &Path) -> io::Result<Self> {
        if let Some(dir) = path.parent() {
            files::private_dir(dir)?;
        }
        match std::fs::remove_file(path) {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        let listener = UnixListener::bind(path)?;
        listener.set_nonblocking(true)?;
        Ok(Self {
            listener,
            peers: Vec::new(),
        })
    }

    /// What is to be waited for; whether there is something to send as well.
    pub(super) fn watched(&self) -> impl Iterator<Item = (BorrowedFd<'_>, bool)> {
        let peers = self
            .peers
            .iter()
            .map(|peer| (peer.stream.as_fd(), !peer.unsent.is_empty()));
        std::iter::once((self.listener.as_fd(), false)).chain(peers)
    }

    /// Takes in who knocks, sends what waits, and gives what was said, with its speaker's place in `peers`.
    pub(super) fn turn(&mut self) -> Vec<(u32, ToSupervisor)> {
        self.peers.retain(|peer| !peer.gone);
        while let Ok((stream, _)) = self.listener.accept() {
            match Peer::new(stream) {
                Some(peer) if self.peers.len() < PEERS_MAX => self.peers.push(peer),
                _ => tracing::warn!("somebody was turned away from the handoff socket"),
            }
        }
        let mut said = Vec::new();
        for peer in &mut self.peers {
            peer.flush();
            let lines = peer.lines();
            said.extend(lines.into_iter().map(|line| (peer.pid, line)));
        }
        said
    }

    /// Says something to a process; whether it is connected.
    pub(super) fn tell(&mut self, pid: u32, word: &FromSupervisor) -> bool {
        // The newest: an older connection of the same process has broken.
        let found = self.peers.iter_mut().rev();
        match found.into_iter().find(|peer| peer.pid == pid && !peer.gone) {
            Some(peer) => {
                peer.tell(word);
                true
            }
            None => false,
        }
    }
}

impl Peer {
    fn new(stream: UnixStream) -> Option<Self> {
        let peer = rustix::net::sockopt::socket_peercred(&stream).ok()?;
        let own = rustix::process::geteuid();
        if peer.uid != own && !peer.uid.is_root() {
            return None;
        }
        stream.set_nonblocking(true).ok()?;
        Some(Self {
            stream,
            pid: u32::try_from(peer.pid.as_raw_nonzero().get()).ok()?,
            greeted: false,
            read: Vec::new(),
            unsent: Vec::new(),
            gone: false,
        })
    }

    pub(super) fn tell(&mut self, word: &FromSupervisor) {
        let Ok(mut line) = serde_json::to_vec(word) else {
            return;
        };
        line.push(b'\n');
        if self.unsent.len() + line.len() > UNREAD_BYTES_MAX {
            tracing::error!(
                pid = self.pid,
                "does not read what it is told; it is cut off"
            );
            self.gone = true;
            return;
        }
        self.unsent.extend_from_slice(&line);
        self.flush();
    }

    fn flush(&mut self) {
        while !self.unsent.is_empty() {
            match self.stream.write(&self.unsent) {
                Ok(0) => break,
                Ok(sent) => drop(self.unsent.drain(..sent)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => {
                    self.gone = true;
                    return;
                }
            }
        }
    }

    fn lines(&mut self) -> Vec<ToSupervisor> {
        let mut chunk = [0; 4096];
        loop {
            match self.stream.read(&mut chunk) {
                Ok(0) => {
                    self.gone = true;
                    break;
                }
                Ok(read) => self.read.extend_from_slice(&chunk[..read]),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(_) => {
                    self.gone = true;
                    break;
                }
            }
            if self.read.len() > 4 * LINE_BYTES_MAX {
                break;
            }
        }
        let mut lines = Vec::new();
        while let Some(end) = self.read.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.read.drain(..=end).collect();
            match serde_json::from_slice(&line) {
                Ok(word) => lines.push(word),
                // A later version's word: what it is about is not for this supervisor.
                Err(error) => tracing::warn!(pid = self.pid, %error, "a word that is not known"),
            }
        }
        if self.read.len() > LINE_BYTES_MAX {
            tracing::warn!(pid = self.pid, "a line without an end; it is cut off");
            self.gone = true;
        }
        lines
    }
}
