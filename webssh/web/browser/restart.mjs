// The page over a restart of the server that has its session: it comes back by itself, types what was typed meanwhile,
// and shows each line once. The test stops the server when the container has /tmp/runs, starts it again when the
// screenshot of the page without it is there, and makes /tmp/back.
import { check, container, found, host, load, page, prompt, run, shot, shows, signIn, text, trouble, type, until, url } from "./harness.mjs";

await run(async () => {
  await load(() => page.goto(`${url}/terminal`), "input[name=token]");
  await signIn();
  await page.getByLabel(`Open a shell in ${host}/${container}`).click();
  await prompt();
  await type("touch /tmp/runs; i=0; while [ ! -e /tmp/back ]; do i=$((i+1)); echo n$i; sleep 0.05; done; echo w$((1+1))s there $i");
  await page.waitForSelector(".banner.away", { timeout: 60_000 });
  await shot("restart-1-away");
  // It is kept, and comes when the session does.
  await type("echo t$((1+1))ped");
  await shows("w2s there", 0, 60_000);
  await shows("t2ped");
  await until("the banner goes", async () => (await page.locator(".banner.away:visible").count()) === 0);
  const all = await text();
  const last = Number(/w2s there (\d+)/.exec(all)[1]);
  for (let n = 1; n <= last; n++) check(all.split(`\nn${n}\n`).length === 2, `n${n} of ${last} is there once`);
  check(all.split("\nt2ped").length === 2, "what was typed ran once");
  found.lines = last;
  await shot("restart-2-back");
  // What the browser says of a server that is away, rightly.
  for (let at = trouble.length - 1; at >= 0; at--) {
    if (/WebSocket connection|ERR_CONNECTION|50[234]/.test(trouble[at])) trouble.splice(at, 1);
  }
});
