// The API, as far as this page needs it. The token is kept for this tab alone, and never in a URL.

const KEY = "fairlead.token";
const REACH_AGAIN_MS = [200, 800];

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
  let error = { code: "", message: `the server answered with HTTP ${answer.status}`, hint: "" };
  try {
    error = { ...error, ...JSON.parse(text).error };
  } catch {
    // No explanation came; the status has to do.
  }
  throw new Refusal(answer.status, error.code, error.message, error.hint);
}

export const whoami = () => ask<{ name: string; permissions: string[] }>("GET", "whoami");
export const containers = () => ask<Container[]>("GET", "containers");
export const open = (
  host: string, container: string, user: string, columns: number, rows: number, relay: boolean,
) => ask<Ticket>("POST", "terminals", { host, container, user, columns, rows, relay });
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
