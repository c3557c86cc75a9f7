//! A repository's web server on loopback that can misbehave: missing, changed, cut, slow, endless.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// How a server treats one path.
#[derive(Debug, Clone)]
pub(super) enum Fault {
    /// There is no such thing.
    NotFound,
    /// A login page, with a good status.
    WebPage,
    /// The length is told, and half of it comes.
    Truncated,
    /// One byte, and then long nothing.
    Slow,
    /// The first byte is another.
    Changed,
    /// It is answered, with that date.
    Date(&'static str),
    /// It never ends, and its length is not told.
    Endless,
}

/// A web server for a repository, on loopback.
pub(super) struct Server {
    port: u16,
    stopped: Arc<AtomicBool>,
}

impl Server {
    /// Serves a folder; paths that end so are treated so.
    pub(super) fn start(folder: PathBuf, faults: Vec<(&'static str, Fault)>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let stopped = Arc::new(AtomicBool::new(false));
        let ended = Arc::clone(&stopped);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if ended.load(Ordering::SeqCst) {
                    return;
                }
                let (folder, faults, ended) = (folder.clone(), faults.clone(), Arc::clone(&ended));
                std::thread::spawn(move || {
                    if let Ok(stream) = stream {
                        // The client may leave whenever it likes.
                        let _ = answer(stream, &folder, &faults, &ended);
                    }
                });
            }
        });
        Self { port, stopped }
    }

    pub(super) fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(("127.0.0.1", self.port));
    }
}

fn answer(
    stream: TcpStream,
    folder: &Path,
    faults: &[(&'static str, Fault)],
    ended: &AtomicBool,
) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let request = lines.next().transpose()?.unwrap_or_default();
    for line in lines {
        if line?.is_empty() {
            break;
        }
    }
    let mut stream = stream;
    let path = request.split(' ').nth(1).unwrap_or("/").to_owned();
    let fault = faults
        .iter()
        .find(|(end, _)| path.ends_with(end))
        .map(|(_, fault)| fault);
    let file = folder.join(path.trim_start_matches('/'));
    let mut body = fs::read(&file).unwrap_or_default();
    let mut status = if file.is_file() {
        "200 OK"
    } else {
        "404 Not Found"
    };
    match fault {
        Some(Fault::NotFound) => status = "404 Not Found",
        Some(Fault::WebPage) => {
            body = b"<!DOCTYPE html>\n<html><body>Welcome to our hotel</body></html>\n".to_vec();
        }
        Some(Fault::Changed) => body[0] ^= 1,
        Some(Fault::Endless) => {
            stream.write_all(b"HTTP/1.0 200 OK\r\nConnection: close\r\n\r\n")?;
            while !ended.load(Ordering::SeqCst) {
                stream.write_all(&[b'x'; 65536])?;
            }
            return Ok(());
        }
        _ => {}
    }
    if let Some(Fault::Date(date)) = fault {
        write!(stream, "HTTP/1.0 200 OK\r\nDate: {date}\r\n\r\n")?;
        return Ok(());
    }
    write!(
        stream,
        "HTTP/1.0 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    )?;
    if request.starts_with("HEAD ") {
        return Ok(());
    }
    match fault {
        Some(Fault::Truncated) => stream.write_all(&body[..body.len() / 2]),
        Some(Fault::Slow) => {
            stream.write_all(&body[..1])?;
            // Until the other side has waited long enough.
            stream.read(&mut [0]).map(drop)
        }
        _ => stream.write_all(&body),
    }
}

/// openssl as a web server for a folder, with a certificate that nobody signed.
pub(super) struct TlsServer {
    child: Child,
    pub(super) port: u16,
    /// As curl takes it.
    pub(super) pin: String,
    pub(super) certificate_sha256: String,
    _claimed: fairlead_tests::ports::Port,
}

impl TlsServer {
    pub(super) fn start(folder: &Path) -> Self {
        let made = Command::new("sh")
            .arg("-c")
            .arg(
                "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 \
                 -subj /CN=localhost -keyout web.key -out web.pem 2>/dev/null && \
                 openssl x509 -in web.pem -pubkey -noout | openssl pkey -pubin -outform DER | \
                 openssl dgst -sha256 -binary | openssl base64 && \
                 openssl x509 -in web.pem -outform DER | sha256sum | cut -d ' ' -f 1",
            )
            .current_dir(folder)
            .output()
            .unwrap();
        assert!(made.status.success());
        let made = String::from_utf8(made.stdout).unwrap();
        let (pin, certificate_sha256) = made.trim().split_once('\n').unwrap();
        let claimed = fairlead_tests::ports::Port::claim();
        let port = claimed.number;
        let child = Command::new("openssl")
            .args([
                "s_server", "-quiet", "-WWW", "-key", "web.key", "-cert", "web.pem",
            ])
            .args(["-accept", &format!("127.0.0.1:{port}")])
            .current_dir(folder)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let began = Instant::now();
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(
                began.elapsed() < Duration::from_secs(10),
                "openssl does not listen"
            );
            std::thread::yield_now();
        }
        Self {
            child,
            port,
            pin: format!("sha256//{pin}"),
            certificate_sha256: certificate_sha256.to_owned(),
            _claimed: claimed,
        }
    }
}

impl Drop for TlsServer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
