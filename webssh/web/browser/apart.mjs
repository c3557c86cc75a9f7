#!/usr/bin/env node
// Starts the browser in a network of its own. Containers that come and go beside a test change the machine's network,
// and a browser takes that for a change of place: it gives up whatever it was loading (ERR_NETWORK_CHANGED). In
// its own network it sees loopback and nothing else. The servers are there at the ports they have outside: what is
// dialled goes through a socket file to the harness, and from there to the server.
//
// Used twice: the harness asks for the options to start the browser with, and the browser is started by this same
// file, inside. Where no such network may be made, the browser has the machine's.
import { spawn, spawnSync } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import net from "node:net";
import { tmpdir } from "node:os";
import path from "node:path";
import { fileURLToPath } from "node:url";

const SELF = fileURLToPath(import.meta.url);
const BUSYBOX = process.env.FAIRLEAD_TEST_BUSYBOX ?? "busybox";
const UNSHARE = ["--net", ...(process.getuid() === 0 ? [] : ["--map-root-user"])];

/// Each end of the one is the other's.
function join(near, far) {
  for (const [from, to] of [[near, far], [far, near]]) {
    from.pipe(to);
    from.on("error", () => to.destroy());
    from.on("close", () => to.destroy());
  }
}

/// Chromium's launch options: the program, and what it is told in its environment.
export function apart(browser, urls) {
  const loopback = spawnSync("unshare", [...UNSHARE, BUSYBOX, "ifconfig", "lo", "up"]);
  if (loopback.status !== 0) {
    console.error(`the browser has the machine's own network: ${loopback.error ?? loopback.stderr}`);
    return { executablePath: browser };
  }
  const folder = mkdtempSync(path.join(tmpdir(), "apart-"));
  process.on("exit", () => rmSync(folder, { recursive: true, force: true }));
  const ports = urls.filter(Boolean).map((url) => new URL(url).port);
  for (const port of ports) {
    const relay = net.createServer((near) => join(near, net.connect(Number(port), "127.0.0.1")));
    relay.listen(path.join(folder, port)).unref();
  }
  const env = { ...process.env, APART_BROWSER: browser, APART_FOLDER: folder, APART_PORTS: ports.join() };
  return { executablePath: SELF, env };
}

async function inside() {
  const { APART_BROWSER: browser, APART_FOLDER: folder, APART_PORTS: ports } = process.env;
  spawnSync(BUSYBOX, ["ifconfig", "lo", "up"]);
  for (const port of ports.split(",")) {
    const relay = net.createServer((near) => join(near, net.connect(path.join(folder, port))));
    await new Promise((done) => relay.listen(Number(port), "127.0.0.1", done));
  }
  // The driver speaks to it through 3 and 4, and ends the whole group.
  const child = spawn(browser, process.argv.slice(2), { stdio: Array(5).fill("inherit") });
  child.on("exit", (code) => process.exit(code ?? 1));
}

if (process.argv[1] === SELF) {
  if (process.env.APART_INSIDE === undefined) {
    const args = [...UNSHARE, process.execPath, SELF, ...process.argv.slice(2)];
    const env = { ...process.env, APART_INSIDE: "1" };
    const child = spawn("unshare", args, { env, stdio: Array(5).fill("inherit") });
    child.on("exit", (code) => process.exit(code ?? 1));
  } else {
    await inside();
  }
}
