// The terminal page: sign in, pick a container, tabs.

import "@xterm/xterm/css/xterm.css";
import "./terminal.css";
import * as api from "./api";
import { element, plain } from "./dom";
import { Player } from "./player";
import { Tab, type Settings, type Target } from "./tab";

const SETTINGS = "fairlead.settings";
const TABS = "fairlead.tabs";

const app = document.getElementById("app")!;
type View = Tab | Player;
let tabs: View[] = [];
let shown: View | null = null;
let user = "";
let isAdmin = false;
let mayCopy = false;
let mayHostShell = false;

const settings: Settings = (() => {
  const dark = !matchMedia("(prefers-color-scheme: light)").matches;
  const first: Settings = { theme: dark ? "dark" : "light", fontSize: 14 };
  try {
    const kept = JSON.parse(localStorage.getItem(SETTINGS) ?? "{}") as Partial<Settings>;
    if (kept.theme === "dark" || kept.theme === "light") first.theme = kept.theme;
    if (typeof kept.fontSize === "number" && kept.fontSize >= 8 && kept.fontSize <= 32) first.fontSize = kept.fontSize;
  } catch {
    // What cannot be read is set anew.
  }
  return first;
})();

const bar = element("nav", "bar");
const strip = element("div", "strip");
const panel = element("div", "panel");
const finder = element("input", "find");

function applySettings(): void {
  document.documentElement.dataset["theme"] = settings.theme;
  localStorage.setItem(SETTINGS, JSON.stringify(settings));
  for (const tab of tabs) tab.apply(settings);
}

/// What this browser tab comes back to when it is loaded anew.
function keepTabs(): void {
  const open = tabs.filter((tab) => tab instanceof Tab).filter((tab) => !tab.isOver && tab.target.session !== null);
  const at = open.findIndex((tab) => tab === shown);
  sessionStorage.setItem(TABS, JSON.stringify({ kept: open.map((tab) => tab.target), at }));
}

function button(text: string, label: string, act: () => void): HTMLButtonElement {
  const made = element("button", "", text);
  made.title = label;
  made.setAttribute("aria-label", label);
  made.onclick = act;
  return made;
}

const filesButton = button("⇅", "Files into and out of the container", () => {
  if (shown instanceof Tab) shown.toggleFiles();
});

function drawStrip(): void {
  strip.replaceChildren(
    ...tabs.map((tab) => {
      const item = element("span", tab === shown ? "item shown" : "item");
      const pick = button(tab.title, tab.title, () => show(tab));
      pick.setAttribute("role", "tab");
      pick.setAttribute("aria-selected", String(tab === shown));
      if (tab.isOver) item.classList.add("over");
      item.append(pick, button("×", `Close ${tab.title}`, () => close(tab)));
      return item;
    }),
  );
  document.title = shown ? `${shown.title} · Fairlead` : "Fairlead terminals";
}

function changed(): void {
  drawStrip();
  keepTabs();
}

function show(tab: View | null): void {
  shown = tab;
  panel.hidden = tab !== null;
  for (const other of tabs) other.root.hidden = other !== tab;
  filesButton.hidden = !(tab instanceof Tab) || tab.files === null;
  if (tab === null) void list();
  else {
    tab.refit();
    tab.focus();
  }
  changed();
}

function close(tab: View): void {
  tab.close();
  const at = tabs.indexOf(tab);
  tabs = tabs.filter((other) => other !== tab);
  show(shown === tab ? (tabs[Math.min(at, tabs.length - 1)] ?? null) : shown);
}

function openView<V extends View>(tab: V, shows: boolean): V {
  tabs.push(tab);
  app.append(tab.root);
  tab.root.hidden = !shows;
  if (shows) show(tab);
  void tab.open().then(() => {
    if (shown === tab) tab.focus();
  });
  return tab;
}

const openTab = (target: Target, shows: boolean) => openView(new Tab(target, settings, mayCopy, changed), shows);

function input(className: string, type: string, label: string): HTMLInputElement {
  const made = element("input", className);
  made.type = type;
  made.placeholder = label;
  made.setAttribute("aria-label", label);
  return made;
}

/// The head of a list; admins have two of them.
function heads(at: "Containers" | "Recordings"): HTMLElement {
  const head = element("div", "heads");
  head.append(element("h1", "", at));
  if (isAdmin) {
    head.append(at === "Containers"
      ? button("Recordings", "Recordings of terminals", () => void listRecordings())
      : button("Containers", "Containers to open a shell in", () => void list()));
  }
  return head;
}

