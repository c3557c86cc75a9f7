// One tab: a terminal over a wire.

import { Terminal, type ITheme } from "@xterm/xterm";
import { FitAddon } from "@xterm/addon-fit";
import { SearchAddon } from "@xterm/addon-search";
import { UnicodeGraphemesAddon } from "@xterm/addon-unicode-graphemes";
import * as api from "./api";
import { element, plain } from "./dom";
import { Files } from "./files";
import { guard } from "./guard";
import { drawFast } from "./renderer";
import { Wire, type End } from "./wire";

const IDLE_WARNING_MS = 15 * 60_000;

export const FONTS = "ui-monospace, 'DejaVu Sans Mono', Menlo, Consolas, monospace";

export const THEMES: Record<"dark" | "light", ITheme> = {
  dark: { background: "#11151a", foreground: "#d8dee6", cursor: "#7fc8ff", selectionBackground: "#33507080" },
  light: {
    background: "#fbfbf9", foreground: "#1f2328", cursor: "#0b5cad", selectionBackground: "#9cc7f080",
    black: "#24292f", white: "#6e7781", yellow: "#7d4e00", green: "#116329", cyan: "#1b7c83",
    brightWhite: "#57606a", brightYellow: "#633c01", brightGreen: "#1a7f37", brightBlack: "#57606a",
  },
};

export interface Settings {
  theme: "dark" | "light";
  fontSize: number;
}

export interface Target {
  host: string;
  container: string;
  /// The container's id; empty: the terminal is on the host itself.
  id: string;
  /// The user in the container; empty: the container's own.
  user: string;
  session: string | null;
}

const utf8 = new TextEncoder();

export class Tab {
  readonly root = element("section", "tab");
  readonly terminal: Terminal;
  readonly search = new SearchAddon();
  title: string;
  isOver = false;
  private readonly name: string;
  private readonly fit = new FitAddon();
  private readonly wire: Wire;
  private readonly banner = element("div", "banner");
  private readonly screen = element("div", "screen");
  /// Absent on a host itself, and for who may not copy.
  readonly files: Files | null;
  private idle: ReturnType<typeof setTimeout> | undefined;
  private isIdle = false;

  constructor(
    readonly target: Target,
    settings: Settings,
    mayCopy: boolean,
    private readonly changed: () => void,
  ) {
    this.files = mayCopy && target.id !== "" ? new Files(target) : null;
    this.name = `${plain(target.host, 128)}/${plain(target.container, 128)}`;
    this.title = this.name;
    this.banner.setAttribute("role", "status");
    this.banner.hidden = true;
    this.root.append(this.banner, ...(this.files ? [this.files.root] : []), this.screen);
    this.terminal = new Terminal({
      allowProposedApi: true,
      cursorBlink: true,
      fontFamily: FONTS,
      fontSize: settings.fontSize,
      scrollback: 5_000,
      theme: THEMES[settings.theme],
      // A container may draw; it may not steer the page.
      windowOptions: {},
      linkHandler: null,
    });
    this.terminal.loadAddon(this.fit);
    this.terminal.loadAddon(this.search);
    this.terminal.loadAddon(new UnicodeGraphemesAddon());
    guard(this.terminal, {
      title: (title) => {
        this.title = `${this.name}${title ? ` · ${title}` : ""}`;
        this.changed();
      },
      clipboard: (text) => this.offerClipboard(text),
    });
    this.wire = new Wire(
      {
        output: (bytes, shown) => this.terminal.write(bytes, shown),
        opened: (open) => {
          this.target.session = open.session;
          if (open.gap) this.say("Some output was too old to be kept.", "note");
          else this.quiet();
          this.changed();
        },
        away: (reason) => this.say(reason, "away"),
        ended: (end) => this.ended(end),
        size: () => ({ columns: this.terminal.cols, rows: this.terminal.rows }),
      },
      target.session,
    );
    this.terminal.onData((text) => this.typed(utf8.encode(text)));
    this.terminal.onBinary((text) => this.typed(Uint8Array.from(text, (c) => c.charCodeAt(0))));
    this.terminal.onResize(({ cols, rows }) => this.wire.resize(cols, rows));
    this.terminal.attachCustomKeyEventHandler((event) => this.key(event));
  }

