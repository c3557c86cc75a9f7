// The API, as far as this page needs it. The token is kept for this tab alone, and never in a URL.

const KEY = "fairlead.token";
const REACH_AGAIN_MS = [200, 800];
// A command's stream is there a moment after the command is; what says that it is not yet, and how long it may.
const NOT_YET = ["busy", "host_offline", "no_stream", "region_offline"];
const NOT_YET_MS = 8_000;

export interface Ticket {
  session: string;
  ticket: string;
  socket: string;
  /// The server that has the socket; absent: this one.
  server?: string;
  origin: string;
  host: string;
  container: string;
}

export interface Container {
  host: string;
  name: string;
  id: string;
  image: string;
  state: string;
  project: string;
}

export interface Recording {
  session: string;
  user: string;
  host: string;
  container: string;
  started_at: string;
  bytes: number;
}

export class Refusal extends Error {
  constructor(
    readonly status: number,
    readonly code: string,
    message: string,
    readonly hint: string,
  ) {
    super(message);
  }
}

export function token(): string | null {
  return sessionStorage.getItem(KEY);
}

export function keep(token: string | null): void {
  if (token === null) sessionStorage.removeItem(KEY);
  else sessionStorage.setItem(KEY, token);
}

// A computer that changes its network loses what is under way. All that is asked here may be asked twice: of
// two tickets the first is never used, and a terminal that has ended cannot be ended again.
async function reach(path: string, request: RequestInit): Promise<Response> {
  for (let left = REACH_AGAIN_MS.length; ; left--) {
    try {
      return await fetch(path, request);
    } catch {
      const wait = REACH_AGAIN_MS[REACH_AGAIN_MS.length - left];
      if (wait === undefined) throw new Error("The server cannot be reached.");
      await new Promise((resolve) => setTimeout(resolve, wait));
    }
  }
}

async function ask<T>(method: string, path: string, body?: unknown): Promise<T> {
  return JSON.parse(await asked(method, path, body)) as T;
}

async function asked(method: string, path: string, body?: unknown): Promise<string> {
  const headers: Record<string, string> = { authorization: `Bearer ${token() ?? ""}` };
  if (body !== undefined) headers["content-type"] = "application/json";
  const answer = await reach(`/api/v1/${path}`, {
    method,
    headers,
    credentials: "omit",
    cache: "no-store",
    body: body === undefined ? undefined : JSON.stringify(body),
  });
  const text = await answer.text();
  if (answer.ok) return text;
  throw refusal(answer.status, text);
}

function refusal(status: number, text: string): Refusal {
  let error = { code: "", message: `the server answered with HTTP ${status}`, hint: "" };
  try {
    error = { ...error, ...JSON.parse(text).error };
  } catch {
    // No explanation came; the status has to do.
  }
  return new Refusal(status, error.code, error.message, error.hint);
}

export interface Host {
  name: string;
  state: string;
  facts: { host_shell?: boolean } | null;
}

export const hosts = () => ask<Host[]>("GET", "hosts");

/// A command whose stream will be opened; only for the container of that id.
export const command = async (host: string, action: object, containerId: string): Promise<string> =>
  (await ask<{ id: string }>("POST", "commands", {
    host, action, attach: true, precondition: { container_id: containerId },
  })).id;

const archivePath = (command: string) => `/api/v1/commands/${encodeURIComponent(command)}/archive`;

async function patiently<T>(work: () => Promise<T>, signal: AbortSignal): Promise<T> {
  const since = Date.now();
  for (;;) {
    signal.throwIfAborted();
    try {
      return await work();
    } catch (error) {
      const isNotYet = error instanceof Refusal && NOT_YET.includes(error.code);
      if (!isNotYet || Date.now() - since > NOT_YET_MS) throw error;
      await new Promise((resolve) => setTimeout(resolve, 300));
    }
  }
}

/// The archive that a copy out brings.
export const copyOut = (command: string, signal: AbortSignal): Promise<Response> =>
  patiently(async () => {
    const answer = await fetch(archivePath(command), {
      headers: { authorization: `Bearer ${token() ?? ""}` }, credentials: "omit", cache: "no-store", signal,
    });
    if (!answer.ok) throw refusal(answer.status, await answer.text());
    return answer;
  }, signal);

/// Sends the archive of a copy in. (Of what `fetch` sends a page hears nothing before the end.)
export const copyIn = (command: string, archive: Blob, signal: AbortSignal, sent: (bytes: number) => void): Promise<void> =>
  patiently(() => new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open("PUT", archivePath(command));
    request.setRequestHeader("authorization", `Bearer ${token() ?? ""}`);
    request.setRequestHeader("content-type", "application/x-tar");
    request.upload.onprogress = (event) => sent(event.loaded);
    request.onload = () => {
      if (request.status === 200) resolve();
      else reject(refusal(request.status, request.responseText));
    };
    request.onerror = () => reject(new Error("The connection to the server broke; nothing was copied, or its end was not heard."));
    request.onabort = () => reject(new Error("Cancelled."));
    signal.addEventListener("abort", () => request.abort(), { once: true });
    request.send(archive);
  }), signal);

export const whoami = () => ask<{ name: string; permissions: string[] }>("GET", "whoami");
export const containers = () => ask<Container[]>("GET", "containers");
export const open = (
  host: string, container: string, user: string, columns: number, rows: number, relay: boolean,
) => ask<Ticket>("POST", "terminals", { host, container, user, columns, rows, relay });
export const openHost = (host: string, columns: number, rows: number, relay: boolean) =>
  ask<Ticket>("POST", "terminals", { host, on_host: true, columns, rows, relay });
export const recordings = (from: Date | null, to: Date | null) => {
  const query = new URLSearchParams();
  if (from !== null) query.set("from", from.toISOString());
  if (to !== null) query.set("to", to.toISOString());
  return ask<Recording[]>("GET", `recordings?${query}`);
};
export const recorded = (session: string) => asked("GET", `recordings/${encodeURIComponent(session)}`);
export const again = (session: string) =>
  ask<Ticket>("POST", `terminals/${encodeURIComponent(session)}/ticket`, {});
export const end = (session: string) =>
  ask<unknown>("DELETE", `terminals/${encodeURIComponent(session)}`);
