//! `cp`: files into and out of containers, as tar archives over the command's stream.

use std::io::{self, Read};
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::mpsc;

use bytes::Bytes;
use fairlead_api::types::{Action, Command};
use fairlead_protocol::codes;
use tar::EntryType;

use super::Context;
use super::act::{self, Target};
use super::attach::{Piece, attached, read_all};
use crate::archive::unpack::{self, UnpackError};
use crate::archive::{self, Packed};
use crate::args::Cp;
use crate::client::Client;
use crate::exit::{Exit, Failure, short};
use crate::output::{clean, human, say};

/// Pieces of an archive that wait to be unpacked.
const PIECES: usize = 16;

/// One side of a copy.
#[derive(Debug, PartialEq, Eq)]
enum Side {
    /// A path in a container.
    Remote(Target, String),
    /// A path here.
    Local(String),
    /// A tar archive on standard input or output.
    Pipe,
}

/// Reads a side: `HOST/NAME:PATH`, a path, or `-`.
fn side(text: &str) -> Result<Side, Failure> {
    if text == "-" {
        return Ok(Side::Pipe);
    }
    match text.split_once(':') {
        Some((container, path)) if !container.starts_with(['/', '.']) && !container.is_empty() => {
            let path = path.trim_start_matches('/');
            Ok(Side::Remote(
                act::target(container, None)?,
                format!("/{path}"),
            ))
        }
        _ if text.is_empty() => Err(Failure::usage("a path is empty")),
        _ => Ok(Side::Local(text.to_owned())),
    }
}

/// `fairlead cp`
pub(crate) async fn cp(context: &Context, args: Cp) -> Result<Exit, Failure> {
    let copy = Copy {
        context,
        client: context.client()?,
        deadline: args.deadline,
    };
    match (side(&args.source)?, side(&args.destination)?) {
        (Side::Local(path), Side::Remote(target, to)) => copy.local_in(&path, target, &to).await,
        (Side::Pipe, Side::Remote(target, to)) => {
            let packed = on_thread(|| archive::keep(io::stdin().lock()))
                .await?
                .map_err(|e| Failure::local("cannot keep the archive from standard input", &e))?;
            copy.send(packed, target, to).await
        }
        (Side::Remote(target, from), Side::Pipe) => copy.to_stdout(target, from).await,
        (Side::Remote(target, from), Side::Local(path)) => copy.to_path(target, from, path).await,
        (Side::Remote(..), Side::Remote(..)) => Err(Failure::usage(
            "one side of a copy is here: copy out first, then in",
        )),
        _ => Err(Failure::usage(
            "one side must be in a container: HOST/NAME:PATH",
        )),
    }
}

struct Copy<'a> {
    context: &'a Context,
    client: Client,
    deadline: Option<std::time::Duration>,
}

/// What a path in a container is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum There {
    Folder,
    File,
    Nothing,
}

