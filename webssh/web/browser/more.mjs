// The page in a real Chromium: an input method, the mouse, files in and out, a shell on the host itself.
import { createHash, randomBytes } from "node:crypto";
import { readFile } from "node:fs/promises";
import { check, container, context, found, host, load, page, prompt, run, shot, shows, signIn, text, trouble, type, until, url } from "./harness.mjs";

const { LESS_TOKEN: lessToken, CONTAINER_HOSTNAME: hostname } = process.env;
const sha256 = (bytes) => createHash("sha256").update(bytes).digest("hex");

/// Every key is there once, whatever the input method showed on the way.
async function inputMethod() {
  const cdp = await context.newCDPSession(page);
  await type("clear; stty -echo; printf 'rea''dy\\n'; read -r line; printf '%s' \"$line\" | od -An -tx1 | tr -d ' \\n'; echo :end; stty echo");
  await shows("ready");
  await page.evaluate(() => {
    window.typed = "";
    window.composed = 0;
    // Counted a turn later, when the terminal has heard of it too.
    document.addEventListener("compositionend", () => setTimeout(() => (window.composed += 1), 0));
    window.fairleadTerminals()[0].terminal.onData((data) => (window.typed += data));
  });
  for (const part of ["ｎ", "に", "にｈ", "にほ", "にほｎ", "にほん"]) {
    await cdp.send("Input.imeSetComposition", { text: part, selectionStart: part.length, selectionEnd: part.length });
  }
  const composing = page.locator(".tab:not([hidden]) .composition-view.active");
  await composing.waitFor();
  check((await composing.textContent()).includes("にほん"), "what is being composed is shown");
  await shot("m1-composing");
  await cdp.send("Input.imeSetComposition", { text: "日本", selectionStart: 2, selectionEnd: 2 });
  await cdp.send("Input.insertText", { text: "日本" });
  await page.keyboard.type("-x");
  // One that is given up leaves nothing. Nobody begins it in the very turn in which the one before is taken in.
  await until("it is taken in", () => page.evaluate(() => window.composed === 1));
  await until("what was taken in is sent", async () => (await page.evaluate(() => window.typed)) === "日本-x", 20_000, () => page.evaluate(() => window.typed));
  await cdp.send("Input.imeSetComposition", { text: "あ", selectionStart: 1, selectionEnd: 1 });
  await cdp.send("Input.imeSetComposition", { text: "", selectionStart: 0, selectionEnd: 0 });
  await until("it is given up", () => page.evaluate(() => window.composed === 2));
  await page.keyboard.press("Enter");
  const expected = `${Buffer.from("日本-x").toString("hex")}:end`;
  await until("the composed text", async () => /[0-9a-f]*:end\n/.test(await text()));
  found.composed = /([0-9a-f]*:end)\n/.exec(await text())[1];
  check(found.composed === expected, `composed ${found.composed}, not ${expected}`);
}

/// A program that asks for the mouse hears where it was pressed; one that does not hears nothing.
async function mouse() {
  const at = async (column, row) => {
    const box = await page.locator(".tab:not([hidden]) .xterm-screen").boundingBox();
    const [columns, rows] = await page.evaluate(() => { const t = window.fairleadTerminals()[0].terminal; return [t.cols, t.rows]; });
    return [box.x + (column - 0.5) * (box.width / columns), box.y + (row - 0.5) * (box.height / rows)];
  };
  const heard = async (expected, label, act) => {
    await type(`clear; stty raw -echo; printf '\\033[?1000h\\033[?1006h'; printf 'rea''dy-${label}'; head -c ${expected.length} | od -An -tx1 | tr -d ' \\n'; printf '\\033[?1006l\\033[?1000l'; stty sane; echo :${label}''`);
    await shows(`ready-${label}`);
    await act();
    await until(`what the mouse did (${label})`, async () => (await text()).includes(`:${label}`));
    const bytes = Buffer.from(expected).toString("hex");
    check((await text()).includes(`${bytes}:${label}`), `${label}: ${(await text()).slice(-300)}, not ${bytes}`);
  };
  await heard("\x1b[<0;7;3M\x1b[<0;7;3m", "pressed", async () => page.mouse.click(...(await at(7, 3))));
  await heard("\x1b[<2;20;9M\x1b[<2;20;9m", "right", async () => page.mouse.click(...(await at(20, 9)), { button: "right" }));
  await heard("\x1b[<65;7;3M", "wheel", async () => {
    await page.mouse.move(...(await at(7, 3)));
    await page.mouse.wheel(0, 60);
  });
  // Asked for no more: a click selects, and says nothing.
  await type("clear; stty raw -echo; printf 'rea''dy-quiet'; head -c 1 | od -An -tx1 | tr -d ' \\n'; stty sane; echo :quiet''");
  await shows("ready-quiet");
  await page.mouse.click(...(await at(7, 3)));
  await page.keyboard.press("q");
  await shows("71:quiet");
  found.mouse = "pressed, right, wheel, quiet";
}

