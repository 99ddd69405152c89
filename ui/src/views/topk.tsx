// For each neuron of a layer, the tokens with the highest and the lowest activations.

import { useSignal } from "@preact/signals";
import { useMemo } from "preact/hooks";
import { css, ink, rgb } from "../core/color";
import { Plane } from "../core/decode";
import { number, visible } from "../core/format";
import { census } from "../core/paint";
import { Bar, Legend, Menu, useScale } from "../core/parts";
import { theme } from "../core/theme";
import type { ViewProps } from "./view";

export function TopK({ spec, arrays, width }: ViewProps) {
  const { layers, neurons, firstName, secondName, words, index } = spec.meta as {
    layers: string[]; neurons: string[]; firstName: string; secondName: string; words: string[]; index: number[];
  };
  const [, features, k] = arrays.value.shape;
  const layer = useSignal(0);
  const side = useSignal(0);
  const from = useSignal(0);
  const beside = Math.max(1, Math.min(neurons.length, Math.floor((width - 40) / 165)));
  const planes = useMemo(() => [new Plane(arrays.value, 0), new Plane(arrays.value, 1)], [arrays]);
  const { low, high } = useMemo(() => census(planes), [planes]);
  const far = Math.max(Math.abs(low), Math.abs(high)) || 1;
  const scale = useScale("diverging", [-far, far], theme.value);
  const first = Math.max(0, Math.min(from.value, neurons.length - beside));
  const columns = neurons.slice(first, first + beside).map((_, i) => first + i);
  const at = (n: number, r: number) => {
    const feature = layer.value * neurons.length + n;
    return { word: words[index[(side.value * features + feature) * k + r]], value: arrays.value.at(side.value, feature, r) };
  };
  return (
    <>
      <Bar>
        {layers.length > 1 && <Menu label={firstName} options={layers} value={layer.value} onPick={(i) => (layer.value = i)} />}
        <Menu label="show" options={["highest", "lowest"]} value={side.value} onPick={(i) => (side.value = i)} />
        {neurons.length > beside && <Menu label={`first ${secondName}`} options={neurons} value={first} onPick={(i) => (from.value = i)} />}
      </Bar>
      <Legend scale={scale} name="activation" planes={planes} />
      <div class="ct-scroll" tabIndex={0} role="group" aria-label={spec.title}>
        <table class="ct-table">
          <thead><tr><th scope="col">rank</th>{columns.map((n) => <th scope="col">{secondName} {neurons[n]}</th>)}</tr></thead>
          <tbody>
            {Array.from({ length: k }, (_, r) => (
              <tr>
                <td class="ct-num">{r}</td>
                {columns.map((n) => {
                  const { word, value } = at(n, r);
                  const color = rgb(scale, value);
                  return <td><bdi class="ct-token" style={{ background: css(color), color: ink(color) }}>{visible(word, 14)}</bdi> <span class="ct-num">{number(value, arrays.value.approx)}</span></td>;
                })}
              </tr>
            ))}
          </tbody>
        </table>
      </div>
    </>
  );
}
