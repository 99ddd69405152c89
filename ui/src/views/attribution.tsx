// Attribution: the heat map of one component (or of the sum, or of what is left over), and bars over all of them.

import { useComputed, useSignal } from "@preact/signals";
import { useMemo } from "preact/hooks";
import { css, rgb } from "../core/color";
import { Plane, made } from "../core/decode";
import { place, signed, visible } from "../core/format";
import { HeatMap, type Mark } from "../core/heatmap";
import { Bar, Legend, Menu, Readout, Switch, TopCells, useId, useScale } from "../core/parts";
import { census } from "../core/paint";
import type { Cell } from "../core/store";
import { theme } from "../core/theme";
import { describe } from "./attention";
import type { ViewProps } from "./view";

export function Attribution({ spec, arrays, store, width }: ViewProps) {
  const { components, positions, answers, correct, valueName, answerName, range } = spec.meta as {
    components: string[]; positions: string[]; answers: string[]; correct: number[] | null; valueName: string; answerName: string; range: [number, number];
  };
  const single = answers.length === 1;
  const approx = arrays.values.approx;
  const add = (component: number, pos: number, answer: number) => arrays.values.at(component, pos, answer);
  const maps = useMemo(() => planes(spec.meta, arrays), [arrays]);
  const own = useSignal(false);
  const ordered = useSignal(true);
  const readout = useId();
  const names = maps.map((map) => map.name);
  const chosen = Math.min(store.panel.value, maps.length - 1);
  const map = maps[chosen];
  const ends = useMemo(() => {
    if (!own.value && chosen >= maps.length - components.length) return range;
    const { low, high } = census([map.plane]);
    const far = Math.max(Math.abs(low), Math.abs(high)) || 1;
    return [-far, far] as [number, number];
  }, [map, own.value]);
  const scale = useScale("diverging", ends, theme.value);
  const shown = useMemo(() => [map.plane], [map]);
  const value = (cell: Cell) => maps[single ? 0 : cell.panel].plane.at(cell.row, cell.col);
  const say = (cell: Cell) =>
    single
      ? `${place(components, cell.row)} · position ${place(positions, cell.col)}: ${signed(value(cell), approx)} ${valueName}`
      : `${names[cell.panel]} · position ${place(positions, cell.col)} · ${answerName} ${place(answers, cell.row)}: ${signed(value(cell), approx)} ${valueName}` +
        (correct && correct[cell.col] === cell.row ? " (right answer)" : "");
  const text = useComputed(() => describe(store, say, value, approx));
  const marks = useMemo<Mark[]>(
    () => (correct && !single ? correct.flatMap((row, col) => (row < 0 ? [] : [{ row, col, what: "right answer" }])) : []),
    [correct],
  );
  const cell = store.current.value;
  const position = cell?.col ?? positions.length - 1;
  const answer = single ? 0 : cell?.row ?? Math.max(0, correct?.[position] ?? 0);
  const bars = components.map((name, index) => ({ name, index, value: add(index, position, answer) }));
  const sum = bars.reduce((total, bar) => total + bar.value, 0);
  if (ordered.value) bars.sort((a, b) => Math.abs(b.value) - Math.abs(a.value));
  const total = arrays.total ? arrays.total.at(0, position, answer) : null;
  return (
    <>
      {!single && (
        <Bar>
          <Menu label="component" options={names} value={chosen} onPick={(index) => store.show(index)} />
          <Switch label="a colour scale of its own" on={own.value} onFlip={() => (own.value = !own.value)} />
        </Bar>
      )}
      <Legend scale={scale} name={`${valueName} added`} planes={shown} />
      {marks.length > 0 && <div class="ct-legend"><span class="ct-odd"><i class="ct-mark-key" />right answer</span></div>}
      <Readout id={readout} text={text} />
      <HeatMap
        plane={map.plane} panel={chosen} store={store} scale={scale} width={width} readout={readout} marks={marks}
        x={{ name: "position", labels: positions }} y={{ name: single ? "component" : answerName, labels: single ? components : answers }}
        label={`${spec.title}: ${names[chosen]}`}
      />
      <p class="ct-sub"><bdi>
        {valueName} of {single ? "" : <>{answerName} <b>{place(answers, answer)}</b> at </>}position <b>{place(positions, position)}</b>: sum {signed(sum, approx)}
        {total !== null && <> of {signed(total, arrays.total.approx)}; left over {signed(total - sum, approx)}</>}
      </bdi></p>
      <Bar><Switch label="largest first" on={ordered.value} onFlip={() => (ordered.value = !ordered.value)} /></Bar>
      <ContributionBars bars={bars} scale={scale} approx={approx} picked={single ? cell?.row ?? -1 : chosen - (maps.length - components.length)} onPick={(index) => {
        if (single) store.pick({ panel: 0, row: index, col: position });
        else store.show(index + maps.length - components.length);
      }} />
      <TopCells
        plane={map.plane} scale={scale} names={[single ? "component" : answerName, "position", valueName]}
        say={(top) => [place(single ? components : answers, top.row), place(positions, top.col)]}
        onPick={(top) => store.pick({ panel: chosen, row: top.row, col: top.col })}
      />
    </>
  );
}

/** The maps that the menu offers: the sum, what is left over, and each component (answers downwards, positions across). */
export function planes(meta: any, arrays: ViewProps["arrays"]): { name: string; plane: Plane }[] {
  const [count, length, width] = arrays.values.shape;
  const approx = arrays.values.approx;
  if (width === 1) return [{ name: "all", plane: made(count, length, (component, pos) => arrays.values.at(component, pos, 0), approx) }];
  const sum = made(width, length, (answer, pos) => {
    let total = 0;
    for (let component = 0; component < count; component++) total += arrays.values.at(component, pos, answer);
    return total;
  }, approx);
  const out = [{ name: "sum of all", plane: sum }];
  if (arrays.total) out.push({ name: "left over", plane: made(width, length, (answer, pos) => arrays.total.at(0, pos, answer) - sum.at(answer, pos), approx) });
  for (let component = 0; component < count; component++)
    out.push({ name: meta.components[component], plane: made(width, length, (answer, pos) => arrays.values.at(component, pos, answer), approx) });
  return out;
}

function ContributionBars({ bars, scale, approx, picked, onPick }: {
  bars: { name: string; index: number; value: number }[]; scale: Parameters<typeof rgb>[0]; approx: boolean; picked: number; onPick: (index: number) => void;
}) {
  const far = Math.max(...bars.map((bar) => (Number.isFinite(bar.value) ? Math.abs(bar.value) : 0))) || 1;
  const strong = Math.max(Math.abs(scale.low), Math.abs(scale.high));
  return (
    <div class="ct-bars" role="group" aria-label="components">
      {bars.map((bar) => {
        const size = Number.isFinite(bar.value) ? (50 * Math.abs(bar.value)) / far : 0;
        const tint = css(rgb(scale, bar.value < 0 ? -strong * 0.7 : strong * 0.7));
        return (
          <button type="button" class={bar.index === picked ? "ct-bar-row ct-on" : "ct-bar-row"} onClick={() => onPick(bar.index)}>
            <bdi class="ct-bar-name">{visible(bar.name, 30)}</bdi>
            <span class="ct-bar-track"><i style={{ left: `${bar.value < 0 ? 50 - size : 50}%`, width: `${size}%`, background: tint }} /></span>
            <span class="ct-num">{signed(bar.value, approx)}</span>
          </button>
        );
      })}
    </div>
  );
}
