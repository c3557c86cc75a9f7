//! A pseudo-terminal of the agent's own, for a shell on the host itself: what is read of it and written to it,
//! its size. Knows nothing of commands and streams.
//!
//! Its far end is held open here until it is dropped: between two programs on it nobody reads an end that is
//! none. So whoever reads has to learn elsewhere that the program has ended ([`Pty::rest`] is then the last).

use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, fcntl_getfl, fcntl_setfl, open};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};
use tokio::net::unix::pipe::{Receiver, Sender};

/// What is read at once.
const PIECE_BYTES: usize = 16 * 1024;

/// Both ends of a pseudo-terminal.
#[derive(Debug)]
pub struct Pty {
    /// The near end, once for each direction. A pipe's types do for it: what they do is to wait until the kernel
    /// lets us read or write. Only their `try_` calls are used: a short read of a terminal is not its last.
    output: Receiver,
    input: Sender,
    far: OwnedFd,
    path: PathBuf,
}

impl Pty {
    /// Makes one of that size.
    ///
    /// # Errors
    /// When this machine has none left.
    pub fn open(columns: u16, rows: u16) -> io::Result<Self> {
        let near = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
        grantpt(&near)?;
        unlockpt(&near)?;
        let name = ptsname(&near, Vec::new())?;
        let path = Path::new(OsStr::from_bytes(name.as_bytes())).to_owned();
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
        let far = open(&path, flags, Mode::empty())?;
        fcntl_setfl(&near, fcntl_getfl(&near)? | OFlags::NONBLOCK)?;
        let pty = Self {
            input: Sender::from_owned_fd_unchecked(near.try_clone()?)?,
            output: Receiver::from_owned_fd_unchecked(near)?,
            far,
            path,
        };
        if columns > 0 && rows > 0 {
            pty.resize(columns, rows)?;
        }
        Ok(pty)
    }

    /// The far end, once more: for a program's input or output.
    ///
    /// # Errors
    /// When there are no more files to be had.
    pub fn far(&self) -> io::Result<OwnedFd> {
        self.far.try_clone()
    }

    /// The far end's name.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Gives it another size; what runs on it is told.
    ///
    /// # Errors
    /// The kernel's.
    pub fn resize(&self, columns: u16, rows: u16) -> io::Result<()> {
        let size = Winsize {
            ws_col: columns,
            ws_row: rows,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        Ok(tcsetwinsize(&self.far, size)?)
    }

    /// Waits for output.
    ///
    /// # Errors
    /// The kernel's.
    pub async fn read(&self) -> io::Result<Vec<u8>> {
        let mut piece = vec![0; PIECE_BYTES];
        loop {
            self.output.readable().await?;
            match self.output.try_read(&mut piece) {
                Ok(read) => {
                    piece.truncate(read);
                    return Ok(piece);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// A piece of the output that is there now; `None` when there is no more.
    #[must_use]
    pub fn rest(&self) -> Option<Vec<u8>> {
        let mut piece = vec![0; PIECE_BYTES];
        let read = rustix::io::read(&self.output, &mut piece[..]).ok()?;
        piece.truncate(read);
        (read > 0).then_some(piece)
    }

    /// Writes all of it, as fast as it is read there.
    ///
    /// # Errors
    /// The kernel's.
    pub async fn write(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            bytes = &bytes[self.write_some(bytes).await?..];
        }
        Ok(())
    }

    /// Writes as much as there is room for, once there is some. Dropped before that, it has written nothing.
    ///
    /// # Errors
    /// The kernel's.
    pub async fn write_some(&self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            self.input.writable().await?;
            match self.input.try_write(bytes) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                done => return done,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_typed_arrives_and_what_is_said_comes_back_in_that_size() {
        let pty = Pty::open(91, 33).unwrap();
        let mut child = std::process::Command::new("sh")
            .args(["-c", "read line; stty size; echo \"got $line\""])
            .stdin(pty.far().unwrap())
            .stdout(pty.far().unwrap())
            .stderr(pty.far().unwrap())
            .spawn()
            .unwrap();
        pty.write(b"a line\r").await.unwrap();
        let mut all = Vec::new();
        while !String::from_utf8_lossy(&all).contains("got a line") {
            all.extend(pty.read().await.unwrap());
        }
        assert!(String::from_utf8_lossy(&all).contains("33 91"));
        assert!(child.wait().unwrap().success());
        assert_eq!(pty.rest(), None);
        assert!(pty.path().starts_with("/dev/pts"));
    }

    #[tokio::test]
    async fn what_is_pasted_waits_for_a_program_that_reads_it_late() {
        let pty = Pty::open(80, 25).unwrap();
        let mut child = std::process::Command::new("sh")
            .args([
                "-c",
                "stty raw -echo; echo ready; sleep 0.3; head -c 1000000 | wc -c",
            ])
            .stdin(pty.far().unwrap())
            .stdout(pty.far().unwrap())
            .stderr(pty.far().unwrap())
            .spawn()
            .unwrap();
        let mut all = String::new();
        while !all.contains("ready") {
            all.push_str(&String::from_utf8_lossy(&pty.read().await.unwrap()));
        }
        pty.write(&vec![b'x'; 1_000_000]).await.unwrap();
        while !all.contains("1000000") {
            all.push_str(&String::from_utf8_lossy(&pty.read().await.unwrap()));
        }
        assert!(child.wait().unwrap().success());
    }
}
