// Cells to pixels: one pixel for each cell, or for the boldest cell of each block where there are too many.

import { ODD, level, type RGB, type Scale } from "./color";
import type { Plane } from "./decode";

/** How far a value stands out: from zero on a diverging scale, from the low end on others; what is not finite most. */
export function boldness(scale: Scale, value: number): number {
  if (scale.blank && Number.isNaN(value)) return -Infinity;
  if (!Number.isFinite(value)) return Infinity;
  return scale.name === "diverging" ? Math.abs(value) : value - scale.low;
}

/** The cell that stands for a block when `kx` × `ky` cells share one pixel. */
export function boldest(plane: Plane, scale: Scale, top: number, left: number, ky: number, kx: number): [number, number] {
  let best: [number, number] = [top, left];
  let most = -Infinity;
  for (let r = top; r < Math.min(top + ky, plane.rows); r++)
    for (let c = left; c < Math.min(left + kx, plane.cols); c++) {
      if (plane.masked(r, c)) continue;
      const bold = boldness(scale, plane.at(r, c));
      if (bold > most) (most = bold), (best = [r, c]);
    }
  return best;
}

export interface Pixels {
  width: number;
  height: number;
  data: Uint8ClampedArray<ArrayBuffer>;
}

function put(data: Uint8ClampedArray, at: number, color: RGB | Uint8Array, from = 0): void {
  data[at] = color[from];
  data[at + 1] = color[from + 1];
  data[at + 2] = color[from + 2];
  data[at + 3] = 255;
}

/** The pixels of a plane; cells above the diagonal of a triangle stay transparent if `hollow`. */
export function pixels(plane: Plane, scale: Scale, ky = 1, kx = 1, hollow = false): Pixels {
  const width = Math.ceil(plane.cols / kx);
  const height = Math.ceil(plane.rows / ky);
  const data = new Uint8ClampedArray(width * height * 4);
  const { low, high, colors } = scale;
  const paint = (at: number, value: number) => {
    if (Number.isFinite(value)) put(data, at, colors, 3 * level(value, low, high));
    else if (!(scale.blank && Number.isNaN(value))) put(data, at, Number.isNaN(value) ? ODD.nan : value > 0 ? ODD.high : ODD.low);
  };
  if (kx === 1 && ky === 1) {
    for (let r = 0, at = 0; r < height; r++)
      for (let c = 0; c < width; c++, at += 4) if (!(hollow && plane.masked(r, c))) paint(at, plane.at(r, c));
    return { width, height, data };
  }
  const row = new Float32Array(width);
  const bold = new Float32Array(width);
  const { data: source, index, rows, cols } = plane;
  for (let y = 0; y < height; y++) {
    bold.fill(-Infinity);
    for (let r = y * ky; r < Math.min(rows, (y + 1) * ky); r++) {
      const end = source.tril ? Math.min(cols, r + 1) : cols;
      const start = source.index(index, r, 0);
      for (let c = 0; c < end; c++) {
        const value = source.stored(start + c);
        const x = (c / kx) | 0;
        if (scale.blank && Number.isNaN(value)) continue;
        const size = !Number.isFinite(value) ? Infinity : scale.name === "diverging" ? Math.abs(value) : value - low;
        if (size > bold[x]) (row[x] = value), (bold[x] = size);
      }
    }
    for (let x = 0; x < width; x++) {
      if (bold[x] > -Infinity) paint(4 * (y * width + x), row[x]);
      else if (!hollow && !scale.blank) paint(4 * (y * width + x), 0);
    }
  }
  return { width, height, data };
}

export function draw(canvas: HTMLCanvasElement, image: Pixels): void {
  canvas.width = image.width;
  canvas.height = image.height;
  canvas.getContext("2d")!.putImageData(new ImageData(image.data, image.width, image.height), 0, 0);
}

/** What a plane holds: its finite range, and how many values are not finite. */
export function census(planes: Plane[]): { low: number; high: number; nan: number; high_: number; low_: number } {
  const found = { low: Infinity, high: -Infinity, nan: 0, high_: 0, low_: 0 };
  for (const plane of planes) {
    const per = plane.data.tril ? (plane.rows * (plane.rows + 1)) / 2 : plane.rows * plane.cols;
    for (let i = plane.index * per; i < (plane.index + 1) * per; i++) {
      const value = plane.data.stored(i);
      if (Number.isNaN(value)) found.nan++;
      else if (value === Infinity) found.high_++;
      else if (value === -Infinity) found.low_++;
      else {
        if (value < found.low) found.low = value;
        if (value > found.high) found.high = value;
      }
    }
  }
  return found;
}
