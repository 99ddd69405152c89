// Lines over a common x, with bands for intervals; all series are read at the point under the pointer.

import { useComputed, useSignal } from "@preact/signals";
import { useMemo } from "preact/hooks";
import { SERIES } from "../core/color";
import { YAxis, extent, gutter, logTicks, scaler, ticks } from "../core/axes";
import { number, tick, visible } from "../core/format";
import { Readout, References, useId } from "../core/parts";
import { theme } from "../core/theme";
import type { ViewProps } from "./view";

const DASHES = ["", "7 4", "2 3", "9 3 2 3"];

export function Lines({ spec, arrays, store, width }: ViewProps) {
  const { meta } = spec;
  const series: string[] = meta.series;
  const labels: string[] | null = meta.x;
  const count = arrays.x.shape[0];
  const hidden = useSignal<Set<number>>(new Set());
  const readout = useId();
  const colors = SERIES[theme.value];
  const X = (i: number) => arrays.x.stored(i);
  const Y = (s: number, i: number) => arrays.y.at(0, s, i);
  const approx = arrays.y.approx;
  const shown = series.map((_, s) => s).filter((s) => !hidden.value.has(s));
  const height = 300;
  const domain = useMemo(() => {
    const xs = Array.from({ length: count }, (_, i) => X(i));
    const ys: number[] = meta.references.map((one: [string, number]) => one[1]);
    for (const s of shown)
      for (let i = 0; i < count; i++) {
        ys.push(Y(s, i));
        if (arrays.low) ys.push(arrays.low.at(0, s, i), arrays.high.at(0, s, i));
      }
    const across = extent(xs, false, meta.logX);
    if (!meta.logX && !labels && count > 1) (across[0] = Math.min(...xs)), (across[1] = Math.max(...xs));
    return { x: labels ? ([-0.5, count - 0.5] as [number, number]) : across, y: extent(ys, false, meta.logY) };
  }, [hidden.value, arrays]);
  const yTicks = meta.logY ? logTicks(...domain.y) : ticks(...domain.y, 6);
  const size = { left: gutter(yTicks), right: width - 12, top: 10, bottom: height - 44 };
  const x = scaler(domain.x, [size.left + 8, size.right - 8], meta.logX);
  const y = scaler(domain.y, [size.bottom, size.top], meta.logY);
  const fits = Math.max(2, Math.floor((size.right - size.left) / 70));
  const xTicks = labels ? thin(count, fits) : meta.logX ? logTicks(...domain.x) : ticks(...domain.x, fits);
  const color = (s: number) => colors[s % colors.length];
  const ok = (value: number) => Number.isFinite(value) && !(meta.logY && value <= 0);
  const path = (s: number) => {
    let out = "";
    let pen = false;
    for (let i = 0; i < count; i++) {
      const value = Y(s, i);
      if (!ok(value)) { pen = false; continue; }
      out += `${pen ? "L" : "M"}${x(X(i)).toFixed(1)},${y(value).toFixed(1)}`;
      pen = true;
    }
    return out;
  };
  const band = (s: number) => {
    const up: string[] = [];
    const down: string[] = [];
    for (let i = 0; i < count; i++) {
      const [low, high] = [arrays.low.at(0, s, i), arrays.high.at(0, s, i)];
      if (!ok(low) || !ok(high)) continue;
      up.push(`${x(X(i)).toFixed(1)},${y(high).toFixed(1)}`);
      down.unshift(`${x(X(i)).toFixed(1)},${y(low).toFixed(1)}`);
    }
    return up.length ? `M${[...up, ...down].join("L")}Z` : "";
  };
  const name = (i: number) => (labels ? visible(labels[i], 40) : number(X(i)));
  const say = (i: number) =>
    `${meta.xName || "x"} ${name(i)}: ` +
    shown.map((s) => {
      const bounds = arrays.low && Number.isFinite(arrays.low.at(0, s, i)) ? ` [${number(arrays.low.at(0, s, i))}, ${number(arrays.high.at(0, s, i))}]` : "";
      return `${series[s]} ${number(Y(s, i), approx)}${bounds}`;
    }).join(" · ");
  const text = useComputed(() => {
    const parts = [];
    if (store.hover.value) parts.push(say(store.hover.value.col));
    if (store.pinned.value) parts.push(`pinned: ${say(store.pinned.value.col)}`);
    return parts.join("\n");
  });
  const nearest = (event: MouseEvent) => {
    const box = (event.currentTarget as SVGElement).getBoundingClientRect();
    const at = event.clientX - box.left;
    let best = 0;
    for (let i = 1; i < count; i++) if (Math.abs(x(X(i)) - at) < Math.abs(x(X(best)) - at)) best = i;
    return { panel: 0, row: 0, col: best };
  };
  const cursor = (cell: { col: number } | null, kind: string) =>
    cell && (
      <g>
        <line class={kind} x1={x(X(cell.col))} x2={x(X(cell.col))} y1={size.top} y2={size.bottom} />
        {shown.map((s) => ok(Y(s, cell.col)) && <circle cx={x(X(cell.col))} cy={y(Y(s, cell.col))} r="4" fill={color(s)} />)}
      </g>
    );
  const drawn = useMemo(
    () => (
      <>
        <YAxis at={yTicks} y={y} left={size.left} right={size.right} name={meta.yName} height={size.bottom} />
        {xTicks.map((at) => (
          <text x={x(at)} y={size.bottom + 17} text-anchor="middle">{labels ? visible(labels[at], Math.max(3, Math.floor(10 * Math.max(1, fits / Math.max(fits, count))))) : tick(at)}</text>
        ))}
        <text class="ct-axis-name" x={(size.left + size.right) / 2} y={size.bottom + 36} text-anchor="middle">{meta.xName}</text>
        {meta.references.map(([, value]: [string, number]) => (
          <line class="ct-reference" x1={size.left} x2={size.right} y1={y(value)} y2={y(value)} />
        ))}
        {arrays.low && shown.map((s) => <path d={band(s)} fill={color(s)} opacity="0.16" />)}
        {meta.lines !== false && shown.map((s) => <path d={path(s)} fill="none" stroke={color(s)} stroke-width="2" stroke-dasharray={DASHES[Math.floor(s / colors.length) % 4]} stroke-linejoin="round" />)}
        {meta.points && shown.map((s) => Array.from({ length: count }, (_, i) => ok(Y(s, i)) && <circle cx={x(X(i))} cy={y(Y(s, i))} r={meta.lines === false ? 3.2 : 2.6} fill={color(s)} opacity={meta.lines === false ? 0.7 : 1} />))}
      </>
    ),
    [hidden.value, theme.value, width, domain],
  );
  return (
    <>
      <div class="ct-legend">
        {(series.length > 1 || !meta.yName) && series.map((word, s) => (
          <button
            type="button" class="ct-series" aria-pressed={!hidden.value.has(s)}
            onClick={() => {
              const next = new Set(hidden.value);
              next.has(s) ? next.delete(s) : next.add(s);
              hidden.value = next;
            }}
          >
            <svg width="22" height="8" aria-hidden="true"><line x1="0" x2="22" y1="4" y2="4" stroke={color(s)} stroke-width="3" stroke-dasharray={DASHES[Math.floor(s / colors.length) % 4]} /></svg>
            {visible(word, 60)}
          </button>
        ))}
        {arrays.low && <span class="ct-muted">band: {meta.intervalName}</span>}
        <References lines={meta.references} />
      </div>
      <Readout id={readout} text={text} hint="Point at the chart to read its values; click to pin; arrow keys move." />
      <svg
        class="ct-chart" width={width} height={height} tabIndex={0} role="application" aria-roledescription="line chart"
        aria-label={`${spec.title}: ${meta.yName} over ${meta.xName}`} aria-describedby={readout}
        onPointerMove={(event) => store.preview(nearest(event))} onPointerLeave={() => store.preview(null)}
        onClick={(event) => store.pick(nearest(event), event.shiftKey)} onBlur={() => store.preview(null)}
        onKeyDown={(event) => store.key(event, 1, count) && event.preventDefault()}
      >
        {drawn}
        {cursor(store.pinned.value, "ct-pin-line")}
        {cursor(store.hover.value, "ct-hover-line")}
      </svg>
    </>
  );
}

function thin(count: number, most: number): number[] {
  const step = Math.ceil(count / most);
  return Array.from({ length: Math.ceil(count / step) }, (_, i) => i * step);
}
