// Plays a recording: a terminal that nobody types into.

import { SearchAddon } from "@xterm/addon-search";
import { UnicodeGraphemesAddon } from "@xterm/addon-unicode-graphemes";
import { Terminal } from "@xterm/xterm";
import * as api from "./api";
import { parse, verify, type Cast } from "./cast";
import { element, plain } from "./dom";
import { guard } from "./guard";
import { drawFast } from "./renderer";
import { FONTS, THEMES, type Settings } from "./tab";

// Larger ones are for a player on a disk.
const BYTES_MAX = 64 * 1024 * 1024;
// Pauses are cut short to this.
const PAUSE_MAX_S = 2;
// How much is given to the terminal before it has drawn it.
const AHEAD_MAX = 512 * 1024;
const SPEEDS = [1, 2, 4, 16];

function clock(seconds: number): string {
  const whole = Math.floor(seconds);
  return `${Math.floor(whole / 60)}:${String(whole % 60).padStart(2, "0")}`;
}

export class Player {
  readonly root = element("section", "tab");
  readonly terminal: Terminal;
  readonly search = new SearchAddon();
  readonly title: string;
  readonly isOver = false;
  private readonly screen = element("div", "screen scrolls");
  private readonly note = element("div", "banner note");
  private readonly play = element("button", "", "Play");
  private readonly slider = element("input");
  private readonly time = element("span", "time");
  private readonly speed = element("select");
  private cast: Cast = { columns: 80, rows: 25, frames: [], seconds: 0, lines: [] };
  private at = 0;
  private seconds = 0;
  private timer: ReturnType<typeof setTimeout> | undefined;
  // The newest seek; and whether it goes on playing when it has drawn.
  private turn = 0;
  private playing = false;

  constructor(private readonly recording: api.Recording, settings: Settings) {
    this.title = `▷ ${plain(recording.host, 128)}/${plain(recording.container, 128)}`;
    this.terminal = new Terminal({
      allowProposedApi: true,
      disableStdin: true,
      fontFamily: FONTS,
      fontSize: settings.fontSize,
      scrollback: 5_000,
      theme: THEMES[settings.theme],
      windowOptions: {},
      linkHandler: null,
    });
    this.terminal.loadAddon(this.search);
    this.terminal.loadAddon(new UnicodeGraphemesAddon());
    // What was recorded asks for nothing.
    guard(this.terminal, {});
    this.slider.type = "range";
    this.slider.min = "0";
    this.slider.step = "any";
    this.slider.setAttribute("aria-label", "Time");
    this.slider.oninput = () => void this.seek(Number(this.slider.value));
    this.play.onclick = () => (this.timer === undefined && !this.playing ? this.start() : this.pause());
    this.speed.setAttribute("aria-label", "Speed");
    for (const times of SPEEDS) {
      const option = element("option", "", `${times}×`);
      option.value = String(times);
      this.speed.append(option);
    }
    this.speed.onchange = () => this.focus();
    const controls = element("div", "controls");
    controls.append(this.play, this.slider, this.time, this.speed);
    this.root.append(this.note, controls, this.screen);
  }

  async open(): Promise<void> {
    this.terminal.open(this.screen);
    drawFast(this.terminal);
    const { recording } = this;
    const whose = `${plain(recording.user, 128)}, ${new Date(recording.started_at).toLocaleString()}`;
    this.note.textContent = whose;
    if (recording.bytes > BYTES_MAX) {
      this.note.textContent = `${whose}: too large to be played here (fairlead terminal recording ${recording.session})`;
      return;
    }
    try {
      this.cast = parse(await api.recorded(recording.session));
      this.slider.max = String(this.cast.seconds);
      this.again();
      const found = await verify(this.cast.lines);
      this.note.textContent = "hash" in found
        ? `${whose}. Whole and as recorded; its hash, for the audit log's row terminal.end: ${found.hash}`
        : `${whose}. NOT as recorded: ${found.broken}.`;
      this.note.className = "hash" in found ? "banner note" : "banner over";
    } catch (error) {
      this.note.textContent = `${whose}: ${error instanceof SyntaxError ? "this is not a recording" : (error as Error).message}`;
      this.note.className = "banner over";
    }
  }

  private show(seconds: number): void {
    this.seconds = seconds;
    this.slider.value = String(seconds);
    this.time.textContent = `${clock(seconds)} / ${clock(this.cast.seconds)}`;
  }

  /// Draws what had been shown at that time. The newest call wins.
  private async seek(seconds: number): Promise<void> {
    const turn = ++this.turn;
    this.playing ||= this.timer !== undefined;
    this.stop();
    this.show(seconds);
    // Only what has been drawn can be wiped away.
    await this.drawn();
    if (turn !== this.turn) return;
    this.terminal.reset();
    this.terminal.resize(this.cast.columns, this.cast.rows);
    this.at = 0;
    let written = 0;
    while (this.at < this.cast.frames.length && this.cast.frames[this.at]!.at <= seconds) {
      written += this.step();
      if (written < AHEAD_MAX) continue;
      written = 0;
      await this.drawn();
      if (turn !== this.turn) return;
    }
    await this.drawn();
    if (turn !== this.turn) return;
    const goesOn = this.playing && this.at < this.cast.frames.length;
    this.playing = false;
    if (goesOn) this.next();
    else this.pause();
  }

  private drawn(): Promise<void> {
    return new Promise((resolve) => this.terminal.write("", resolve));
  }

  /// Draws one frame; tells how long it is.
  private step(): number {
    const frame = this.cast.frames[this.at++]!;
    if (frame.kind === "o") {
      this.terminal.write(frame.data);
      return frame.data.length;
    }
    const [columns, rows] = frame.data.split("x").map(Number);
    // What is drawn already is drawn in the size that it was drawn for.
    this.terminal.write("", () => this.terminal.resize(columns ?? 80, rows ?? 25));
    return 0;
  }

  private start(): void {
    if (this.at >= this.cast.frames.length) {
      this.again();
      return;
    }
    this.play.textContent = "Pause";
    this.next();
  }

  private again(): void {
    this.play.textContent = "Pause";
    this.playing = true;
    void this.seek(0);
  }

  private next(): void {
    const frame = this.cast.frames[this.at];
    if (frame === undefined) {
      this.pause();
      return;
    }
    const wait = Math.min(frame.at - this.seconds, PAUSE_MAX_S) / Number(this.speed.value);
    this.timer = setTimeout(() => {
      const until = frame.at + 0.02 * Number(this.speed.value);
      while (this.at < this.cast.frames.length && this.cast.frames[this.at]!.at <= until) this.step();
      this.show(this.cast.frames[this.at - 1]!.at);
      this.next();
    }, Math.max(0, wait * 1000));
  }

  private stop(): void {
    clearTimeout(this.timer);
    this.timer = undefined;
  }

  private pause(): void {
    this.stop();
    this.turn++;
    this.playing = false;
    this.play.textContent = "Play";
  }

  apply(settings: Settings): void {
    this.terminal.options.theme = THEMES[settings.theme];
    this.terminal.options.fontSize = settings.fontSize;
  }

  refit(): void {
    // It has the size that it was recorded in.
  }

  focus(): void {
    this.play.focus();
  }

  close(): void {
    this.pause();
    this.terminal.dispose();
    this.root.remove();
  }
}
