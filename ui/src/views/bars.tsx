// Bars in groups, with whiskers for intervals.

import { useComputed } from "@preact/signals";
import { useMemo } from "preact/hooks";
import { SERIES } from "../core/color";
import { YAxis, extent, gutter, scaler, ticks } from "../core/axes";
import { number, visible } from "../core/format";
import { Readout, References, useId } from "../core/parts";
import { theme } from "../core/theme";
import type { ViewProps } from "./view";

export function Bars({ spec, arrays, store, width }: ViewProps) {
  const { meta } = spec;
  const { groups, series } = meta as { groups: string[]; series: string[] };
  const readout = useId();
  const colors = SERIES[theme.value];
  const value = (s: number, g: number) => arrays.y.at(0, s, g);
  const approx = arrays.y.approx;
  const longest = Math.min(18, Math.max(...groups.map((group) => visible(group, 18).length)));
  const wide = Math.max(width, 74 + groups.length * Math.max(7, Math.min(3, series.length) * 5));
  const upright = longest * 7 + 6 > (wide - 80) / groups.length;
  const foot = (upright ? longest * 6.8 + 10 : 20) + (meta.xName ? 22 : 6);
  const height = 250 + foot;
  const bottom = height - foot;
  const y = useMemo(() => {
    const all: number[] = meta.references.map((one: [string, number]) => one[1]);
    for (const name of ["y", "low", "high"])
      if (arrays[name]) for (let i = 0; i < arrays[name].count; i++) all.push(arrays[name].stored(i));
    const domain = extent(all, true, false);
    return { at: scaler(domain, [bottom, 10], false), ticks: ticks(...domain, 5) };
  }, [arrays, bottom]);
  const size = { left: gutter(y.ticks), right: wide - 12, top: 10, bottom };
  const slot = (size.right - size.left) / groups.length;
  const bar = (slot * 0.78) / series.length;
  const left = (s: number, g: number) => size.left + (g + 0.11) * slot + s * bar;
  const bounds = (s: number, g: number) =>
    arrays.low && Number.isFinite(arrays.low.at(0, s, g)) ? [arrays.low.at(0, s, g), arrays.high.at(0, s, g)] : null;
  const say = (g: number) =>
    `${visible(groups[g], 60)}: ` +
    series.map((name, s) => {
      const ends = bounds(s, g);
      return `${series.length > 1 ? name + " " : ""}${number(value(s, g), approx)}${ends ? ` [${number(ends[0])}, ${number(ends[1])}]` : ""}`;
    }).join(" · ");
  const text = useComputed(() => {
    const parts = [];
    if (store.hover.value) parts.push(say(store.hover.value.col));
    if (store.pinned.value) parts.push(`pinned: ${say(store.pinned.value.col)}`);
    return parts.join("\n");
  });
  const cell = (event: MouseEvent) => {
    const box = (event.currentTarget as SVGElement).getBoundingClientRect();
    const at = Math.floor((event.clientX - box.left - size.left) / slot);
    return { panel: 0, row: 0, col: Math.max(0, Math.min(groups.length - 1, at)) };
  };
  const every = Math.max(1, Math.ceil(13 / slot));
  const drawn = useMemo(
    () => (
      <>
        <YAxis at={y.ticks} y={y.at} left={size.left} right={size.right} name={meta.valueName} height={size.bottom} />
        {groups.map((group, g) => (
          <g>
            {series.map((_, s) => {
              const v = value(s, g);
              const ends = bounds(s, g);
              const middle = left(s, g) + bar / 2;
              if (!Number.isFinite(v)) return <text x={middle} y={y.at(0) - 4} text-anchor="middle">{number(v)}</text>;
              return (
                <>
                  <rect x={left(s, g)} width={Math.max(1, bar - (bar > 4 ? 1 : 0))} y={Math.min(y.at(v), y.at(0))} height={Math.max(0.5, Math.abs(y.at(v) - y.at(0)))} fill={colors[s % colors.length]} />
                  {ends && <path class="ct-whisker" d={`M${middle},${y.at(ends[0])}V${y.at(ends[1])}M${middle - 3},${y.at(ends[0])}h6M${middle - 3},${y.at(ends[1])}h6`} />}
                </>
              );
            })}
            {g % every === 0 && (upright
              ? <text transform={`translate(${size.left + (g + 0.5) * slot + 4} ${size.bottom + 8}) rotate(-90)`} text-anchor="end">{visible(group, 18)}</text>
              : <text x={size.left + (g + 0.5) * slot} y={size.bottom + 17} text-anchor="middle">{visible(group, 18)}</text>)}
          </g>
        ))}
        {meta.references.map(([, at]: [string, number]) => (
          <line class="ct-reference" x1={size.left} x2={size.right} y1={y.at(at)} y2={y.at(at)} />
        ))}
        {meta.xName && <text class="ct-axis-name" x={(size.left + size.right) / 2} y={height - 6} text-anchor="middle">{meta.xName}</text>}
      </>
    ),
    [theme.value, wide, y],
  );
  const frame = (at: { col: number } | null, kind: string) =>
    at && <rect class={kind} x={size.left + at.col * slot} width={slot} y={size.top} height={size.bottom - size.top} />;
  return (
    <>
      {(series.length > 1 || arrays.low || meta.references.length > 0) && (
        <div class="ct-legend">
          {series.length > 1 && series.map((name, s) => <span class="ct-odd"><i style={{ background: colors[s % colors.length] }} />{name}</span>)}
          {arrays.low && <span class="ct-muted">whiskers: {meta.intervalName}</span>}
          <References lines={meta.references} />
        </div>
      )}
      <Readout id={readout} text={text} hint="Point at a bar to read it; click to pin; arrow keys move." />
      <div class="ct-scroll">
        <svg
          class="ct-chart" width={wide} height={height} tabIndex={0} role="application" aria-roledescription="bar chart" aria-label={`${spec.title}: ${meta.valueName}`}
          aria-describedby={readout} onPointerMove={(event) => store.preview(cell(event))} onPointerLeave={() => store.preview(null)}
          onClick={(event) => store.pick(cell(event), event.shiftKey)} onBlur={() => store.preview(null)}
          onKeyDown={(event) => store.key(event, 1, groups.length) && event.preventDefault()}
        >
          {frame(store.pinned.value, "ct-bar-pin")}
          {frame(store.hover.value, "ct-bar-hover")}
          {drawn}
        </svg>
      </div>
    </>
  );
}
