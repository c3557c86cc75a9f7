// Elements and text. Nothing here, or elsewhere in the page, makes markup out of text.

export function element<K extends keyof HTMLElementTagNameMap>(
  tag: K,
  className = "",
  text = "",
): HTMLElementTagNameMap[K] {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text) made.textContent = text;
  return made;
}

/// Text that only says something: no control characters, no marks that turn the line around, not too long.
export function plain(text: string, max: number): string {
  const clean = text.replace(/[\u0000-\u001f\u007f-\u009f\u200e\u200f\u202a-\u202e\u2066-\u2069]/g, " ").trim();
  return clean.length > max ? `${clean.slice(0, max)}…` : clean;
}
