// One heat map, or several with the same selection and (unless switched off) the same colour scale.

import { useComputed, useSignal } from "@preact/signals";
import { useMemo } from "preact/hooks";
import { Plane } from "../core/decode";
import { number, place, visible } from "../core/format";
import { HeatMap, layout, longest } from "../core/heatmap";
import { Bar, Contrast, Legend, Menu, Readout, Switch, TopCells, Zoom, stretched, useId, useScale } from "../core/parts";
import type { Cell } from "../core/store";
import { theme } from "../core/theme";
import { describe } from "./attention";
import type { ViewProps } from "./view";

interface PanelSpec {
  name: string;
  x: string[] | null;
  y: string[] | null;
  marks: [number, number, string][];
  text: string[][] | null;
  range: [number, number];
}

export function Grid({ spec, arrays, store, width }: ViewProps) {
  const { meta } = spec;
  const panels: PanelSpec[] = meta.panels;
  const many = panels.length > 1;
  const planes = useMemo(() => panels.map((_, index) => new Plane(arrays[`p${index}`], 0)), [arrays]);
  const common = useSignal<boolean>(meta.common);
  const contrast = useSignal(0);
  const zoom = useSignal(1);
  const readout = useId();
  const named = useScale(meta.scale, meta.range, theme.value);
  const base = useMemo(() => ({ ...named, blank: Boolean(meta.absent) }), [named]);
  const scales = useMemo(
    () => panels.map(({ range: [low, high] }) => stretched(common.value ? base : { ...base, low, high }, contrast.value)),
    [base, common.value, contrast.value],
  );
  const xs = useMemo(() => panels.map((panel) => panel.x ?? meta.x), [meta]) as (string[] | null)[];
  const ys = useMemo(() => panels.map((panel) => panel.y ?? meta.y), [meta]) as (string[] | null)[];
  const approx = planes.some((plane) => plane.data.approx);
  const inside = (cell: Cell) => cell.row < planes[cell.panel].rows && cell.col < planes[cell.panel].cols;
  const value = (cell: Cell) => (inside(cell) ? planes[cell.panel].at(cell.row, cell.col) : NaN);
  const say = (cell: Cell) => {
    if (!inside(cell)) return `${panels[cell.panel].name}: no such cell`;
    const panel = panels[cell.panel];
    const words = panel.text?.[cell.row]?.[cell.col];
    const mark = panel.marks.find(([row, col]) => row === cell.row && col === cell.col);
    return (
      (panel.name ? `${panel.name} · ` : "") +
      `${meta.yName} ${place(ys[cell.panel], cell.row)} · ${meta.xName} ${place(xs[cell.panel], cell.col)}: ` +
      (meta.absent && Number.isNaN(value(cell)) ? meta.absent : number(value(cell), approx)) +
      (words ? ` “${visible(words, 60)}”` : "") +
      (mark ? ` (${mark[2]})` : "")
    );
  };
  const text = useComputed(() => describe(store, say, value, approx));
  const chosen = Math.min(store.panel.value, panels.length - 1);
  const rest = Math.max(...planes.map((plane) => plane.cols));
  const side = 28 + longest(ys[0], planes[0].rows) * 7.2;
  const wanted = Math.max(150, Math.min(width, side + rest * (rest > 30 ? 8 : 18) + 4));
  const beside = many ? Math.max(1, Math.min(meta.columns ?? panels.length, Math.floor((width + 16) / (wanted + 16)))) : 1;
  const room = many ? Math.floor((width - 16 * (beside - 1)) / beside) : width;
  const square = planes.every((plane) => plane.rows === plane.cols || plane.rows > 48) && !panels[0].text;
  const most = many ? 24 : panels[0].text ? 76 : 28;
  const pooled = planes.some((plane, i) => layout(plane.rows, plane.cols, xs[i], ys[i], room, { square, most, ratio: devicePixelRatio }).kx > 1);
  return (
    <>
      {!panels[0].text && (
        <Bar>
          {many && <Menu label="panel" options={panels.map((panel, i) => panel.name || String(i))} value={chosen} onPick={(index) => store.show(index)} />}
          {many && <Switch label="one colour scale for all" on={common.value} onFlip={() => (common.value = !common.value)} />}
          <Contrast value={contrast.value} onTurn={(to) => (contrast.value = to)} />
          {rest > 60 && <Zoom value={zoom.value} onZoom={(to) => (zoom.value = to)} />}
        </Bar>
      )}
      <Legend scale={scales[chosen]} name={many && !common.value ? `${meta.valueName} (${panels[chosen].name})` : meta.valueName} planes={planes} pooled={pooled} absent={meta.absent} />
      <Readout id={readout} text={text} />
      <div class="ct-panels" style={many ? { gridTemplateColumns: `repeat(${beside}, ${room}px)` } : undefined}>
        {panels.map((panel, index) => (
          <div class={many && index === chosen ? "ct-panel ct-panel-chosen" : "ct-panel"}>
            {panel.name && <div class="ct-panel-name"><bdi>{visible(panel.name, 60)}</bdi></div>}
            <HeatMap
              plane={planes[index]} panel={index} store={store} scale={scales[index]} width={room} square={square} most={most} zoom={zoom.value}
              x={{ name: meta.xName, labels: xs[index] }} y={{ name: meta.yName, labels: ys[index] }}
              text={panel.text} marks={panel.marks.map(([row, col, what]) => ({ row, col, what }))} splits={meta.splits}
              label={`${spec.title} ${panel.name}: ${planes[index].rows} × ${planes[index].cols} cells`} readout={readout}
            />
          </div>
        ))}
      </div>
      <TopCells
        plane={planes[chosen]} scale={scales[chosen]} names={[meta.yName, meta.xName, meta.valueName]}
        say={(cell) => [place(ys[chosen], cell.row), place(xs[chosen], cell.col)]}
        onPick={(cell) => store.pick({ panel: chosen, row: cell.row, col: cell.col })}
      />
    </>
  );
}
