// How well each token was predicted, and what was expected in its place.

import { useComputed, useSignal } from "@preact/signals";
import { useMemo } from "preact/hooks";
import { rgb } from "../core/color";
import { made } from "../core/decode";
import { number, place, visible } from "../core/format";
import { Bar, Legend, Menu, Readout, useId, useScale } from "../core/parts";
import { theme } from "../core/theme";
import type { ViewProps } from "./view";
import { TokenLine } from "./tokens";

const KINDS = ["log-probability", "probability", "rank of the right token"];

export function LogProbs({ spec, arrays, store }: ViewProps) {
  const { words, top, k, vocabulary } = spec.meta as { words: string[]; top: number[][]; k: number; vocabulary: number };
  const kind = useSignal(0);
  const readout = useId();
  const own = (i: number) => arrays.own.stored(i);
  const rank = (i: number) => arrays.rank.stored(i);
  const shown = (i: number) => (kind.value === 0 ? own(i) : kind.value === 1 ? Math.exp(own(i)) : -Math.log10(1 + rank(i)));
  const count = spec.tokens.length;
  const plane = useMemo(() => [made(1, Math.max(1, count - 1), (_, c) => (count > 1 ? shown(c + 1) : 0), arrays.own.approx)], [kind.value]);
  let lowest = 0;
  for (let i = 1; i < count; i++) if (Number.isFinite(own(i))) lowest = Math.min(lowest, own(i));
  const range: [number, number] = kind.value === 0 ? [Math.min(-1, lowest), 0] : kind.value === 1 ? [0, 1] : [-Math.log10(vocabulary), 0];
  const scale = useScale("viridis", range, theme.value);
  const at = store.current.value?.col ?? (count > 1 ? 1 : 0);
  const say = (i: number) =>
    i === 0 ? `position ${place(spec.tokens, 0, true)}: the first token is not predicted`
      : `position ${place(spec.tokens, i, true)}: log-probability ${number(own(i), arrays.own.approx)}, probability ${number(Math.exp(own(i)))}, rank ${rank(i)} of ${vocabulary}`;
  const text = useComputed(() => (store.current.value ? say(store.current.value.col) : ""));
  return (
    <>
      <Bar><Menu label="colour" options={KINDS} value={kind.value} onPick={(index) => (kind.value = index)} /></Bar>
      <Legend scale={scale} name={kind.value === 2 ? "−log₁₀(1 + rank)" : KINDS[kind.value]} planes={plane} />
      <Readout id={readout} text={text} hint="Point at a token to see what was expected in its place; click to pin; arrow keys move." />
      <TokenLine tokens={spec.tokens} color={(i) => (i === 0 ? null : rgb(scale, shown(i)))} store={store} panel={0} readout={readout} label="the text" />
      {at > 0 && at < count && (
        <div class="ct-scroll"><table class="ct-table">
          <caption><bdi>expected at position {place(spec.tokens, at, true)}</bdi></caption>
          <thead><tr><th scope="col">rank</th><th scope="col">token</th><th scope="col" class="ct-num">log-prob.</th><th scope="col">probability</th></tr></thead>
          <tbody>
            {Array.from({ length: k }, (_, r) => {
              const p = Math.exp(arrays.top.at(0, at - 1, r));
              const right = words[top[at - 1][r]] === spec.tokens[at];
              return (
                <tr class={right ? "ct-right" : ""}>
                  <td class="ct-num">{r}</td>
                  <td class="ct-mono"><bdi>{visible(words[top[at - 1][r]], 30)}</bdi>{right && " ✓"}</td>
                  <td class="ct-num">{number(arrays.top.at(0, at - 1, r), arrays.top.approx)}</td>
                  <td><span class="ct-prob"><i style={{ width: `${100 * p}%` }} /></span> <span class="ct-num">{number(p)}</span></td>
                </tr>
              );
            })}
          </tbody>
        </table></div>
      )}
    </>
  );
}
