//! The terminal page in a real Chromium: typed into, resized, coloured, pasted into, flooded, loaded anew. The
//! steps are in `webssh/web/browser`; its screenshots come to `target/terminal-page`.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use fairlead_api::types::Permission;
use fairlead_identity::digest::{hex, sha256};
use fairlead_tests::client::Api;
use fairlead_tests::engine::{Names, docker, docker_says};
use fairlead_tests::fleet::{Fleet, Options};
use fairlead_tests::wait::wait_for;

use crate::terminal::audit;

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

/// `webssh/web/browser/restart.mjs`.
#[tokio::test]
async fn it_comes_back_after_its_servers_restart() {
    if tools().is_none() {
        return;
    }
    let mut fleet = Fleet::start(Options::docker().terminals_at_regions()).await;
    let names = Names::new();
    let web = names.polite("web");
    let api = fleet.api.clone();
    let env = [
        ("TOKEN", api.token.clone()),
        ("SERVER", fleet.regions[0].web.url()),
    ];
    let away = shots("terminal-page-restart").join("restart-1-away.png");
    let _ = std::fs::remove_file(&away);
    let page = browse(&api, &web, "restart.mjs", "terminal-page-restart", &env);
    let restarted = async {
        let runs = || docker(&["exec", &web, "test", "-e", "/tmp/runs"]);
        wait_for("it runs in the page", 3 * SOON, async || {
            let runs = runs().status.success();
            runs.then_some(()).ok_or("not yet".to_owned())
        })
        .await;
        let server = &mut fleet.regions[0].process;
        assert!(server.leave().await.success());
        wait_for("the page has said so", 3 * SOON, async || {
            away.exists().then_some(()).ok_or("not yet".to_owned())
        })
        .await;
        server.start_again();
        fleet.all_online().await;
        docker_says(&["exec", &web, "touch", "/tmp/back"]);
    };
    tokio::join!(page, restarted);
}

/// An input method, the mouse, files in and out, a shell on the host itself: `webssh/web/browser/more.mjs`.
#[tokio::test]
async fn input_methods_mouse_files_and_a_host_shell_work_in_a_real_browser() {
    if tools().is_none() {
        return;
    }
    let fleet = Fleet::start(Options::docker()).await;
    let names = Names::new();
    let web = names.polite("web");
    // What its owner allows the page knows by the next link.
    std::fs::write(&fleet.hosts[0].policy, "allow_host_shell = true\n").unwrap();
    fleet.hosts[0].kill_agent().await;
    wait_for("it is told what the owner allows", SOON, async || {
        let host = fleet.api.host("box").await.map_err(|no| no.to_string())?;
        let told = host.facts.is_some_and(|facts| facts.host_shell) && host.state == "online";
        told.then_some(()).ok_or("not yet".to_owned())
    })
    .await;
    let token = async |name: &str, permissions: &[Permission]| {
        let made = fleet.api.new_api_token(name, permissions).await;
        made.unwrap().token
    };
    let all = token("all", &[Permission::Admin, Permission::HostShell]).await;
    let less = token("less", &[Permission::Read, Permission::Shell]).await;
    let hostname = docker_says(&["exec", &web, "hostname"]);
    let env = [
        ("TOKEN", all),
        ("LESS_TOKEN", less),
        ("CONTAINER_HOSTNAME", hostname.trim().to_owned()),
    ];
    browse(&fleet.api, &web, "more.mjs", "terminal-page-more", &env).await;
    for path in ["/tmp/etc/hostname", "/tmp/huge"] {
        let rows = audit(&fleet.api, "command.copy-out").await;
        let said = rows.iter().any(|row| row.detail.ends_with(path));
        assert!(said, "{path}: {rows:?}");
    }
}

async fn in_a_real_browser(options: Options, shots: &str) {
    let is_there = !options.region_env.is_empty();
    if tools().is_none() {
        return;
    }
    let fleet = Fleet::start(options).await;
    let names = Names::new();
    let web = names.polite("web");
    let make = "i=0; while [ $i -lt 20 ]; do head -c 393216 /dev/urandom | base64 -w 0; i=$((i+1)); \
        done > /tmp/big";
    docker_says(&["exec", &web, "sh", "-c", make]);
    let big = docker(&["exec", &web, "cat", "/tmp/big"]).stdout;
    assert!(big.len() > 10_000_000);
    let mut env = vec![
        ("TOKEN", fleet.api.token.clone()),
        ("BIG_HASH", hex(&sha256(&big))),
    ];
    if is_there {
        env.push(("SERVER", fleet.regions[0].web.url()));
    }
    browse(&fleet.api, &web, "run.mjs", shots, &env).await;
}

/// Where screenshots go.
fn shots(folder: &str) -> PathBuf {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../target")).join(folder)
}

/// Runs those steps in the browser, once the page can know of the container.
async fn browse(api: &Api, web: &str, steps: &str, folder: &str, env: &[(&str, String)]) {
    let Some((node, browser)) = tools() else {
        return;
    };
    api.knows("box", web, SOON).await;

    let shots = shots(folder);
    std::fs::create_dir_all(&shots).unwrap();
    let run = tokio::process::Command::new(node)
        .arg(format!("browser/{steps}"))
        .current_dir(PAGE)
        .env("CHROMIUM", browser)
        .env("URL", &api.url)
        .env("HOST", "box")
        .env("CONTAINER", web)
        .envs(env.iter().map(|(name, value)| (name, value)))
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
