// The page in a real Chromium: typed into, resized, coloured, pasted into, flooded, loaded anew, played.
import { createHash } from "node:crypto";
import { check, container, context, found, host, load, page, run, server, shot, shows, sockets, text, token, trouble, type, until, url } from "./harness.mjs";

const bigHash = process.env.BIG_HASH;
const cell = (needle) => page.evaluate((needle) => {
  const buffer = window.fairleadTerminals()[0].terminal.buffer.active;
  for (let y = buffer.length - 1; y >= 0; y--) {
    const line = buffer.getLine(y);
    const at = line.translateToString(true).indexOf(needle);
    if (at === 0) {
      const c = line.getCell(0);
      return { rgb: c.isFgRGB() ? c.getFgColor().toString(16) : null, bold: c.isBold() !== 0 };
    }
  }
  return null;
}, needle);

await run(async () => {
  await load(() => page.goto(`${url}/terminal`), "input[name=token]");
  await page.fill("input[name=token]", "FA1wrong.wrong");
  await page.click("button");
  await page.waitForSelector(".problem:not(:empty)");
  found.refused = await page.textContent(".problem");
  // What the page was told by a wrong token is in the console, rightly.
  trouble.length = 0;
  await page.fill("input[name=token]", token);
  await page.click("button");
  await page.waitForSelector(".row");
  await shot("1-list");
  const open = () => page.getByLabel(`Open a shell in ${host}/${container}`).click();
  await open();
  await until("a prompt", async () => /[#$] ?$/.test((await text()).trim()));

  await type("echo typed-$((6*7))");
  await shows("typed-42");
  const size = () => page.evaluate(() => { const t = window.fairleadTerminals()[0].terminal; return `${t.rows} ${t.cols}`; });
  const before = await size();
  await page.setViewportSize({ width: 800, height: 500 });
  await until("another size in the page", async () => (await size()) !== before);
  // The size goes its own way to the container: it is there when it is there.
  await type(`until [ "$(stty size)" = "${await size()}" ]; do :; done; echo it-$((20+1))-fits`);
  await shows("it-21-fits");
  found.size = await size();
  await page.setViewportSize({ width: 1100, height: 700 });

  await type("clear; printf '\\033[1;38;2;255;128;1mTRUE\\033[0m 漢字 👩‍💻 é\\n'");
  let colour = null;
  await until("the coloured line", async () => (colour = await cell("TRUE 漢字 👩‍💻 é")) !== null);
  check(colour?.rgb === "ff8001" && colour.bold, `colour ${JSON.stringify(colour)}`);
  await shot("2-colours");

  // What a container writes does not steer the page: no clipboard without a yes, titles are plain text.
  await type("printf '\\033]0;<b>evil\\033[31m\\007\\033]52;c;ZXZpbA==\\007'");
  await page.waitForSelector(".banner.ask");
  check((await page.textContent(".banner")).includes('"evil"'), "the clipboard is asked for");
  check((await page.locator(".item b").count()) === 0, "a title is text");
  await page.getByRole("button", { name: "No", exact: true }).click();
  await type("printf '\\033P$q\"p\\033\\\\'; echo after-dcs");
  await shows("after-dcs");

  // 1 MB pasted arrives whole, also where the process echoes it.
  await type("stty raw -echo; printf 'raw''-now\\r\\n'; head -c 1000000 | sha256sum; stty sane");
  await shows("raw-now");
  const paste = Array.from({ length: 1_000_000 }, (_, n) => String.fromCharCode(97 + ((n * 7) % 26))).join("");
  const pasted = createHash("sha256").update(paste).digest("hex");
  await page.evaluate((paste) => window.fairleadTerminals()[0].terminal.input(paste), paste);
  await shows(pasted, 0, 60_000);
  found.paste = pasted.slice(0, 12);

  // 10 MB through cat: the hash of what the page received.
  await page.evaluate(() => {
    const { terminal } = window.fairleadTerminals()[0];
    const write = terminal.write.bind(terminal);
    window.got = [];
    terminal.write = (data, done) => {
      window.got.push(data);
      return write(data, done);
    };
  });
  const began = Date.now();
  await type("stty raw -echo; printf 'BIG''>'; cat /tmp/big; printf '<B''IG'; stty sane");
  const bigEnds = () => page.evaluate(() => {
    const last = window.got.slice(-20).map((piece) => new TextDecoder().decode(piece)).join("");
    return last.slice(-400).includes("<BIG");
  });
  const bigSize = () => page.evaluate(() => window.got.reduce((sum, piece) => sum + piece.length, 0));
  await until("all of the 10 MB", bigEnds, 120_000, bigSize);
  const big = await page.evaluate(async () => {
    const whole = new Uint8Array(await new Blob(window.got).arrayBuffer());
    const text = new TextDecoder("latin1").decode(whole);
    const begin = text.indexOf("BIG>") + 4;
    const end = text.lastIndexOf("<BIG");
    const digest = await crypto.subtle.digest("SHA-256", whole.subarray(begin, end));
    return { length: end - begin, hex: [...new Uint8Array(digest)].map((b) => b.toString(16).padStart(2, "0")).join("") };
  });
  check(big.hex === bigHash, `10 MB: ${JSON.stringify(big)} is not ${bigHash}`);
  found.big = { bytes: big.length, seconds: (Date.now() - began) / 1000 };

  // A second tab, while the first is flooded: a key is not delayed by it.
  await type("stty sane; clear; yes flood");
  await shows("flood");
  await page.getByLabel("Open another terminal").click();
  await page.waitForSelector(".row");
  await open();
  await until("a prompt in the second", async () => /[#$] ?$/.test((await text(1)).trim()));
  const echoes = [];
  for (let n = 0; n < 20; n++) {
    const before = await text(1);
    const at = Date.now();
    await page.keyboard.press("x");
    await until("the key is shown", async () => (await text(1)) !== before, 20_000);
    echoes.push(Date.now() - at);
  }
  echoes.sort((a, b) => a - b);
  found.echo_beside_a_flood_ms = { median: echoes[10], worst: echoes[19] };
  await page.keyboard.press("Control+C");
  await type("echo second-tab");
  await shows("second-tab", 1);
  await shot("3-two-tabs");
  await page.locator(".item button").first().click();
  await page.keyboard.press("Control+C");
  await type("clear; X=kept-over-reload; echo ready-$((1+1))");
  await shows("ready-2");

  // Loaded anew: the same sessions, the same screen, the shell's own memory.
  await load(() => page.reload(), ".bar");
  await until("two tabs", async () => (await page.locator(".item").count()) === 2);
  await shows("ready-2");
  await type("echo $X");
  await shows("kept-over-reload");
  await shows("second-tab", 1);
  found.sessions = await page.evaluate(() => window.fairleadTerminals().map((t) => t.session));
  check(found.sessions.every(Boolean), "sessions");
  await shot("4-after-reload");

  await page.getByLabel("Dark or light").click();
  await page.getByLabel("Larger").click();
  await shot("5-light");
  await type("exit 4");
  await page.waitForSelector(".banner.over");
  const ended = await page.textContent(".banner.over");
  check(ended.includes("(4)"), `the exit code is told: ${ended}`);
  await shot("6-ended");

  const at = (server ?? url).replace(/^https/, "wss");
  check(sockets.length > 0 && sockets.every((socket) => socket.startsWith(`${at}/`)), `sockets: ${sockets}`);
  if (server !== undefined) {
    // The recording has arrived from there.
    await until("its recording", async () => {
      const answer = await context.request.get(`${url}/api/v1/audit?limit=200`, { headers: { authorization: `Bearer ${token}` } });
      return (await answer.json()).items.some((row) => row.action === "recording.arrive" && row.outcome === "ok");
    });
  }

  // That of a session which goes on is listed once its first part is there.
  await until("both recordings", async () => {
    const answer = await context.request.get(`${url}/api/v1/recordings`, { headers: { authorization: `Bearer ${token}` } });
    return (await answer.json()).filter((one) => one.container === container).length === 2;
  });

  // What was shown is played again, by an admin; the chain is checked on the way.
  await page.getByLabel("Dark or light").click();
  await page.getByLabel("Open another terminal").click();
  await page.getByLabel("Recordings of terminals").click();
  await page.waitForSelector(".recordings .row");
  await page.fill(".filter", container);
  await shot("7-recordings");
  check((await page.locator(".recordings .row").count()) === 2, "two recordings");
  await page.locator(".recordings .row button").last().click();
  await page.waitForSelector(".controls");
  await page.locator(".controls select").selectOption("16");
  const played = (await page.evaluate(() => window.fairleadTerminals().length)) - 1;
  const slide = (to) => page.locator(".controls input").evaluate((slider, to) => {
    slider.value = to === "end" ? slider.max : String(to);
    slider.dispatchEvent(new Event("input"));
  }, to);
  await slide("end");
  await shows("kept-over-reload", played, 60_000);
  await until("the verdict", async () => (await page.textContent(".tab:not([hidden]) .banner")).includes("Whole and as recorded"), 60_000);
  found.recording = (await page.textContent(".tab:not([hidden]) .banner")).slice(-64);
  check((await page.locator(".banner.ask:visible").count()) === 0, "a recording asks for nothing");
  await shot("8-player");
});
