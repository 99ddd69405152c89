// What each head does: layers × heads, a letter and a colour for each kind.

import { useComputed } from "@preact/signals";
import { useRef } from "preact/hooks";
import { SERIES, ink, type RGB } from "../core/color";
import { number } from "../core/format";
import { Readout, useId } from "../core/parts";
import type { Cell } from "../core/store";
import { theme } from "../core/theme";
import type { ViewProps } from "./view";

const rgbOf = (hex: string): RGB => [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16)) as RGB;

export function HeadTypes({ spec, arrays, store }: ViewProps) {
  const { kinds, letters, threshold } = spec.meta as { kinds: string[]; letters: string[]; threshold: number };
  const [count, layers, heads] = arrays.scores.shape;
  const colors = SERIES[theme.value];
  const readout = useId();
  const body = useRef<HTMLTableElement>(null);
  const kind = (layer: number, head: number) => arrays.best.at(0, layer, head);
  const score = (k: number, cell: Cell) => arrays.scores.at(k, cell.row, cell.col);
  const say = (cell: Cell) => {
    const best = kind(cell.row, cell.col);
    const all = Array.from({ length: count }, (_, k) => `${kinds[k]} ${number(score(k, cell), arrays.scores.approx)}`);
    return `layer ${cell.row} · head ${cell.col}: ${best < 0 ? "none of the kinds" : kinds[best]} (${all.join(", ")})`;
  };
  const text = useComputed(() => {
    const lines = [store.hover.value && say(store.hover.value), store.pinned.value && `pinned: ${say(store.pinned.value)}`];
    return lines.filter(Boolean).join("\n") || `A head is of a kind where its score is at least ${number(threshold)}. Point at a head for its scores.`;
  });
  const onKeyDown = (event: KeyboardEvent) => {
    if (!store.key(event, layers, heads)) return;
    event.preventDefault();
    const at = store.hover.value;
    if (at) body.current?.querySelector<HTMLElement>(`[data-at="${at.row},${at.col}"]`)?.focus();
  };
  const current = store.current.value;
  return (
    <>
      <div class="ct-legend">
        {kinds.map((name, k) => {
          const color = colors[k % colors.length];
          return <span class="ct-odd"><b class="ct-letter" style={{ background: color, color: ink(rgbOf(color)) }}>{letters[k]}</b>{name}</span>;
        })}
        <span class="ct-odd"><b class="ct-letter">·</b>none</span>
      </div>
      <Readout id={readout} text={text} />
      <div class="ct-scroll">
        <table class="ct-heads" ref={body} onKeyDown={onKeyDown} onPointerLeave={() => store.preview(null)} aria-label={spec.title}>
          <thead>
            <tr><td>layer ↓ head →</td>{Array.from({ length: heads }, (_, head) => <th scope="col">{head}</th>)}</tr>
          </thead>
          <tbody>
            {Array.from({ length: layers }, (_, layer) => (
              <tr>
                <th scope="row">{layer}</th>
                {Array.from({ length: heads }, (_, head) => {
                  const k = kind(layer, head);
                  const cell = { panel: 0, row: layer, col: head };
                  const color = k < 0 ? undefined : colors[k % colors.length];
                  const on = current?.row === layer && current.col === head;
                  const first = !current && !layer && !head;
                  return (
                    <td>
                      <button
                        type="button" data-at={`${layer},${head}`} class={on ? "ct-letter ct-on" : "ct-letter"} tabIndex={on || first ? 0 : -1}
                        style={color ? { background: color, color: ink(rgbOf(color)) } : undefined} aria-label={say(cell)}
                        onPointerEnter={() => store.preview(cell)} onFocus={() => store.preview(cell)} onClick={() => store.pick(cell)}
                      >{k < 0 ? "·" : letters[k]}</button>
                    </td>
                  );
                })}
              </tr>
            ))}
          </tbody>
        </table>
      </div>
    </>
  );
}