/// The moment in such an input; null where there is none.
function momentOf(from: HTMLInputElement): Date | null {
  const at = new Date(from.value);
  return Number.isNaN(at.getTime()) ? null : at;
}

async function listRecordings(): Promise<void> {
  const note = element("p", "note", "");
  const filter = input("filter", "search", "Filter by user, host, container, day");
  const from = input("moment", "datetime-local", "Begun from");
  const to = input("moment", "datetime-local", "Begun until");
  const when = element("p", "when");
  when.append(element("span", "", "Begun from"), from, element("span", "", "until"), to);
  const table = element("div", "recordings");
  panel.replaceChildren(heads("Recordings"), filter, when, note, table);
  let all: api.Recording[] = [];
  let asked = 0;
  const draw = (): void => {
    const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    const rows = all
      .map((r) => ({ r, began: new Date(r.started_at).toLocaleString() }))
      .filter(({ r, began }) =>
        words.every((word) => `${r.host}/${r.container} ${r.user} ${began} ${r.started_at}`.toLowerCase().includes(word)))
      .slice(0, 500);
    table.replaceChildren(
      ...rows.map(({ r, began }) => {
        const row = element("div", "row");
        const where = `${plain(r.host, 128)}/${plain(r.container, 128)}`;
        row.append(
          element("span", "where", began),
          element("span", "name", where),
          element("span", "image", plain(r.user, 128)),
          button("Play", `Play ${plain(r.user, 128)} in ${where}, ${began}`, () => {
            openView(new Player(r, settings), true);
          }),
        );
        return row;
      }),
    );
    const isBounded = from.value !== "" || to.value !== "";
    const none = all.length > 0 || isBounded ? "None matches." : "Nothing has been recorded yet.";
    note.textContent = rows.length === 0 ? none : "";
  };
  /// The newest that began between; the server knows more than it lists at once.
  const ask = async (): Promise<void> => {
    const own = ++asked;
    try {
      const found = await api.recordings(momentOf(from), momentOf(to));
      if (own !== asked) return;
      all = found;
      draw();
    } catch (error) {
      if (own === asked) note.textContent = (error as Error).message;
    }
  };
  filter.oninput = draw;
  from.onchange = to.onchange = () => void ask();
  await ask();
  filter.focus();
}

async function list(): Promise<void> {
  const note = element("p", "note", "");
  const filter = input("filter", "search", "Filter by host, container, image");
  const asUser = input("as-user", "text", "User (the container's own)");
  const table = element("div", "containers");
  panel.replaceChildren(heads("Containers"), filter, asUser, note, table);
  try {
    const all = await api.containers();
    // Shells on hosts themselves: for who may, where the owner allows it.
    const open = mayHostShell ? (await api.hosts()).filter((h) => h.facts?.host_shell === true) : [];
    const draw = (): void => {
      const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
      const has = (c: api.Container) =>
        words.every((word) => `${c.host}/${c.name} ${c.image} ${c.project ?? ""}`.toLowerCase().includes(word));
      const rows = all.filter(has).slice(0, 500);
      const itself = open.filter((h) => words.every((word) => `${h.name} host`.toLowerCase().includes(word)));
      table.replaceChildren(
        ...itself.map((h) => {
          const row = element("div", "row");
          row.append(
            element("span", "where", plain(h.name, 128)),
            element("span", "name", "the host itself"),
            element("span", "image", ""),
            button("Open host shell", `Open a shell on ${plain(h.name, 128)} itself`, () => {
              openTab({ host: h.name, container: "(host)", id: "", user: "", session: null }, true);
            }),
          );
          return row;
        }),
        ...rows.map((c) => {
          const row = element("div", "row");
          row.append(
            element("span", "where", plain(c.host, 128)),
            element("span", "name", plain(c.name, 128)),
            element("span", "image", plain(c.image, 128)),
            button("Open shell", `Open a shell in ${plain(c.host, 128)}/${plain(c.name, 128)}`, () => {
              openTab({ host: c.host, container: c.name, id: c.id, user: asUser.value.trim(), session: null }, true);
            }),
          );
          return row;
        }),
      );
      note.textContent = rows.length + itself.length === 0 ? (all.length === 0 ? "No container runs on any host that you see." : "None matches.") : "";
    };
    filter.oninput = draw;
    draw();
    filter.focus();
  } catch (error) {
    if (error instanceof api.Refusal && error.status === 401) return signIn("The token is not good any more.");
    note.textContent = (error as Error).message;
  }
}

