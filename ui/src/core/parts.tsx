// Pieces that many views share: the legend, menus, the readout, the table of top cells.

import { useComputed, useSignal, type ReadonlySignal } from "@preact/signals";
import type { ComponentChildren } from "preact";
import { useLayoutEffect, useMemo, useRef } from "preact/hooks";
import { ODD, css, table, type Scale, type ScaleName, type Theme } from "./color";
import type { Plane } from "./decode";
import { number, visible } from "./format";
import { boldness, census, draw } from "./paint";

export function useScale(name: ScaleName, range: [number, number], theme: Theme): Scale {
  const [low, high] = range;
  return useMemo(() => ({ name, low, high, colors: table(name, theme) }), [name, low, high, theme]);
}

let ids = 0;
export const useId = (): string => useMemo(() => `ct-${++ids}`, []);

/** The colour scale with its range, and what stands for values that are not finite. */
export function Legend({ scale, name, planes, pooled, absent }: { scale: Scale; name: string; planes: Plane[]; pooled?: boolean; absent?: string }) {
  const bar = useRef<HTMLCanvasElement>(null);
  const odd = useMemo(() => census(planes), [planes]);
  useLayoutEffect(() => {
    const data = new Uint8ClampedArray(256 * 4).fill(255);
    for (let i = 0; i < 256; i++) for (let k = 0; k < 3; k++) data[4 * i + k] = scale.colors[3 * i + k];
    draw(bar.current!, { width: 256, height: 1, data });
  }, [scale]);
  const kinds = [
    [absent ? 0 : odd.nan, ODD.nan, "NaN"], [odd.high_, ODD.high, "+∞"], [odd.low_, ODD.low, "−∞"],
  ] as const;
  const beyond = odd.low < scale.low - 1e-9 || odd.high > scale.high + 1e-9;
  return (
    <div class="ct-legend">
      <span>{name}</span>
      <span class="ct-num">{number(scale.low)}</span>
      <canvas ref={bar} class="ct-bar" role="img" aria-label={`colours from ${number(scale.low)} to ${number(scale.high)}`} />
      <span class="ct-num">{number(scale.high)}</span>
      {scale.name === "diverging" && <span class="ct-muted">blue: negative, orange: positive</span>}
      {beyond && <span class="ct-muted">values reach {number(odd.low)} to {number(odd.high)}</span>}
      {kinds.map(([count, color, word]) => count > 0 && (
        <span class="ct-odd"><i style={{ background: css(color) }} />{word} ({count} {count === 1 ? "cell" : "cells"})</span>
      ))}
      {absent && odd.nan > 0 && <span class="ct-muted">blank: {absent}</span>}
      {pooled && <span class="ct-muted">each pixel shows the boldest of several cells</span>}
      {planes.some((plane) => plane.data.approx) && <span class="ct-muted">≈ stored in {planes[0].data.codes ? "8" : "16"} bits</span>}
    </div>
  );
}

/** Horizontal lines that values are compared with: named above the chart, where no curve can run over the words. */
export function References({ lines }: { lines: [string, number][] }) {
  return lines.map(([word, value]) => (
    <span class="ct-muted">
      <svg width="22" height="8" aria-hidden="true"><line class="ct-reference" x1="0" x2="22" y1="4" y2="4" /></svg> <bdi>{visible(word, 60)}</bdi>: {number(value)}
    </span>
  ));
}

export function Menu({ label, options, value, onPick }: { label: string; options: string[]; value: number; onPick: (index: number) => void }) {
  return (
    <label class="ct-menu">
      <bdi>{visible(label, 40)}</bdi>
      <select value={value} onChange={(event) => onPick(Number(event.currentTarget.value))}>
        {options.map((name, index) => <option value={index}>{visible(name, 60)}</option>)}
      </select>
    </label>
  );
}

export function Switch({ label, on, onFlip }: { label: string; on: boolean; onFlip: () => void }) {
  return <label class="ct-menu"><input type="checkbox" checked={on} onChange={onFlip} /> {label}</label>;
}

/** A scale whose ends are drawn together: each step of contrast halves its range (around zero, or from the low end). */
export function stretched(scale: Scale, contrast: number): Scale {
  if (!contrast) return scale;
  const { low, high } = scale;
  const by = 2 ** -contrast;
  return scale.name === "diverging" ? { ...scale, low: low * by, high: high * by } : { ...scale, high: low + (high - low) * by };
}

export function Contrast({ value, onTurn }: { value: number; onTurn: (value: number) => void }) {
  return (
    <label class="ct-menu">
      contrast <input type="range" min="0" max="8" step="0.5" value={value} onInput={(event) => onTurn(Number(event.currentTarget.value))} />
    </label>
  );
}

export function Zoom({ value, onZoom }: { value: number; onZoom: (value: number) => void }) {
  return (
    <span class="ct-menu">
      <button type="button" aria-label="zoom out" disabled={value <= 1} onClick={() => onZoom(value / 2)}>−</button>
      <button type="button" aria-label="zoom in" disabled={value >= 16} onClick={() => onZoom(value * 2)}>+</button>
    </span>
  );
}

let hinted = false; // a page of many figures says once how to read them

/** The text of what is focused, also read aloud; while there is none, the first figure of a page says how to focus. */
export function Readout({ id, text, hint = HINT }: { id: string; text: ReadonlySignal<string>; hint?: string }) {
  const first = useMemo(() => !hinted && (hinted = true), []);
  const shown = useComputed(() => text.value || (first ? hint : ""));
  return <div class="ct-readout" id={id} role="status" aria-live="polite"><bdi>{shown}</bdi></div>;
}

const HINT = "Point at a cell to read it; click to pin it, shift-click another to compare; arrow keys move.";

export interface Top {
  row: number;
  col: number;
  value: number;
}

export function topCells(plane: Plane, scale: Scale, most = 20): Top[] {
  const found: Top[] = [];
  let least = -Infinity;
  for (let row = 0; row < plane.rows; row++)
    for (let col = 0; col < plane.cols; col++) {
      if (plane.masked(row, col)) continue;
      const value = plane.at(row, col);
      const bold = boldness(scale, value);
      if (found.length === most && bold <= least) continue;
      found.push({ row, col, value });
      found.sort((a, b) => boldness(scale, b.value) - boldness(scale, a.value));
      if (found.length > most) found.pop();
      least = boldness(scale, found[found.length - 1].value);
    }
  return found;
}

/** The largest cells as a table: made when it is opened. */
export function TopCells({ plane, scale, names, say, onPick }: {
  plane: Plane; scale: Scale; names: [string, string, string]; say: (cell: Top) => [string, string]; onPick: (cell: Top) => void;
}) {
  const open = useSignal(false);
  return (
    <details class="ct-top" onToggle={(event) => (open.value = event.currentTarget.open)}>
      <summary>Largest cells as a table</summary>
      {open.value && (
        <div class="ct-scroll">
          <table>
            <thead><tr>{names.map((name) => <th scope="col">{name}</th>)}</tr></thead>
            <tbody>
              {topCells(plane, scale).map((cell) => {
                const [row, col] = say(cell);
                return (
                  <tr>
                    <td><bdi>{row}</bdi></td>
                    <td><bdi>{col}</bdi></td>
                    <td class="ct-num"><button type="button" class="ct-link" onClick={() => onPick(cell)}>{number(cell.value, plane.data.approx)}</button></td>
                  </tr>
                );
              })}
            </tbody>
          </table>
        </div>
      )}
    </details>
  );
}

export const Bar = ({ children }: { children: ComponentChildren }) => <div class="ct-tools">{children}</div>;
