// Tar archives, as far as one file goes in and one comes out. What unpacks them is the container engine.

const BLOCK = 512;
const utf8 = new TextEncoder();

/// What is wrong with a name for a file in an archive; empty: nothing.
export function wrongName(name: string): string {
  if (name === "" || name === "." || name === "..") return "A file needs a name.";
  if (/[/\u0000-\u001f\u007f]/.test(name)) return "The file's name has a slash or a control character in it.";
  return utf8.encode(name).length > 100 ? "The file's name is longer than 100 bytes; fairlead cp takes such names." : "";
}

function octal(value: number, digits: number): Uint8Array {
  return utf8.encode(`${Math.floor(value).toString(8).padStart(digits, "0")}\0`);
}

/// The archive of one file, which is read when the archive is.
export function archive(name: string, file: Blob, modified: number): Blob {
  const head = new Uint8Array(BLOCK);
  head.set(utf8.encode(name), 0);
  head.set(octal(0o644, 7), 100);
  head.set(octal(0, 7), 108);
  head.set(octal(0, 7), 116);
  head.set(octal(file.size, 11), 124);
  head.set(octal(Math.max(0, modified / 1000), 11), 136);
  head.fill(0x20, 148, 156);
  head[156] = 0x30;
  head.set(utf8.encode("ustar\u000000"), 257);
  const sum = head.reduce((all, byte) => all + byte, 0);
  head.set(utf8.encode(`${sum.toString(8).padStart(6, "0")}\0 `), 148);
  const padding = new Uint8Array(((BLOCK - (file.size % BLOCK)) % BLOCK) + 2 * BLOCK);
  return new Blob([head, file, padding]);
}

/// What an archive begins with.
export interface Entry {
  kind: "file" | "folder" | "link" | "other";
  size: number;
  /// Where a link leads.
  leads: string;
}

/// Takes an archive apart as it comes: the first entry, and of a file its bytes.
export class FirstEntry {
  entry: Entry | null = null;
  private held: Uint8Array<ArrayBuffer> = new Uint8Array(0);
  private left = 0;
  private skip = 0;
  private largeSize: number | null = null;

  /// The file's bytes in this piece of the archive.
  take(piece: Uint8Array<ArrayBuffer>): Uint8Array<ArrayBuffer> {
    while (this.entry === null) {
      const all: Uint8Array<ArrayBuffer> = new Uint8Array(this.held.length + piece.length);
      all.set(this.held);
      all.set(piece, this.held.length);
      const next = this.header(all);
      if (next === null) {
        this.held = all;
        return all.subarray(0, 0);
      }
      this.held = new Uint8Array(0);
      piece = next;
    }
    const own = piece.subarray(0, Math.min(this.left, piece.length));
    this.left -= own.length;
    return own;
  }

  /// Whether all of the file has come.
  get isWhole(): boolean {
    return this.entry !== null && this.left === 0;
  }

  /// Reads one header; what follows it, or null when more is needed.
  private header(all: Uint8Array<ArrayBuffer>): Uint8Array<ArrayBuffer> | null {
    if (all.length < BLOCK) return null;
    const text = (from: number, length: number) => {
      const field = all.subarray(from, from + length);
      const end = field.indexOf(0);
      return new TextDecoder().decode(end < 0 ? field : field.subarray(0, end));
    };
    const size = this.largeSize ?? (parseInt(text(124, 12).trim(), 8) || 0);
    const flag = String.fromCharCode(all[156]!);
    if ("xgLK".includes(flag)) {
      // Longer names, larger sizes, of the entry that follows.
      this.skip = BLOCK + Math.ceil(size / BLOCK) * BLOCK;
      if (size > 64 * 1024) throw new Error("The host sent an archive with an unreasonable header.");
      if (all.length < this.skip) return null;
      const said = flag === "x" ? /(?:^|\n)\d+ size=(\d+)\n/.exec(text(BLOCK, size)) : null;
      if (said) this.largeSize = Number(said[1]);
      return all.slice(this.skip);
    }
    const kind = flag === "0" || flag === "\0" ? "file" : flag === "5" ? "folder" : flag === "2" ? "link" : "other";
    this.entry = { kind, size: kind === "file" ? size : 0, leads: text(157, 100) };
    this.left = this.entry.size;
    return all.slice(BLOCK);
  }
}