function find(backwards: boolean): void {
  const options = { decorations: { matchOverviewRuler: "#888888", activeMatchColorOverviewRuler: "#ffb000", matchBackground: "#806000", activeMatchBackground: "#c07000" } };
  if (backwards) shown?.search.findPrevious(finder.value, options);
  else shown?.search.findNext(finder.value, options);
}

function toggleFind(): void {
  finder.hidden = !finder.hidden;
  if (!finder.hidden) finder.select();
  else {
    shown?.search.clearDecorations();
    shown?.focus();
  }
}

function work(): void {
  finder.hidden = true;
  finder.type = "search";
  finder.placeholder = "Find";
  finder.setAttribute("aria-label", "Find in the terminal");
  finder.oninput = () => find(false);
  finder.onkeydown = (event) => {
    if (event.key === "Enter") find(event.shiftKey);
    if (event.key === "Escape") toggleFind();
  };
  const font = (by: number) => {
    settings.fontSize = Math.min(32, Math.max(8, settings.fontSize + by));
    applySettings();
    shown?.focus();
  };
  strip.setAttribute("role", "tablist");
  bar.replaceChildren(
    button("+", "Open another terminal", () => show(null)),
    strip,
    finder,
    filesButton,
    button("⌕", "Find (Ctrl-Shift-F)", toggleFind),
    button("A−", "Smaller", () => font(-1)),
    button("A+", "Larger", () => font(1)),
    button("◐", "Dark or light", () => {
      settings.theme = settings.theme === "dark" ? "light" : "dark";
      applySettings();
      shown?.focus();
    }),
    button("Sign out", `Sign out ${user}`, () => {
      for (const tab of tabs) tab.close();
      tabs = [];
      api.keep(null);
      sessionStorage.removeItem(TABS);
      location.reload();
    }),
  );
  app.replaceChildren(bar, panel);
  let kept: { kept: Target[]; at: number } = { kept: [], at: -1 };
  try {
    kept = JSON.parse(sessionStorage.getItem(TABS) ?? "") as typeof kept;
  } catch {
    // There is nothing to come back to.
  }
  const back = kept.kept.map((target) => openTab(target, false));
  show(back[kept.at] ?? back[0] ?? null);
}

function signIn(problem = ""): void {
  const form = element("form", "sign-in");
  const field = element("input");
  field.type = "password";
  field.name = "token";
  field.placeholder = "FA1…";
  field.autocomplete = "off";
  field.required = true;
  field.setAttribute("aria-label", "API token");
  const said = element("p", "problem", problem);
  said.setAttribute("role", "alert");
  const go = element("button", "", "Sign in");
  form.append(
    element("h1", "", "Fairlead terminals"),
    element("p", "note", "Sign in with an API token that may open terminals: fairlead api-token create NAME --permission read,shell"),
    field, go, said,
  );
  form.onsubmit = (event) => {
    event.preventDefault();
    go.disabled = true;
    api.keep(field.value.trim());
    void begin().catch((error: Error) => {
      api.keep(null);
      go.disabled = false;
      said.textContent = error.message;
    });
  };
  app.replaceChildren(form);
  field.focus();
}

async function begin(): Promise<void> {
  const me = await api.whoami();
  const may = (what: string) => me.permissions.includes(what) || me.permissions.includes("admin");
  if (!may("shell") || !may("read")) throw new Error("This token lacks the permission \"read\" or \"shell\".");
  user = me.name;
  isAdmin = me.permissions.includes("admin");
  mayCopy = may("copy");
  // An admin has to have it given, too.
  mayHostShell = me.permissions.includes("host-shell");
  work();
}

addEventListener("resize", () => shown?.refit());
addEventListener("keydown", (event) => {
  if (event.ctrlKey && event.shiftKey && event.code === "KeyF" && shown !== null) {
    event.preventDefault();
    toggleFind();
  }
});
applySettings();
if (api.token() === null) signIn();
else void begin().catch((error: Error) => signIn(error.message));

// What tests look at; it gives no more than the page itself shows.
declare global {
  interface Window {
    fairleadTerminals: () => { title: string; isOver: boolean; session: string | null; terminal: Tab["terminal"] }[];
  }
}
window.fairleadTerminals = () =>
  tabs.map((tab) => ({
    title: tab.title, isOver: tab.isOver, session: tab instanceof Tab ? tab.target.session : null, terminal: tab.terminal,
  }));
