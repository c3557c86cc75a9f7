// One session's socket: the ticket first, then bytes both ways, each side only so far ahead of what the
// other has acknowledged. Goes on at the very byte when the connection breaks.

import * as api from "./api";

export interface End {
  code: string;
  message: string;
  exit_code: number | null;
  resumable: boolean;
}

interface Open {
  session: string;
  host: string;
  container: string;
  from: number;
  received: number;
  taken: number;
  window: number;
  gap: boolean;
}

export interface Events {
  /// Output; `shown` is to be called when it has been drawn.
  output(bytes: Uint8Array, shown: () => void): void;
  opened(open: Open): void;
  /// The connection broke; it is tried again.
  away(reason: string): void;
  ended(end: End): void;
  size(): { columns: number; rows: number };
}

const CHUNK = 16 * 1024;
// The server keeps a session for 60 s; some of that is the way.
const GIVE_UP_AFTER_MS = 58_000;
const AWAY_TOO_LONG = "The server could not be reached for a minute, and keeps a session no longer.";
// A region's server that has not let us in by then is tried no longer: the controller relays.
const REACHED_WITHIN_MS = 6_000;
// What has been drawn is told in steps.
const TELL_EVERY = 32 * 1024;

export class Wire {
  private socket: WebSocket | null = null;
  private session: string | null;
  private received: number | null = null;
  private shown = 0;
  private told = 0;
  private window = 0;
  private begun = false;
  // Input from `taken` on: what is under way, and what waits.
  private pieces: Uint8Array[] = [];
  private taken = 0;
  private sent = 0;
  private waiting = 0;
  private isOver = false;
  /// The session was there before this page.
  private readonly isReturn: boolean;
  private awaySince: number | null = null;
  private tries = 0;

  constructor(
    private readonly events: Events,
    session: string | null,
  ) {
    this.session = session;
    this.isReturn = session !== null;
  }

  /// What was refused is over.
  private refused(error: unknown): void {
    this.isOver = true;
    const code = error instanceof api.Refusal ? error.code : "stream_lost";
    this.events.ended({ code, message: (error as Error).message, exit_code: null, resumable: false });
  }

  get id(): string | null {
    return this.session;
  }

  /// Input that has not been sent yet.
  get backlog(): number {
    return this.waiting;
  }

  /// Opens the session, or comes back to it. Where its region's server has the socket, and is not reached from
  /// here, a session that has not begun goes through this page's own server.
  async start(ticket: (relay: boolean) => Promise<api.Ticket>, relay = false): Promise<void> {
    const given = await ticket(relay);
    if (this.isOver) return;
    this.session = given.session;
    const url = new URL(given.socket, given.server ?? location.href);
    url.protocol = url.protocol === "https:" ? "wss:" : "ws:";
    const isElsewhere = given.server !== undefined && this.received === null && !this.isReturn;
    let socket: WebSocket;
    try {
      socket = new WebSocket(url, "fairlead.terminal.v1");
    } catch (error) {
      // A page from before its region was there may not talk to it.
      if (isElsewhere) return this.start(ticket, true);
      throw error;
    }
    socket.binaryType = "arraybuffer";
    this.socket = socket;
    let isReached = false;
    const late = setTimeout(() => {
      if (!isReached && given.server !== undefined) socket.close();
    }, REACHED_WITHIN_MS);
    socket.onopen = () => {
      isReached = true;
      const { columns, rows } = this.events.size();
      const hello: Record<string, unknown> = { ticket: given.ticket, columns, rows };
      if (this.received !== null) hello["from"] = this.received;
      socket.send(JSON.stringify(hello));
    };
    socket.onmessage = (event) => {
      if (socket !== this.socket) return;
      if (typeof event.data === "string") this.say(JSON.parse(event.data));
      else this.take(new Uint8Array(event.data as ArrayBuffer));
    };
    socket.onclose = () => {
      clearTimeout(late);
      if (socket !== this.socket) return;
      if (isReached || !isElsewhere) this.broke();
      else this.start(ticket, true).catch((error: unknown) => this.refused(error));
    };
  }