  /// A program wants to write to the clipboard: only when somebody here says so. It never reads it.
  private offerClipboard(text: string): void {
    const shown = plain(text, 60);
    this.say(`A program in ${this.target.container} wants to put "${shown}" into your clipboard.`, "ask");
    const yes = element("button", "", "Allow once");
    yes.onclick = () => {
      void navigator.clipboard.writeText(text);
      this.quiet();
      this.focus();
    };
    const no = element("button", "", "No");
    no.onclick = () => {
      this.quiet();
      this.focus();
    };
    this.banner.append(yes, no);
  }

  async open(): Promise<void> {
    this.terminal.open(this.screen);
    drawFast(this.terminal);
    this.refit();
    this.stir();
    const { session, host, container, id, user } = this.target;
    const { cols, rows } = this.terminal;
    try {
      await this.wire.start((relay) =>
        session !== null ? api.again(session)
          : id === "" ? api.openHost(host, cols, rows, relay)
          : api.open(host, container, user, cols, rows, relay),
      );
      this.changed();
    } catch (error) {
      const refusal = error as api.Refusal;
      this.ended({
        code: refusal.code ?? "", message: [refusal.message, refusal.hint].filter(Boolean).join(" "),
        exit_code: null, resumable: false,
      });
    }
  }

  private typed(bytes: Uint8Array): void {
    this.stir();
    this.wire.input(bytes);
  }

  private key(event: KeyboardEvent): boolean {
    if (event.type !== "keydown" || !event.ctrlKey || !event.shiftKey) return true;
    if (event.code === "KeyC" && this.terminal.hasSelection()) {
      void navigator.clipboard.writeText(this.terminal.getSelection());
      event.preventDefault();
      return false;
    }
    // Ctrl-Shift-V is the browser's own paste; Ctrl-Shift-F is the page's search.
    return event.code !== "KeyV" && event.code !== "KeyF";
  }

  private stir(): void {
    clearTimeout(this.idle);
    if (this.isIdle) {
      this.isIdle = false;
      this.quiet();
    }
    this.idle = setTimeout(() => {
      if (this.isOver) return;
      this.isIdle = true;
      this.say("Nobody has typed here for 15 minutes. This terminal is still open.", "note");
    }, IDLE_WARNING_MS);
  }

  private say(text: string, kind: "note" | "away" | "ask" | "over"): void {
    this.banner.replaceChildren(element("span", "", text));
    this.banner.className = `banner ${kind}`;
    this.banner.hidden = false;
    this.refit();
  }

  private quiet(): void {
    this.banner.hidden = true;
    this.refit();
  }

  private ended(end: End): void {
    this.isOver = true;
    this.target.session = end.resumable ? this.target.session : null;
    clearTimeout(this.idle);
    const words = end.message !== "" ? end.message : `The shell has ended${end.exit_code === null ? "" : ` (${end.exit_code})`}.`;
    this.say(plain(words, 400), "over");
    this.banner.classList.toggle("well", end.message === "" && end.exit_code === 0);
    this.terminal.options.cursorBlink = false;
    this.terminal.options.disableStdin = true;
    this.changed();
  }

  refit(): void {
    if (this.root.hidden || !this.root.isConnected) return;
    this.fit.fit();
  }

  apply(settings: Settings): void {
    this.terminal.options.theme = THEMES[settings.theme];
    this.terminal.options.fontSize = settings.fontSize;
    this.refit();
  }

  focus(): void {
    this.terminal.focus();
  }

  toggleFiles(): void {
    this.files?.toggle();
    this.refit();
    if (this.files?.root.hidden) this.focus();
  }

  /// Ends the session, as its user wants it.
  close(): void {
    this.files?.close();
    clearTimeout(this.idle);
    const session = this.wire.id;
    if (!this.isOver && session !== null) void api.end(session).catch(() => undefined);
    this.wire.leave();
    this.terminal.dispose();
    this.root.remove();
  }

  /// For tests: what is under way.
  get pending(): number {
    return this.wire.backlog;
  }
}
