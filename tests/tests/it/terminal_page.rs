//! The terminal page in a real Chromium: typed into, resized, coloured, pasted into, flooded, loaded anew. The
//! steps are in `webssh/web/browser/run.mjs`; its screenshots come to `target/terminal-page`.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use fairlead_identity::digest::{hex, sha256};
use fairlead_tests::engine::{Names, docker, docker_says};
use fairlead_tests::fleet::{Fleet, Options};
use fairlead_tests::wait::wait_for;

const SOON: Duration = Duration::from_secs(30);
const BROWSERS: [&str; 3] = ["chromium", "chromium-browser", "google-chrome"];
const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../webssh/web");

fn which(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|folder| folder.join(program))
        .find(|file| file.is_file())
}

/// Node and a browser. In CI both are there.
fn tools() -> Option<(PathBuf, PathBuf)> {
    let driver = Path::new(PAGE).join("node_modules/playwright-core");
    let browser = BROWSERS.iter().find_map(|name| which(name));
    let found = which("node").zip(browser).filter(|_| driver.is_dir());
    if found.is_none() {
        assert!(
            std::env::var_os("CI").is_none(),
            "node, chromium or the page's packages are missing, and in CI nothing is left out"
        );
        // The words are counted by `./dev test`.
        eprintln!(
            "SKIPPED test terminal_page: node, chromium or the page's packages are not here (./dev test gets them)"
        );
    }
    found
}

#[tokio::test]
async fn the_page_is_a_terminal_in_a_real_browser() {
    in_a_real_browser(Options::docker(), "terminal-page").await;
}

#[tokio::test]
async fn it_is_one_at_the_region_too() {
    let options = Options::docker().terminals_at_regions();
    in_a_real_browser(options, "terminal-page-region").await;
}

async fn in_a_real_browser(options: Options, shots: &str) {
    let is_there = !options.region_env.is_empty();
    let Some((node, browser)) = tools() else {
        return;
    };
    let fleet = Fleet::start(options).await;
    let names = Names::new();
    let web = names.polite("web");
    let make = "i=0; while [ $i -lt 20 ]; do head -c 393216 /dev/urandom | base64 -w 0; i=$((i+1)); \
        done > /tmp/big";
    docker_says(&["exec", &web, "sh", "-c", make]);
    let big = docker(&["exec", &web, "cat", "/tmp/big"]).stdout;
    assert!(big.len() > 10_000_000);
    wait_for("the container is known", SOON, async || {
        let known = fleet.api.containers("box").await;
        let known = known.map_err(|no| no.to_string())?;
        let found = known.iter().any(|c| c.name == web);
        found.then_some(()).ok_or("not yet".to_owned())
    })
    .await;

    let target = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../target"));
    let shots = target.join(shots);
    std::fs::create_dir_all(&shots).unwrap();
    let mut run = tokio::process::Command::new(node);
    if is_there {
        run.env("SERVER", fleet.regions[0].web.url());
    }
    let run = run
        .arg("browser/run.mjs")
        .current_dir(PAGE)
        .env("CHROMIUM", browser)
        .env("URL", &fleet.api.url)
        .env("TOKEN", &fleet.api.token)
        .env("HOST", "box")
        .env("CONTAINER", &web)
        .env("BIG_HASH", hex(&sha256(&big)))
        .env("SHOTS", shots)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(Duration::from_secs(300), run)
        .await
        .expect("the browser's test ends")
        .expect("node can be started");
    let said = String::from_utf8_lossy(&output.stdout);
    let wrong = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{wrong}\n{said}");
    println!("{said}");
}