async function files() {
  const toTerminal = () => page.locator(".tab:not([hidden]) .xterm-screen").click();
  const said = (what) => until(`the page says ${what}`, async () => ((await page.textContent(".files .said")) ?? "").includes(what), 60_000, () => page.textContent(".files .said"));
  await page.getByLabel("Files into and out of the container").click();
  const big = randomBytes(20_000_000);
  const name = "dät a (1).bin";
  await page.setInputFiles(".files input[type=file]", { name, mimeType: "application/octet-stream", buffer: big });
  await said(`uploaded to /tmp`);
  await shot("m2-uploaded");
  found.uploaded = await page.textContent(".files .said");
  await toTerminal();
  await type(`clear; sha256sum "/tmp/${name}"; stat -c '%a %u' "/tmp/${name}"`);
  await shows(sha256(big));
  await shows("644 0");

  const download = async (path) => {
    await page.fill("[aria-label='File or folder in the container']", path);
    const coming = page.waitForEvent("download");
    await page.getByRole("button", { name: "Download" }).click();
    const came = await coming;
    return { name: came.suggestedFilename(), bytes: await readFile(await came.path()) };
  };
  const back = await download(`/tmp/${name}`);
  check(sha256(back.bytes) === sha256(big), `${back.bytes.length} bytes came back`);
  // Not what it is called here: what a browser lets a file be called.
  check(back.name.endsWith(".bin"), `it is called ${back.name}`);
  await said("downloaded as");
  found.downloaded = await page.textContent(".files .said");

  // Folders come as archives; links lead within the container.
  await toTerminal();
  await type("clear; mkdir -p /tmp/dir/sub; echo one > /tmp/dir/sub/one; ln -s ../../../../../../etc /tmp/etc; ln -s /tmp/dir/sub/one /tmp/link; truncate -s 1100000000 /tmp/huge; truncate -s 900000000 /tmp/long; echo made-$((1+1))");
  await shows("made-2");
  const folder = await download("/tmp/dir");
  check(folder.name === "dir.tar" && folder.bytes.includes("dir/sub/one"), "a folder is an archive");
  const inside = await download("/tmp/etc/hostname");
  check(inside.bytes.toString().trim() === hostname, `${inside.bytes} is not the container's own name`);
  const refused = async (path, words) => {
    await page.fill("[aria-label='File or folder in the container']", path);
    await page.getByRole("button", { name: "Download" }).click();
    await page.waitForSelector(".files .said.wrong");
    await said(words);
  };
  await refused("/tmp/link", "is a link to /tmp/dir/sub/one");
  await refused("etc/passwd", "begins with a slash");
  await refused("/tmp/not-there", "not-there");
  await shot("m3-not-there");
  // The browser says what the server answered, rightly.
  trouble.length = 0;
  await refused("/tmp/huge", "more than a page carries");
  // One that is given up is given up.
  await page.fill("[aria-label='File or folder in the container']", "/tmp/long");
  await page.getByRole("button", { name: "Download" }).click();
  await until("it is under way", async () => /of 900.0 MB/.test((await page.textContent(".files .said")) ?? ""), 60_000, () => page.textContent(".files .said"));
  await shot("m4-under-way");
  await page.getByRole("button", { name: "Cancel" }).click();
  await said("Cancelled.");
  const again = await download("/tmp/dir/sub/one");
  check(again.bytes.toString() === "one\n", "and the next one comes");
  await page.getByLabel("Files into and out of the container").click();
  check(await page.locator(".files").isHidden(), "it goes when it is not wanted");
}

async function hostShell() {
  await page.getByLabel("Open another terminal").click();
  await page.waitForSelector(".row");
  await shot("m5-picker");
  await page.getByLabel(`Open a shell on ${host} itself`).click();
  await prompt(1);
  check(await page.getByLabel("Files into and out of the container").isHidden(), "there are no files of the host");
  await type("clear; echo host-$((40+2)); hostname");
  await shows("host-42", 1);
  await shot("m6-host-shell");
  await type("exit");
  await page.waitForSelector(".tab:not([hidden]) .banner.over");
}

/// Who has neither permission is shown neither.
async function less() {
  await page.getByLabel("Sign out").or(page.getByRole("button", { name: /Sign out/ })).first().click();
  await page.waitForSelector("input[name=token]");
  await signIn(lessToken);
  check((await page.locator("[aria-label$=' itself']").count()) === 0, "no shell on a host is offered");
  await page.getByLabel(`Open a shell in ${host}/${container}`).click();
  await prompt(0);
  check(await page.getByLabel("Files into and out of the container").isHidden(), "no files are offered");
}

await run(async () => {
  await load(() => page.goto(`${url}/terminal`), "input[name=token]");
  await signIn();
  await page.getByLabel(`Open a shell in ${host}/${container}`).click();
  await prompt();
  await inputMethod();
  await mouse();
  await files();
  await hostShell();
  await less();
});
