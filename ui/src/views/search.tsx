// A circuit over a vocabulary: rows are searched by their token; a row shows its largest and smallest columns.

import { useSignal } from "@preact/signals";
import { useMemo } from "preact/hooks";
import { css, ink, rgb } from "../core/color";
import { Plane } from "../core/decode";
import { number, signed, visible } from "../core/format";
import { Legend, useId, useScale } from "../core/parts";
import { theme } from "../core/theme";
import type { ViewProps } from "./view";

const MOST = 40; // rows that are listed

export function Search({ spec, arrays }: ViewProps) {
  const { rows, rowName, columnName, valueName, range } = spec.meta;
  const columns: string[] = spec.meta.columns ?? rows;
  const k = arrays.value.shape[2];
  const wanted = useSignal("");
  const chosen = useSignal<number>(arrays.order.stored(0));
  const id = useId();
  const scale = useScale("diverging", range, theme.value);
  const planes = useMemo(() => [new Plane(arrays.value, 0), new Plane(arrays.value, 1)], [arrays]);
  const listed = useMemo(() => find(rows, wanted.value, arrays.order), [wanted.value]);
  const row = chosen.value;
  const best = (side: number, rank: number) => ({
    word: columns[arrays.index.at(side, row, rank)],
    value: arrays.value.at(side, row, rank),
  });
  return (
    <>
      <Legend scale={scale} name={valueName} planes={planes} />
      <div class="ct-search">
        <div>
          <label class="ct-menu" for={id}>search a {rowName}</label>
          <input id={id} type="search" value={wanted.value} onInput={(event) => (wanted.value = event.currentTarget.value)} autocomplete="off" spellcheck={false} />
          <div class="ct-muted" role="status">{wanted.value ? `${listed.count} found` : "largest first"}</div>
          <div class="ct-found" role="group" aria-label={`${rowName}s`}>
            {listed.rows.map((at) => {
              const top = arrays.value.at(0, at, 0);
              return (
                <button type="button" aria-pressed={at === row} onClick={() => (chosen.value = at)}>
                  <bdi class="ct-mono">{visible(rows[at], 30)}</bdi> <span class="ct-num ct-muted">{number(top, arrays.value.approx)}</span>
                </button>
              );
            })}
          </div>
        </div>
        <div>
          <bdi>{rowName} <b class="ct-mono">{visible(rows[row], 80)}</b> ({row})</bdi>
          <div class="ct-scroll"><table class="ct-table">
            <thead><tr><th scope="col">highest {columnName}</th><th scope="col" class="ct-num">{valueName}</th><th scope="col">lowest {columnName}</th><th scope="col" class="ct-num">{valueName}</th></tr></thead>
            <tbody>
              {Array.from({ length: k }, (_, rank) => (
                <tr>
                  {[0, 1].map((side) => {
                    const { word, value } = best(side, rank);
                    const color = rgb(scale, value);
                    return (
                      <>
                        <td><bdi class="ct-token" style={{ background: css(color), color: ink(color) }}>{visible(word, 30)}</bdi>{word === rows[row] && <span class="ct-muted"> itself</span>}</td>
                        <td class="ct-num">{signed(value, arrays.value.approx)}</td>
                      </>
                    );
                  })}
                </tr>
              ))}
            </tbody>
          </table></div>
        </div>
      </div>
    </>
  );
}

/** Rows whose token holds the text: exact ones first, then those that begin with it. */
export function find(rows: string[], text: string, order: { count: number; stored(index: number): number }): { rows: number[]; count: number } {
  if (!text) return { rows: Array.from({ length: Math.min(MOST, order.count) }, (_, i) => order.stored(i)), count: rows.length };
  const low = text.toLowerCase();
  const found: [number, number][] = [];
  rows.forEach((word, index) => {
    const at = word.toLowerCase().indexOf(low);
    if (at < 0) return;
    const bare = word.trim().toLowerCase();
    found.push([word === text ? 0 : bare === low.trim() ? 1 : bare.startsWith(low.trim()) ? 2 : 3, index]);
  });
  found.sort((a, b) => a[0] - b[0] || a[1] - b[1]);
  return { rows: found.slice(0, MOST).map(([, index]) => index), count: found.length };
}
