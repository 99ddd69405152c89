// Numbers and tokens as people read them.

/** Three significant digits, a real minus sign; ≈ in front where the array was stored with less precision. */
export function number(value: number, approx = false): string {
  if (Number.isNaN(value)) return "NaN";
  if (!Number.isFinite(value)) return value > 0 ? "∞" : "−∞";
  const size = Math.abs(value);
  let text: string;
  if (size && (size < 1e-3 || size >= 1e5)) text = value.toExponential(2);
  else text = value.toFixed(size === 0 ? 0 : Math.min(8, Math.max(0, 2 - Math.floor(Math.log10(size)))));
  return (approx ? "≈ " : "") + text.replaceAll("-", "−");
}

/** As `number`, with a sign in front of positive values too. */
export function signed(value: number, approx = false): string {
  const text = number(value);
  return (approx ? "≈ " : "") + (value > 0 ? "+" + text : text);
}

const SEEN: Record<string, string> = { " ": "·", "\n": "↵", "\t": "⇥", "\r": "␍", "\u00a0": "⍽", "\u200b": "∅" };

/** A token with its white space visible (a single space between words is left), cut to `most` characters. */
export function visible(token: string, most = 200): string {
  if (token === "") return "∅";
  const cut = token.length > most ? token.slice(0, most - 1) + "…" : token;
  return cut.replace(/(?<!\S) | (?!\S)|[\n\t\r\u00a0\u200b]/g, (one) => SEEN[one]);
}

/** A number on an axis: no more digits than it needs. */
export function tick(value: number): string {
  const size = Math.abs(value);
  if (size && (size < 1e-3 || size >= 1e5)) return value.toExponential().replace(/(\.\d{0,2})\d*e/, "$1e").replaceAll("-", "−");
  return String(Number(value.toPrecision(6))).replaceAll("-", "−");
}

/** `position "token"`, or the label alone. */
export function place(labels: string[] | null, index: number, token = false): string {
  if (!labels) return String(index);
  const label = visible(labels[index] ?? "", 60);
  return token ? `${index} “${label}”` : label;
}
