// Texts coloured by a value: one or many, with menus for the neuron, the direction or the kind of value.

import { useComputed, useSignal } from "@preact/signals";
import { useMemo } from "preact/hooks";
import { css, ink, rgb } from "../core/color";
import { Plane, made } from "../core/decode";
import { number, visible } from "../core/format";
import { census } from "../core/paint";
import { Bar, Legend, Menu, Readout, Switch, useId, useScale } from "../core/parts";
import type { Cell } from "../core/store";
import { theme } from "../core/theme";
import { describe } from "./attention";
import type { ViewProps } from "./view";

export function Tokens({ spec, arrays, store }: ViewProps) {
  const { texts, menus, valueName, scale: name, range, rangeGiven, order } = spec.meta as {
    texts: string[][]; menus: { name: string; options: string[] }[]; valueName: string; scale: any; range: [number, number];
    rangeGiven: boolean; order?: number[][];
  };
  const picks = useSignal<number[]>(menus.map(() => 0));
  const own = useSignal(!rangeGiven && menus.length > 0);
  const readout = useId();
  const kind = menus.reduce((index, menu, m) => index * menu.options.length + picks.value[m], 0);
  const shown = order ? order[kind] : texts.map((_, index) => index);
  const value = (cell: Cell) => arrays[`v${cell.panel}`].at(0, kind, cell.col);
  const planes = useMemo(
    () => shown.map((t) => made(1, texts[t].length, (_, col) => arrays[`v${t}`].at(0, kind, col), arrays[`v${t}`].approx)),
    [kind],
  );
  const ends = useMemo(() => (own.value ? around(planes, name) : range), [own.value, planes]);
  const scale = useScale(name, ends, theme.value);
  const approx = planes.some((plane) => plane.data.approx);
  const say = (cell: Cell) =>
    `${texts.length > 1 ? `text ${shown.indexOf(cell.panel) + 1} · ` : ""}position ${cell.col} “${visible(texts[cell.panel][cell.col], 60)}”: ${number(value(cell), approx)}`;
  const text = useComputed(() => (picks.value, describe(store, say, value, approx)));
  return (
    <>
      {menus.length > 0 && (
        <Bar>
          {menus.map((menu, m) => (
            <Menu label={menu.name} options={menu.options} value={picks.value[m]} onPick={(index) => (picks.value = picks.value.map((old, i) => (i === m ? index : old)))} />
          ))}
          <Switch label="a colour scale for each choice" on={own.value} onFlip={() => (own.value = !own.value)} />
        </Bar>
      )}
      <Legend scale={scale} name={valueName} planes={planes} />
      <Readout id={readout} text={text} />
      {shown.map((t, rank) => {
        const top = order ? census([planes[rank]]).high : null;
        return (
          <div class="ct-text-row">
            {texts.length > 1 && <div class="ct-text-name">{rank + 1}{top !== null && Number.isFinite(top) ? <span class="ct-muted"> highest {number(top)}</span> : null}</div>}
            <TokenLine tokens={texts[t]} color={(i) => rgb(scale, planes[rank].at(0, i))} store={store} panel={t} readout={readout} label={`text ${rank + 1}`} />
          </div>
        );
      })}
    </>
  );
}

function around(planes: Plane[], scale: string): [number, number] {
  const { low, high } = census(planes);
  if (low > high) return [0, 1];
  if (scale === "diverging") {
    const far = Math.max(Math.abs(low), Math.abs(high)) || 1;
    return [-far, far];
  }
  return high > low ? [low, high] : [low - 0.5, high + 0.5];
}

/** One text: a line of coloured tokens that can be walked with the arrow keys. */
export function TokenLine({ tokens, color, store, panel, readout, label }: {
  tokens: string[]; color: (index: number) => [number, number, number] | null; store: ViewProps["store"]; panel: number; readout: string; label: string;
}) {
  const hover = store.hover.value;
  const pinned = store.pinned.value;
  const compared = store.compared.value;
  const state = (i: number) =>
    (pinned?.panel === panel && pinned.col === i ? " ct-on" : "") +
    (compared?.panel === panel && compared.col === i ? " ct-compared-token" : "") +
    (hover?.panel === panel && hover.col === i ? " ct-hovered" : "");
  return (
    <div
      class="ct-tokens" role="application" aria-roledescription="coloured text" aria-label={label} aria-describedby={readout} tabIndex={0}
      onPointerLeave={() => store.preview(null)} onBlur={() => store.preview(null)}
      onKeyDown={(event) => {
        if (store.current.value?.panel !== panel && event.key.startsWith("Arrow")) store.preview({ panel, row: 0, col: 0 });
        else if (!store.key(event, 1, tokens.length)) return;
        event.preventDefault();
      }}
    >
      {tokens.map((token, i) => {
        const tint = color(i);
        return (
          <bdi
            class={"ct-token" + state(i)} style={tint ? { background: css(tint), color: ink(tint) } : undefined}
            onPointerEnter={() => store.preview({ panel, row: 0, col: i })} onClick={(event) => store.pick({ panel, row: 0, col: i }, event.shiftKey)}
          >{visible(token, 80)}</bdi>
        );
      })}
    </div>
  );
}
