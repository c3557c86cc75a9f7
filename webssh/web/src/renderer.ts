// Which hands draw a terminal: the graphics card, or else the DOM.

import { WebglAddon } from "@xterm/addon-webgl";
import type { Terminal } from "@xterm/xterm";

// Graphics cards that are played by the processor: they draw a hundred times slower than the DOM.
const PLAYED = /swiftshader|llvmpipe|softpipe|software|basic render|mesa offscreen/i;

let hasCard: boolean | undefined;

function looksLikeACard(): boolean {
  const context = document.createElement("canvas").getContext("webgl2", { failIfMajorPerformanceCaveat: true });
  if (context === null) return false;
  const more = context.getExtension("WEBGL_debug_renderer_info");
  const name = String(context.getParameter(more?.UNMASKED_RENDERER_WEBGL ?? context.RENDERER));
  context.getExtension("WEBGL_lose_context")?.loseContext();
  return !PLAYED.test(name);
}

/// Draws by the graphics card where there is one; when it is taken away, and otherwise, the DOM draws.
export function drawFast(terminal: Terminal): void {
  hasCard ??= looksLikeACard();
  if (!hasCard) return;
  try {
    const webgl = new WebglAddon();
    webgl.onContextLoss(() => webgl.dispose());
    terminal.loadAddon(webgl);
  } catch {
    // The DOM draws.
  }
}
