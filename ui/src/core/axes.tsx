// Axes of line and bar charts: round ticks, lines across, names.

import { tick } from "./format";

/** Round numbers from `low` to `high`, about `count` of them. */
export function ticks(low: number, high: number, count: number): number[] {
  const raw = (high - low) / Math.max(1, count);
  const unit = 10 ** Math.floor(Math.log10(raw));
  const step = unit * ([1, 2, 5].find((factor) => factor * unit >= raw * 0.999) ?? 10);
  const out: number[] = [];
  for (let at = Math.ceil(low / step - 1e-9); at * step <= high + step * 1e-9; at++) out.push(at * step);
  return out;
}

/** Powers of ten (and 2, 5 where there are few) from `low` to `high`. */
export function logTicks(low: number, high: number): number[] {
  const out: number[] = [];
  const few = Math.log10(high / low) < 2.5;
  for (let power = Math.floor(Math.log10(low)); 10 ** power <= high * 1.001; power++)
    for (const factor of few ? [1, 2, 5] : [1]) {
      const value = factor * 10 ** power;
      if (value >= low * 0.999 && value <= high * 1.001) out.push(value);
    }
  return out;
}

/** A range that holds all finite values, a little wider. */
export function extent(values: Iterable<number>, zero: boolean, log: boolean): [number, number] {
  let low = zero ? 0 : Infinity;
  let high = zero ? 0 : -Infinity;
  for (const value of values)
    if (Number.isFinite(value) && (!log || value > 0)) (low = Math.min(low, value)), (high = Math.max(high, value));
  if (low > high) return log ? [0.1, 1] : [0, 1];
  if (log) return low === high ? [low / 2, high * 2] : [low / 1.1, high * 1.1];
  if (low === high) return [low - 0.5, high + 0.5];
  const pad = (high - low) * 0.04;
  return [zero && low === 0 ? 0 : low - pad, zero && high === 0 ? 0 : high + pad];
}

export const scaler = (from: [number, number], to: [number, number], log: boolean) => {
  const t = log ? Math.log : (x: number) => x;
  const [a, b] = [t(from[0]), t(from[1])];
  return (value: number) => to[0] + ((t(value) - a) / (b - a)) * (to[1] - to[0]);
};

/** The room on the left for the axis' name and its ticks. */
export const gutter = (at: number[]): number => 30 + 7 * Math.max(2, ...at.map((value) => label(value).length));

const label = (value: number): string => tick(Math.abs(value) < 1e-12 ? 0 : value);

export function YAxis({ at, y, left, right, name, height }: {
  at: number[]; y: (value: number) => number; left: number; right: number; name: string; height: number;
}) {
  return (
    <g>
      {at.map((value) => (
        <g>
          <line x1={left} x2={right} y1={y(value)} y2={y(value)} class={Math.abs(value) < 1e-12 ? "ct-zero" : "ct-grid"} />
          <text x={left - 6} y={y(value) + 4} text-anchor="end">{label(value)}</text>
        </g>
      ))}
      {name && <text class="ct-axis-name" transform={`translate(13 ${height / 2}) rotate(-90)`} text-anchor="middle">{name}</text>}
    </g>
  );
}
