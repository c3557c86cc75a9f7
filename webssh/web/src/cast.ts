// A recording: asciicast 2, with lines of type `h` that hold a hash over all lines before them.

export interface Frame {
  at: number;
  kind: "o" | "r";
  data: string;
}

export interface Cast {
  columns: number;
  rows: number;
  frames: Frame[];
  seconds: number;
  lines: string[];
}

export function parse(text: string): Cast {
  const lines = text.split("\n").filter((line) => line !== "");
  const header = JSON.parse(lines[0] ?? "") as { width: number; height: number };
  const frames: Frame[] = [];
  for (const line of lines.slice(1)) {
    const [at, kind, data] = JSON.parse(line) as [number, string, string];
    if (kind === "o" || kind === "r") frames.push({ at, kind, data });
  }
  return { columns: header.width, rows: header.height, frames, seconds: frames.at(-1)?.at ?? 0, lines };
}

const utf8 = new TextEncoder();

async function next(chain: Uint8Array, line: string): Promise<Uint8Array> {
  const bytes = utf8.encode(line);
  const both = new Uint8Array(chain.length + bytes.length);
  both.set(chain);
  both.set(bytes, chain.length);
  return new Uint8Array(await crypto.subtle.digest("SHA-256", both));
}

const hex = (bytes: Uint8Array) => [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("");

/// What the chain says: the last hash of a whole recording, or what is wrong with it.
export async function verify(lines: string[]): Promise<{ hash: string } | { broken: string }> {
  let chain: Uint8Array = new Uint8Array(32);
  let end = "";
  let loose = 0;
  for (const [number, line] of lines.entries()) {
    if (end !== "") return { broken: `line ${number + 1} lies behind its end` };
    loose += 1;
    if (number > 0) {
      const [, kind, said] = JSON.parse(line) as [number, string, string];
      if (kind === "h") {
        const now = `${number} ${hex(chain)}`;
        if (said === `${now} end`) end = hex(chain);
        else if (said !== now) return { broken: `before line ${number + 1} lies not what was recorded` };
        loose = 0;
      }
    }
    chain = await next(chain, line);
  }
  if (end !== "") return { hash: end };
  return { broken: loose > 0 ? `its last ${loose} lines have no hash` : "it has no end: it goes on, or was cut off" };
}
