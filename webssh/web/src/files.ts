// Files into and out of the container of a tab: the same commands as `fairlead cp`, so the same permission, policy
// and audit. An archive passes through; nothing of it is kept at the servers.

import * as api from "./api";
import { element, plain } from "./dom";
import { Sha256 } from "./sha256";
import { FirstEntry, archive, wrongName } from "./tar";

/// What a page carries: beyond it there is `fairlead cp`.
export const SIZE_MAX = 1024 ** 3;

export interface Place {
  host: string;
  container: string;
  /// The container that is meant, also when another takes its name.
  id: string;
}

function bytes(count: number): string {
  const units = ["B", "KB", "MB", "GB"];
  let at = 0;
  while (count >= 1000 && at < units.length - 1) {
    count /= 1000;
    at++;
  }
  return `${at === 0 ? count : count.toFixed(1)} ${units[at]}`;
}

const tooLarge = (what: string) =>
  new Error(`${what} has more than ${bytes(SIZE_MAX)}, which is more than a page carries: fairlead cp has no such limit.`);

export class Files {
  readonly root = element("div", "files");
  private readonly from = element("input", "path");
  private readonly to = element("input", "path");
  private readonly choose = element("input");
  private readonly bar = element("progress");
  private readonly said = element("span", "said");
  private readonly stop = element("button", "", "Cancel");
  private readonly buttons: HTMLButtonElement[] = [];
  private cancelled: AbortController | null = null;

  constructor(private readonly place: Place) {
    const label = (input: HTMLInputElement, words: string, value: string) => {
      input.setAttribute("aria-label", words);
      input.placeholder = words;
      input.value = value;
      input.spellcheck = false;
    };
    label(this.from, "File or folder in the container", "");
    label(this.to, "Folder in the container", "/tmp");
    this.choose.type = "file";
    this.choose.hidden = true;
    this.choose.setAttribute("aria-label", "File to upload");
    const download = element("button", "", "Download");
    download.onclick = () => void this.run(() => this.download(this.from.value.trim()));
    this.from.onkeydown = (event) => {
      if (event.key === "Enter") download.click();
    };
    const upload = element("button", "", "Upload…");
    upload.onclick = () => this.choose.click();
    this.choose.onchange = () => {
      const file = this.choose.files?.[0];
      this.choose.value = "";
      if (file) void this.run(() => this.upload(file, this.to.value.trim()));
    };
    this.buttons.push(download, upload);
    this.stop.onclick = () => this.cancelled?.abort();
    this.said.setAttribute("role", "status");
    this.root.append(this.from, download, this.to, upload, this.choose, this.bar, this.stop, this.said);
    this.busy(false);
    this.root.hidden = true;
  }

  toggle(): void {
    this.root.hidden = !this.root.hidden;
    if (!this.root.hidden) this.from.focus();
  }

  /// What is under way is given up.
  close(): void {
    this.cancelled?.abort();
  }

  private busy(is: boolean): void {
    for (const button of this.buttons) button.disabled = is;
    this.bar.hidden = this.stop.hidden = !is;
    this.bar.removeAttribute("value");
  }

  private async run(work: () => Promise<string>): Promise<void> {
    this.cancelled = new AbortController();
    this.busy(true);
    this.said.className = "said";
    this.said.textContent = "";
    try {
      this.said.textContent = plain(await work(), 300);
    } catch (error) {
      const isCancelled = this.cancelled.signal.aborted;
      const words = isCancelled ? "Cancelled." : [(error as Error).message, (error as api.Refusal).hint].filter(Boolean).join(" ");
      this.said.textContent = plain(words, 400);
      this.said.className = isCancelled ? "said" : "said wrong";
    } finally {
      this.busy(false);
      this.cancelled = null;
    }
  }

  private moved(now: number, all: number | null, words: string): void {
    if (all !== null && all > 0) this.bar.value = now / all;
    this.said.textContent = all === null ? `${words} ${bytes(now)}` : `${words} ${bytes(now)} of ${bytes(all)}`;
  }

  private async download(path: string): Promise<string> {
    if (!path.startsWith("/")) throw new Error("A path in the container begins with a slash.");
    const signal = this.cancelled!.signal;
    const { host, container, id } = this.place;
    const action = { kind: "copy-out", container, path };
    const answer = await api.copyOut(await api.command(host, action, id), signal);
    const reader = answer.body!.getReader();
    const first = new FirstEntry();
    const whole: BlobPart[] = [];
    const own: BlobPart[] = [];
    let received = 0;
    for (;;) {
      const { done, value } = await reader.read();
      if (done) break;
      received += value.length;
      if (received > SIZE_MAX + 64 * 1024) throw this.give(tooLarge(path));
      const part = first.take(value);
      const entry = first.entry;
      if (entry?.kind === "link") throw this.give(new Error(`${path} is a link to ${entry.leads}.`));
      if (entry?.kind === "other") throw this.give(new Error(`${path} is neither a file nor a folder.`));
      if (entry !== null && entry.size > SIZE_MAX) throw this.give(tooLarge(path));
      // Of a file only its bytes, of a folder the archive.
      if (entry?.kind === "file") own.push(part.slice());
      else whole.push(value);
      this.moved(received, entry?.kind === "file" ? Math.max(entry.size, received) : null, `Downloading ${path}:`);
    }
    const last = path.replace(/\/+$/, "").split("/").pop() || "root";
    if (first.entry === null || !first.isWhole) throw new Error(`${path} did not come to its end.`);
    const isFile = first.entry.kind === "file";
    const saved = new Blob(isFile ? own : whole);
    const name = isFile ? last : `${last}.tar`;
    const link = element("a");
    link.href = URL.createObjectURL(saved);
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
    return `${path}: ${bytes(saved.size)} downloaded as ${name}.`;
  }

  /// What is wrong with what comes: the rest is not waited for.
  private give(error: Error): Error {
    const cancelled = this.cancelled;
    this.cancelled = new AbortController();
    cancelled?.abort();
    return error;
  }

  private async upload(file: File, folder: string): Promise<string> {
    const signal = this.cancelled!.signal;
    if (!folder.startsWith("/")) throw new Error("A folder in the container begins with a slash.");
    const wrong = wrongName(file.name);
    if (wrong) throw new Error(wrong);
    if (file.size > SIZE_MAX) throw tooLarge(file.name);
    const packed = archive(file.name, file, file.lastModified);
    const hash = new Sha256();
    const reader = packed.stream().getReader();
    let read = 0;
    for (;;) {
      const { done, value } = await reader.read();
      if (done) break;
      signal.throwIfAborted();
      hash.update(value);
      read += value.length;
      this.moved(read, packed.size, `Reading ${file.name}:`);
    }
    const { host, container, id } = this.place;
    const action = { kind: "copy-in", container, path: folder, size: packed.size, sha256: hash.hex() };
    const command = await api.command(host, action, id);
    await api.copyIn(command, packed, signal, (sent) => this.moved(sent, packed.size, `Uploading ${file.name}:`));
    return `${file.name}: ${bytes(file.size)} uploaded to ${folder}.`;
  }
}
