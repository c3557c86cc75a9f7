//! Passing an accepted connection to another process of this machine, over a unix socket: the process
//! that gets it has the very connection, with the peer's address and everything the peer has said. What
//! becomes of the sender afterwards does not touch it.
//!
//! On the wire: one byte that names the door, with the file descriptor beside it (`SCM_RIGHTS`).

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use tokio::io::Interest;
use tokio::net::{TcpStream, UnixListener, UnixStream};
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{Mutex, mpsc};

use crate::shutdown::Shutdown;

/// Processes that pass connections at a time: one, and its successor.
const SENDERS_MAX: usize = 8;

/// How long one connection may take on its way over: its peer waits, and others behind it.
const PASS_WITHIN: Duration = Duration::from_secs(2);

/// Which of the receiver's doors a connection is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum PassedTo {
    /// Its https.
    Web = b'w',
    /// Where it listens for access servers.
    Uplinks = b'u',
}

/// The sending end. It dials when it has something to pass, so that either process may start first.
#[derive(Debug)]
pub struct Passer {
    path: PathBuf,
    stream: Mutex<Option<UnixStream>>,
}

impl Passer {
    /// Passes to whoever listens at that path.
    #[must_use]
    pub fn new(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            stream: Mutex::new(None),
        }
    }

    /// Passes a connection on. It is gone from here afterwards, also when that failed.
    ///
    /// # Errors
    /// When nobody listens there, or whoever does takes nothing (it is frozen).
    pub async fn pass(&self, tcp: TcpStream, to: PassedTo) -> io::Result<()> {
        tokio::time::timeout(PASS_WITHIN, self.hand_over(tcp, to)).await?
    }

    async fn hand_over(&self, tcp: TcpStream, to: PassedTo) -> io::Result<()> {
        let tcp = tcp.into_std()?;
        let mut stream = self.stream.lock().await;
        // A connection to a receiver that has been restarted is found out by using it.
        if let Some(known) = &*stream
            && send(known, &tcp, to).await.is_ok()
        {
            return Ok(());
        }
        *stream = None;
        let dialled = UnixStream::connect(&self.path).await?;
        send(&dialled, &tcp, to).await?;
        *stream = Some(dialled);
        Ok(())
    }
}

async fn send(stream: &UnixStream, tcp: &impl AsFd, to: PassedTo) -> io::Result<()> {
    let descriptors = [tcp.as_fd()];
    stream
        .async_io(Interest::WRITABLE, || {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut beside = SendAncillaryBuffer::new(&mut space);
            beside.push(SendAncillaryMessage::ScmRights(&descriptors));
            let door = [to as u8];
            let sent = sendmsg(
                stream,
                &[IoSlice::new(&door)],
                &mut beside,
                SendFlags::NOSIGNAL,
            )?;
            if sent == 1 {
                Ok(())
            } else {
                Err(io::ErrorKind::WriteZero.into())
            }
        })
        .await
}

/// The receiving end: a socket at `path` that the owner and the group may use.
///
/// # Errors
/// When the socket cannot be made.
pub fn listen(path: &Path) -> io::Result<UnixListener> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660))?;
    Ok(listener)
}

