//! The terminal page in a real Chromium: typed, resized, coloured, pasted, flooded, loaded anew. Needs
//! `chromium`, and `npm ci` in `webssh/web` (`./dev test` sees to both); without them it fails and says so.

use std::process::Stdio;
use std::time::Duration;

use fairlead_identity::digest::{hex, sha256};
use fairlead_tests::engine::{Names, docker, docker_says};
use fairlead_tests::fleet::{Fleet, Options};
use fairlead_tests::wait::wait_for;

const SOON: Duration = Duration::from_secs(30);

#[tokio::test]
async fn the_page_is_a_terminal_in_a_real_browser() {
    let fleet = Fleet::start(Options::docker()).await;
    let names = Names::new();
    let web = names.polite("web");
    let make = "i=0; while [ $i -lt 20 ]; do head -c 393216 /dev/urandom | base64 -w 0; i=$((i+1)); \
        done > /tmp/big";
    docker_says(&["exec", &web, "sh", "-c", make]);
    let big = docker(&["exec", &web, "cat", "/tmp/big"]).stdout;
    wait_for("the container is known", SOON, async || {
        let known = fleet
            .api
            .containers("box")
            .await
            .map_err(|no| no.to_string())?;
        if known.iter().any(|c| c.name == web) {
            Ok(())
        } else {
            Err("not yet".to_owned())
        }
    })
    .await;

    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../webssh/web");
    let shots = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/terminal-page");
    std::fs::create_dir_all(shots).unwrap();
    let run = tokio::process::Command::new("node")
        .arg("browser/run.mjs")
        .current_dir(folder)
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
        .expect("node is installed");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let wrong = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{wrong}\n{said}");
    println!("{said}");
}
