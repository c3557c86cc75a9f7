// What the browser's tests have in common: the browser, the page, waiting. Against a running controller: URL, TOKEN,
// HOST and CONTAINER come in the environment, SERVER where terminals live at another server, screenshots go to
// SHOTS. A test says what it found as one line of JSON, and ends with 1 at the first thing that is not as it
// should be.
import { chromium } from "playwright-core";
import { apart } from "./apart.mjs";

export const { URL: url, TOKEN: token, HOST: host, CONTAINER: container, SHOTS: shots, SERVER: server } = process.env;
export const browser = await chromium.launch({
  ...apart(process.env.CHROMIUM ?? "/usr/bin/chromium", [url, server]),
  args: ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--ignore-certificate-errors", "--force-color-profile=srgb"],
});
export const context = await browser.newContext({ ignoreHTTPSErrors: true, viewport: { width: 1100, height: 700 }, colorScheme: "dark" });
export const page = await context.newPage();
export const trouble = [];
page.on("console", (line) => {
  if (line.type() === "error" && !line.text().includes("ERR_NETWORK_CHANGED")) trouble.push(line.text());
});
page.on("pageerror", (error) => trouble.push(String(error)));
export const found = {};
export const sockets = [];
page.on("websocket", (socket) => sockets.push(socket.url()));

export function check(holds, what) {
  if (!holds) throw new Error(what);
}
/// The text of a tab's whole buffer.
export const text = (tab = 0) => page.evaluate((at) => {
  const buffer = window.fairleadTerminals()[at].terminal.buffer.active;
  let all = "";
  for (let y = 0; y < buffer.length; y++) {
    const line = buffer.getLine(y);
    all += (line.isWrapped || y === 0 ? "" : "\n") + line.translateToString(true);
  }
  return all;
}, tab);
export async function until(what, holds, within = 20_000, state = async () => (await text()).slice(-600)) {
  const end = Date.now() + within;
  for (;;) {
    if (await holds()) return;
    if (Date.now() > end) throw new Error(`${what}: ${await state().catch(() => "")}`);
    await new Promise((resolve) => setTimeout(resolve, 30));
  }
}
// Containers that come and go beside this test change the machine's network, which a browser takes for a
// change of place: it gives up what it was loading.
export const load = (how, shown) => until("the page is loaded", async () => {
  try {
    await how();
    await page.waitForSelector(shown, { timeout: 5_000 });
    return true;
  } catch (error) {
    if (!/ERR_NETWORK_CHANGED|Timeout/.test(String(error))) throw error;
    return false;
  }
}, 60_000);
export const shows = (what, tab = 0, within = 20_000) => until(`shows ${what}`, async () => (await text(tab)).includes(what), within);
export const shot = (name) => page.screenshot({ path: `${shots}/${name}.png` });
export async function type(line) {
  await page.keyboard.type(line);
  await page.keyboard.press("Enter");
}

/// Signs in, and comes to the list.
export async function signIn(with_ = token) {
  await page.fill("input[name=token]", with_);
  await page.click("button");
  await page.waitForSelector(".row");
}
/// A prompt in that tab.
export const prompt = (tab = 0) => until("a prompt", async () => /[#$] ?$/.test((await text(tab)).trim()), 20_000, async () => (await text(tab)).slice(-600));

/// Does it, says what was found, and closes the browser.
export async function run(test) {
  try {
    await test();
    check(trouble.length === 0, `the browser complained: ${trouble.join("; ")}`);
    console.log(JSON.stringify(found));
  } catch (error) {
    await shot("failed").catch(() => undefined);
    console.error(String(error?.stack ?? error), trouble.join("; "));
    process.exitCode = 1;
  } finally {
    await browser.close();
  }
}