impl Copy<'_> {
    async fn local_in(&self, source: &str, target: Target, to: &str) -> Result<Exit, Failure> {
        let path = Path::new(source);
        let meta = std::fs::symlink_metadata(path)
            .map_err(|e| Failure::new(Exit::NotFound, format!("cannot read {source}: {e}")))?;
        let contents = source.ends_with("/.") || source == ".";
        let own_name = std::fs::canonicalize(path)
            .ok()
            .filter(|_| source.ends_with(".."))
            .as_deref()
            .unwrap_or(path)
            .file_name()
            .map(|name| name.to_string_lossy().into_owned())
            .unwrap_or_default();
        let there = self.what_is(&target, to).await?;
        let (folder, name) = place(to, there, meta.is_dir(), contents, &own_name)?;
        let source = path.to_owned();
        let packed = on_thread(move || archive::pack(&source, &name))
            .await?
            .map_err(|e| Failure::local("cannot pack", &e))?;
        self.send(packed, target, folder).await
    }

    /// Sends an archive to be unpacked in a folder of the container.
    async fn send(&self, packed: Packed, target: Target, path: String) -> Result<Exit, Failure> {
        for line in &packed.left_out {
            say(&format!("left out: {}", clean(line)));
        }
        let complete = packed.left_out.is_empty();
        let action = Action::CopyIn {
            container: target.name,
            path: path.clone(),
            size: packed.size,
            sha256: packed.sha256,
        };
        let mut request = act::request(target.host, action, self.deadline)?;
        request.attach = true;
        let id = request.id.clone().unwrap_or_default();
        self.context.open.add(&id);
        let input = Some(read_all(packed.file));
        let command = attached(self.context, &self.client, request, input, &mut |_| {
            Ok(ControlFlow::Continue(()))
        })
        .await;
        self.context.open.remove(&id);
        let command = command?;
        self.report(
            &command,
            &format!("{} copied to {path}", human::bytes(packed.size)),
        )?;
        done(complete)
    }

    fn report(&self, command: &Command, what: &str) -> Result<(), Failure> {
        if let Some(failure) = Failure::of_command(command) {
            return Err(failure);
        }
        self.context.out.data(command, |command| {
            format!(
                "{}  {}   command {}\n",
                clean(&crate::exit::subject(command)),
                clean(what),
                short(&command.id)
            )
        })
    }

    /// What is at `path`: asked by beginning to copy it out. The engine would otherwise replace a
    /// whole folder by a file of its name.
    async fn what_is(&self, target: &Target, path: &str) -> Result<There, Failure> {
        if path.ends_with('/') || path.ends_with("/.") {
            return Ok(There::Folder);
        }
        match self.first_entry(target, path).await? {
            Some(EntryType::Directory) => Ok(There::Folder),
            // A link: what counts is where it leads.
            Some(EntryType::Symlink) => {
                match self.first_entry(target, &format!("{path}/.")).await? {
                    Some(EntryType::Directory) => Ok(There::Folder),
                    _ => Ok(There::File),
                }
            }
            Some(_) => Ok(There::File),
            None => Ok(There::Nothing),
        }
    }

    async fn first_entry(&self, target: &Target, path: &str) -> Result<Option<EntryType>, Failure> {
        let action = Action::CopyOut {
            container: target.name.clone(),
            path: path.to_owned(),
        };
        let mut request = act::request(target.host.clone(), action, self.deadline)?;
        request.attach = true;
        let mut block = Vec::new();
        let command = attached(
            self.context,
            &self.client,
            request,
            None,
            &mut |piece| match piece {
                Piece::Out(bytes) if block.len() < 512 => {
                    block.extend_from_slice(&bytes);
                    Ok(if block.len() < 512 {
                        ControlFlow::Continue(())
                    } else {
                        ControlFlow::Break(())
                    })
                }
                _ => Ok(ControlFlow::Continue(())),
            },
        )
        .await?;
        if block.len() >= 512 {
            return archive::first_entry(&block).map(Some).ok_or_else(|| {
                Failure::new(Exit::Failed, format!("{path}: the host sent no archive"))
            });
        }
        match Failure::of_command(&command) {
            Some(failure) if is_missing_path(&failure) => Ok(None),
            Some(failure) => Err(failure),
            None => Ok(None),
        }
    }

    async fn to_stdout(&self, target: Target, path: String) -> Result<Exit, Failure> {
        if self.context.out.stdout_tty {
            return Err(Failure::usage("an archive does not belong on a terminal")
                .hint("fairlead cp CONTAINER:PATH - > archive.tar"));
        }
        let mut request = act::request(
            target.host,
            Action::CopyOut {
                container: target.name,
                path,
            },
            self.deadline,
        )?;
        request.attach = true;
        let out = self.context.out;
        let command = attached(
            self.context,
            &self.client,
            request,
            None,
            &mut |piece| match piece {
                Piece::Out(bytes) => out.write(&bytes).map(ControlFlow::Continue),
                Piece::Err(_) => Ok(ControlFlow::Continue(())),
            },
        )
        .await?;
        Failure::of_command(&command).map_or(Ok(Exit::Ok), Err)
    }

    async fn to_path(&self, target: Target, from: String, to: String) -> Result<Exit, Failure> {
        let mut request = act::request(
            target.host,
            Action::CopyOut {
                container: target.name,
                path: from.clone(),
            },
            self.deadline,
        )?;
        request.attach = true;
        let (pieces, incoming) = mpsc::sync_channel::<Bytes>(PIECES);
        let destination = to.clone();
        let unpacking = tokio::task::spawn_blocking(move || {
            let mut incoming = Incoming {
                pieces: incoming,
                rest: Bytes::new(),
            };
            let unpacked = unpack::unpack(&mut incoming, &destination)?;
            // What pads the archive's end is taken too, so that the command comes to its end.
            io::copy(&mut incoming, &mut io::sink()).map_err(UnpackError::Read)?;
            Ok::<_, UnpackError>(unpacked)
        });
        let stopped = || Failure::new(Exit::Failed, "unpacking stopped");
        let command = {
            // Dropped with this block, so that the unpacking sees the end.
            let pieces = pieces;
            attached(self.context, &self.client, request, None, &mut |piece| {
                if let Piece::Out(bytes) = piece
                    && pieces.send(bytes).is_err()
                {
                    return Ok(ControlFlow::Break(()));
                }
                Ok(ControlFlow::Continue(()))
            })
            .await
        };
        let unpacked = unpacking.await.map_err(|_| stopped())?;
        let command = command?;
        // What the host says comes first: a broken archive is then only its consequence.
        if command.is_final
            && let Some(failure) = Failure::of_command(&command)
        {
            return Err(failure);
        }
        let unpacked = unpacked
            .map_err(|e| Failure::new(Exit::Failed, format!("{from} was not copied: {e}")))?;
        for line in &unpacked.left_out {
            say(&format!("left out: {}", clean(line)));
        }
        self.report(
            &command,
            &format!(
                "{from}: {}, {} copied to {to}",
                human::count(unpacked.files, "file"),
                human::bytes(unpacked.bytes)
            ),
        )?;
        done(unpacked.left_out.is_empty())
    }
}