  private say(message: unknown): void {
    if (message === "begun") {
      this.begun = true;
      this.pump();
      return;
    }
    const said = message as { open?: Open; taken?: number; ended?: End };
    if (said.open) {
      const open = said.open;
      this.awaySince = null;
      this.tries = 0;
      this.begun = false;
      this.window = open.window;
      if (this.received === null) {
        // A page that was loaded anew: what was typed before, and is still to be taken, counts and is never
        // sent again.
        this.taken = open.taken;
        this.pieces.unshift(new Uint8Array(open.received - open.taken));
      } else {
        this.dropTaken(open.taken);
      }
      this.sent = Math.max(open.received, this.taken);
      this.waiting = this.length() - (this.sent - this.taken);
      this.received = this.shown = this.told = open.from;
      this.events.opened(open);
    } else if (said.taken !== undefined) {
      this.dropTaken(said.taken);
      this.pump();
    } else if (said.ended) {
      this.isOver = true;
      this.events.ended(said.ended);
    }
  }

  private take(bytes: Uint8Array): void {
    if (this.received === null) return;
    this.received += bytes.length;
    const until = this.received;
    const socket = this.socket;
    this.events.output(bytes, () => {
      if (socket !== this.socket) return;
      this.shown = Math.max(this.shown, until);
      if (this.shown - this.told >= TELL_EVERY || this.shown === this.received) {
        this.told = this.shown;
        this.send(JSON.stringify({ shown: this.shown }));
      }
    });
  }

  private send(data: string | Uint8Array<ArrayBuffer>): void {
    if (this.socket?.readyState === WebSocket.OPEN) this.socket.send(data);
  }

  input(bytes: Uint8Array): void {
    if (this.isOver || bytes.length === 0) return;
    this.pieces.push(bytes);
    this.waiting += bytes.length;
    this.pump();
  }

  resize(columns: number, rows: number): void {
    if (this.received !== null) this.send(JSON.stringify({ resize: { columns, rows } }));
  }

  private length(): number {
    return this.pieces.reduce((sum, piece) => sum + piece.length, 0);
  }

  private dropTaken(until: number): void {
    let gone = until - this.taken;
    if (gone <= 0) return;
    this.taken = until;
    while (gone > 0 && this.pieces.length > 0) {
      const first = this.pieces[0]!;
      if (first.length <= gone) {
        gone -= first.length;
        this.pieces.shift();
      } else {
        this.pieces[0] = first.subarray(gone);
        gone = 0;
      }
    }
  }

  /// Sends as much input as the window allows.
  private pump(): void {
    if (!this.begun || this.socket?.readyState !== WebSocket.OPEN) return;
    let at = this.taken;
    for (const piece of [...this.pieces]) {
      const ends = at + piece.length;
      while (this.sent < ends && this.sent - this.taken < this.window) {
        const from = this.sent - at;
        const room = Math.min(CHUNK, this.window - (this.sent - this.taken));
        const chunk = piece.slice(from, from + room);
        this.send(chunk);
        this.sent += chunk.length;
        this.waiting -= chunk.length;
      }
      at = ends;
      if (this.sent < ends) return;
    }
  }

  private broke(): void {
    this.socket = null;
    this.begun = false;
    if (this.isOver) return;
    this.awaySince ??= Date.now();
    if (Date.now() - this.awaySince > GIVE_UP_AFTER_MS) return this.giveUp(AWAY_TOO_LONG);
    this.tries += 1;
    this.events.away("The connection broke. Coming back to the session…");
    const wait = Math.min(250 * 2 ** this.tries, 5_000) * (0.5 + Math.random() / 2);
    setTimeout(() => void this.comeBack(), wait);
  }

  private async comeBack(): Promise<void> {
    const session = this.session;
    if (this.isOver || this.socket !== null || session === null) return;
    try {
      await this.start(() => api.again(session));
    } catch (error) {
      const final = error instanceof api.Refusal && error.status >= 400 && error.status < 500 && error.status !== 429;
      if (final || Date.now() - (this.awaySince ?? 0) > GIVE_UP_AFTER_MS) {
        this.giveUp(final ? (error as Error).message : AWAY_TOO_LONG);
      } else {
        this.broke();
      }
    }
  }

  private giveUp(message: string): void {
    this.isOver = true;
    this.events.ended({ code: "stream_lost", message, exit_code: null, resumable: false });
  }

  /// Lets the socket go; the session goes on for a minute.
  leave(): void {
    this.isOver = true;
    this.socket?.close();
  }
}
