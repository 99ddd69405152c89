// Colour scales as tables of 256 entries. All are safe for colour-blind readers; signs are also drawn as marks.

export type RGB = [number, number, number];
export type ScaleName = "sequential" | "viridis" | "diverging";
export type Theme = "light" | "dark";

const STOPS: Record<string, string[]> = {
  cividis: ["00224e", "123570", "3b496c", "575d6d", "707173", "8a8678", "a59c74", "c3b369", "e1cc55", "fee838"],
  viridis: ["440154", "482878", "3e4989", "31688e", "26828e", "1f9e89", "35b779", "6ece58", "b5de2b", "fde725"],
  "diverging-light": ["08306b", "2f6fb3", "84b6dc", "f7f7f5", "f7b267", "d9731a", "7f3b08"],
  "diverging-dark": ["a8d4ff", "5a9bd8", "2c5580", "1c1e22", "80501f", "dd8a35", "ffd9a3"],
};

/** Values that are not finite have colours of their own. */
export const ODD: Record<"nan" | "high" | "low", RGB> = { nan: [158, 158, 158], high: [214, 39, 112], low: [23, 160, 140] };

export const SERIES: Record<Theme, string[]> = {
  light: ["#0b63a5", "#c25a00", "#00795a", "#8c4799", "#a07800", "#32363d", "#b8336a", "#2a8fa8"],
  dark: ["#6db3f2", "#f0a35e", "#4cc9a0", "#d29be0", "#e3c04f", "#d0d4da", "#f587b0", "#7fd4e8"],
};

function parse(hex: string): RGB {
  return [0, 2, 4].map((at) => parseInt(hex.slice(at, at + 2), 16)) as RGB;
}

/** 256 colours, each 3 bytes. */
export function table(scale: ScaleName, theme: Theme): Uint8Array {
  const name = scale === "diverging" ? `diverging-${theme}` : scale === "viridis" ? "viridis" : "cividis";
  const stops = STOPS[name].map(parse);
  const colors = new Uint8Array(256 * 3);
  for (let i = 0; i < 256; i++) {
    const at = (i / 255) * (stops.length - 1);
    const left = Math.min(Math.floor(at), stops.length - 2);
    for (let k = 0; k < 3; k++) colors[3 * i + k] = Math.round(stops[left][k] + (at - left) * (stops[left + 1][k] - stops[left][k]));
  }
  return colors;
}

/** The entry of the table for a finite value. */
export function level(value: number, low: number, high: number): number {
  const at = Math.floor(((value - low) / (high - low)) * 255 + 0.5);
  return at < 0 ? 0 : at > 255 ? 255 : at;
}

export interface Scale {
  name: ScaleName;
  low: number;
  high: number;
  colors: Uint8Array;
  blank?: boolean; // NaN stands for what does not exist: nothing is painted there
}

export function rgb(scale: Scale, value: number): RGB {
  if (Number.isNaN(value)) return ODD.nan;
  if (value === Infinity) return ODD.high;
  if (value === -Infinity) return ODD.low;
  const at = 3 * level(value, scale.low, scale.high);
  return [scale.colors[at], scale.colors[at + 1], scale.colors[at + 2]];
}

export const css = ([r, g, b]: RGB): string => `rgb(${r},${g},${b})`;

/** Black or white: what reads better on a colour. */
export function ink([r, g, b]: RGB): string {
  const linear = [r, g, b].map((c) => (c / 255 <= 0.04045 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4));
  return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2] > 0.18 ? "#000" : "#fff";
}