fn done(complete: bool) -> Result<Exit, Failure> {
    if complete {
        Ok(Exit::Ok)
    } else {
        Err(Failure::new(
            Exit::Failed,
            "not all was copied; what was left out is named above",
        ))
    }
}

/// Whether the host says that there is no such path (the container itself is there).
fn is_missing_path(failure: &Failure) -> bool {
    let message = failure.message.to_ascii_lowercase();
    failure.code != codes::CONTAINER_NOT_FOUND
        && [
            "no such file",
            "could not find the file",
            "not found",
            "no such path",
        ]
        .iter()
        .any(|words| message.contains(words))
}

/// The folder that takes the archive, and the name of the archive's top (empty: contents only).
fn place(
    to: &str,
    there: There,
    source_is_dir: bool,
    contents: bool,
    own_name: &str,
) -> Result<(String, String), Failure> {
    let trimmed = to.trim_end_matches("/.").trim_end_matches('/');
    let (parent, last) = trimmed.rsplit_once('/').unwrap_or(("", trimmed));
    let parent = if parent.is_empty() { "/" } else { parent };
    let folder = if trimmed.is_empty() { "/" } else { trimmed };
    match there {
        There::Folder if contents => Ok((folder.to_owned(), String::new())),
        There::Folder => Ok((folder.to_owned(), own_name.to_owned())),
        There::File if source_is_dir => Err(Failure::new(
            Exit::Conflict,
            format!("{to} is a file, and a folder is to be copied"),
        )),
        There::File | There::Nothing => Ok((parent.to_owned(), last.to_owned())),
    }
}

async fn on_thread<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Failure> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|_| Failure::new(Exit::Failed, "the archive's thread ended early"))
}

/// The pieces of an archive as a reader.
struct Incoming {
    pieces: mpsc::Receiver<Bytes>,
    rest: Bytes,
}

impl Read for Incoming {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.rest.is_empty() {
            match self.pieces.recv() {
                Ok(piece) => self.rest = piece,
                Err(_) => return Ok(0),
            }
        }
        let length = buffer.len().min(self.rest.len());
        buffer[..length].copy_from_slice(&self.rest.split_to(length));
        Ok(length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sides() {
        let remote = |host: Option<&str>, name: &str, path: &str| {
            Side::Remote(
                Target {
                    host: host.map(str::to_owned),
                    name: name.to_owned(),
                },
                path.to_owned(),
            )
        };
        assert_eq!(
            side("box/web:/etc/x").unwrap(),
            remote(Some("box"), "web", "/etc/x")
        );
        assert_eq!(side("web:etc").unwrap(), remote(None, "web", "/etc"));
        assert_eq!(side("./web:1").unwrap(), Side::Local("./web:1".into()));
        assert_eq!(side("/a:b").unwrap(), Side::Local("/a:b".into()));
        assert_eq!(side("-").unwrap(), Side::Pipe);
        assert!(side("").is_err());
        assert!(side("a/b/c:/x").is_err());
    }

    #[test]
    fn a_copy_lands_where_docker_would_put_it() {
        let folder = There::Folder;
        for (to, there, is_dir, contents, expected) in [
            ("/etc", folder, false, false, ("/etc", "file")),
            ("/etc/", folder, false, false, ("/etc", "file")),
            ("/", folder, false, false, ("/", "file")),
            ("/etc/new", There::Nothing, false, false, ("/etc", "new")),
            ("/new", There::Nothing, true, false, ("/", "new")),
            ("/etc/passwd", There::File, false, false, ("/etc", "passwd")),
            ("/srv", folder, true, true, ("/srv", "")),
            ("/srv/.", folder, true, true, ("/srv", "")),
        ] {
            let (path, name) = place(to, there, is_dir, contents, "file").unwrap();
            assert_eq!((path.as_str(), name.as_str()), expected, "{to}");
        }
        assert_eq!(
            place("/etc/passwd", There::File, true, false, "d")
                .unwrap_err()
                .exit,
            Exit::Conflict
        );
    }
}
