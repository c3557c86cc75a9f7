// What a container writes may draw; it may not steer the page, nor reach beyond the terminal's grid.

import type { Terminal } from "@xterm/xterm";
import { plain } from "./dom";

export interface Guarded {
  /// A title, as text.
  title?: (title: string) => void;
  /// A program wants to write this to the clipboard.
  clipboard?: (text: string) => void;
}

// What a program in the container may put into the clipboard, once somebody has said yes.
const CLIPBOARD_CHARS_MAX = 1_000_000;

export function guard(terminal: Terminal, { title, clipboard }: Guarded): void {
  const parser = terminal.parser;
  // No device control strings: nothing that answers back with what it was sent.
  for (const intermediates of ["", "$", "+"]) {
    for (const final of ["q", "p", "r", "t", "|"]) {
      parser.registerDcsHandler(intermediates ? { intermediates, final } : { final }, () => true);
    }
  }
  // Titles are text: no control characters, and short.
  terminal.onTitleChange((text) => title?.(plain(text, 60)));
  // Links that a container makes up are not followed.
  parser.registerOscHandler(8, () => true);
  // The clipboard is never read, and written only when somebody says so.
  parser.registerOscHandler(52, (data) => {
    const text = clipboard && decoded(data.slice(data.indexOf(";") + 1));
    if (text !== undefined) clipboard?.(text);
    return true;
  });
}

function decoded(encoded: string): string | undefined {
  if (encoded === "?" || encoded.length > CLIPBOARD_CHARS_MAX * 2) return undefined;
  try {
    return new TextDecoder().decode(Uint8Array.from(atob(encoded), (c) => c.charCodeAt(0)));
  } catch {
    return undefined;
  }
}