/// Takes what is passed until shutdown.
pub async fn receive(
    listener: UnixListener,
    web: mpsc::Sender<TcpStream>,
    uplinks: mpsc::Sender<TcpStream>,
    shutdown: Shutdown,
) {
    let places = std::sync::Arc::new(tokio::sync::Semaphore::new(SENDERS_MAX));
    loop {
        let Ok(place) = std::sync::Arc::clone(&places).acquire_owned().await else {
            return;
        };
        let accepted = tokio::select! {
            () = shutdown.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let Ok((stream, _)) = accepted else {
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            continue;
        };
        let (web, uplinks) = (web.clone(), uplinks.clone());
        let shutdown = shutdown.clone();
        // Ends with the sender's connection.
        tokio::spawn(async move {
            let _place = place;
            loop {
                let next = tokio::select! {
                    () = shutdown.cancelled() => return,
                    next = next(&stream) => next,
                };
                let (to, tcp) = match next {
                    Ok(Some(passed)) => passed,
                    Ok(None) => return,
                    Err(error) => {
                        tracing::warn!(%error, "a connection could not be taken over");
                        return;
                    }
                };
                let door = match to {
                    PassedTo::Web => &web,
                    PassedTo::Uplinks => &uplinks,
                };
                // Where there is no room it is closed: people who crowd one door must not stand in the
                // way to the other.
                match door.try_send(tcp) {
                    Ok(()) => {}
                    Err(TrySendError::Full(_)) => tracing::debug!(?to, "no room for a connection"),
                    Err(TrySendError::Closed(_)) => return,
                }
            }
        });
    }
}

/// The next connection; `None` when the sender is gone.
async fn next(stream: &UnixStream) -> io::Result<Option<(PassedTo, TcpStream)>> {
    let (door, descriptor) = stream
        .async_io(Interest::READABLE, || {
            let mut door = [0];
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut beside = RecvAncillaryBuffer::new(&mut space);
            let received = recvmsg(
                stream,
                &mut [IoSliceMut::new(&mut door)],
                &mut beside,
                RecvFlags::CMSG_CLOEXEC,
            )?;
            let mut descriptors = beside.drain().flat_map(|message| match message {
                RecvAncillaryMessage::ScmRights(descriptors) => descriptors.collect::<Vec<_>>(),
                _ => Vec::new(),
            });
            let descriptor: Option<OwnedFd> = descriptors.next();
            Ok((received.bytes.eq(&1).then_some(door[0]), descriptor))
        })
        .await?;
    let Some(door) = door else {
        return Ok(None);
    };
    let to = match door {
        b'w' => PassedTo::Web,
        b'u' => PassedTo::Uplinks,
        other => {
            let reason = format!("door {other} is not known");
            return Err(io::Error::new(io::ErrorKind::InvalidData, reason));
        }
    };
    let Some(descriptor) = descriptor else {
        let reason = "a door was named, but no connection passed";
        return Err(io::Error::new(io::ErrorKind::InvalidData, reason));
    };
    let tcp = std::net::TcpStream::from(descriptor);
    tcp.set_nonblocking(true)?;
    Ok(Some((to, TcpStream::from_std(tcp)?)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    /// A dialled connection and its accepted end.
    async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let dialled = TcpStream::connect(listener.local_addr().unwrap());
        let (dialled, accepted) = tokio::join!(dialled, listener.accept());
        (dialled.unwrap(), accepted.unwrap().0)
    }

    struct Receiver {
        web: mpsc::Receiver<TcpStream>,
        uplinks: mpsc::Receiver<TcpStream>,
        task: tokio::task::JoinHandle<()>,
        shutdown: Shutdown,
    }

    fn receiver(path: &Path) -> Receiver {
        let (to_web, web) = mpsc::channel(4);
        let (to_uplinks, uplinks) = mpsc::channel(4);
        let shutdown = Shutdown::new();
        let task = tokio::spawn(receive(
            listen(path).unwrap(),
            to_web,
            to_uplinks,
            shutdown.clone(),
        ));
        Receiver {
            web,
            uplinks,
            task,
            shutdown,
        }
    }

    #[tokio::test]
    async fn a_connection_is_passed_with_what_was_said_on_it_and_from_whom() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("front.sock");
        let mut receiver = receiver(&path);
        let passer = Passer::new(&path);
        for (to, word) in [(PassedTo::Web, b"web"), (PassedTo::Uplinks, b"upl")] {
            let (mut dialled, accepted) = pair().await;
            dialled.write_all(word).await.unwrap();
            let mut peeked = [0; 3];
            accepted.peek(&mut peeked).await.unwrap();
            passer.pass(accepted, to).await.unwrap();
            let passed = match to {
                PassedTo::Web => receiver.web.recv().await,
                PassedTo::Uplinks => receiver.uplinks.recv().await,
            };
            let mut passed = passed.unwrap();
            assert_eq!(passed.peer_addr().unwrap(), dialled.local_addr().unwrap());
            let mut said = [0; 3];
            passed.read_exact(&mut said).await.unwrap();
            assert_eq!(&said, word);
            passed.write_all(b"yes").await.unwrap();
            dialled.read_exact(&mut said).await.unwrap();
            assert_eq!(&said, b"yes");
        }
    }

    #[tokio::test]
    async fn a_receiver_that_was_restarted_is_found_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("front.sock");
        let passer = Passer::new(&path);
        let (_dialled, accepted) = pair().await;
        assert!(passer.pass(accepted, PassedTo::Web).await.is_err());
        for _ in 0..3 {
            let mut receiver = receiver(&path);
            let (dialled, accepted) = pair().await;
            passer.pass(accepted, PassedTo::Web).await.unwrap();
            let passed = receiver.web.recv().await.unwrap();
            assert_eq!(passed.peer_addr().unwrap(), dialled.local_addr().unwrap());
            receiver.shutdown.cancel();
            receiver.task.await.unwrap();
        }
    }

    #[tokio::test]
    async fn a_crowd_at_one_door_does_not_stand_in_the_way_to_the_other() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("front.sock");
        let mut receiver = receiver(&path);
        let passer = Passer::new(&path);
        // Nobody takes these: the channel has room for four.
        for _ in 0..20 {
            let (_dialled, accepted) = pair().await;
            passer.pass(accepted, PassedTo::Web).await.unwrap();
        }
        let (dialled, accepted) = pair().await;
        passer.pass(accepted, PassedTo::Uplinks).await.unwrap();
        let passed = receiver.uplinks.recv().await.unwrap();
        assert_eq!(passed.peer_addr().unwrap(), dialled.local_addr().unwrap());
    }

    #[tokio::test]
    async fn a_receiver_that_is_frozen_is_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("front.sock");
        let _frozen = listen(&path).unwrap();
        let passer = Passer::new(&path);
        let error = loop {
            let (_dialled, accepted) = pair().await;
            if let Err(error) = passer.pass(accepted, PassedTo::Web).await {
                break error;
            }
        };
        assert_eq!(error.kind(), io::ErrorKind::TimedOut, "{error}");
    }
}
