// Attention patterns: thumbnails of the heads, the chosen head large, and the text coloured by what it looks at.

import { useComputed, useSignal } from "@preact/signals";
import { useMemo } from "preact/hooks";
import { css, ink, rgb, type Scale } from "../core/color";
import { Plane } from "../core/decode";
import { number, place, visible } from "../core/format";
import { HeatMap, Thumb, layout } from "../core/heatmap";
import { census } from "../core/paint";
import { Bar, Contrast, Legend, Menu, Readout, Switch, TopCells, Zoom, stretched, useId, useScale } from "../core/parts";
import type { Cell, Store } from "../core/store";
import { theme } from "../core/theme";
import type { ViewProps } from "./view";

const STRIP = 400; // tokens of text that are drawn as text

export function Attention({ spec, arrays, store, width }: ViewProps) {
  const { heads, range, scale: name, valueName, perHead, columns } = spec.meta;
  const dest = spec.tokens;
  const src: string[] = spec.meta.srcTokens ?? dest;
  const data = arrays.patterns;
  const chosen: number[] | undefined = spec.meta.planes; // heads of a larger array, where not all are shown
  const planes = useMemo(() => heads.map((_: string, head: number) => new Plane(data, chosen ? chosen[head] : head)) as Plane[], [data]);
  const own = useSignal<boolean>(perHead);
  const contrast = useSignal(0);
  const zoom = useSignal(1);
  const readout = useId();
  const ranges = useMemo(() => planes.map((plane) => ends(plane, name)), [planes]);
  const common = useScale(name, range, theme.value);
  const scales = useMemo(
    () => ranges.map(([low, high]) => stretched(own.value ? { ...common, low, high } : common, contrast.value)),
    [own.value, contrast.value, common, ranges],
  );
  const head = store.panel.value;
  const plane = planes[head];
  const shown = useMemo(() => [plane], [plane]);
  const wide = width >= 860;
  const room = wide ? Math.min(width * 0.62, 760) : width;
  const at = layout(plane.rows, plane.cols, src, dest, room, { square: true, ratio: devicePixelRatio });
  const value = (cell: Cell) => planes[cell.panel].at(cell.row, cell.col);
  const say = (cell: Cell) =>
    `head ${heads[cell.panel]} · from (query) ${place(dest, cell.row, true)} → to (key) ${place(src, cell.col, true)}: ` +
    (planes[cell.panel].masked(cell.row, cell.col) ? "masked" : number(value(cell), data.approx));
  const text = useComputed(() => describe(store, say, value, data.approx));
  return (
    <>
      <Bar>
        {heads.length > 1 && (
          <>
            <Menu label="head" options={heads} value={head} onPick={(index) => store.show(index)} />
            <Switch label="a colour scale for each head" on={own.value} onFlip={() => (own.value = !own.value)} />
          </>
        )}
        <Contrast value={contrast.value} onTurn={(to) => (contrast.value = to)} />
        {plane.cols > 24 && <Zoom value={zoom.value} onZoom={(to) => (zoom.value = to)} />}
      </Bar>
      {heads.length > 1 && <Thumbs heads={heads} planes={planes} scales={scales} store={store} columns={columns} width={width} />}
      <Legend scale={scales[head]} name={valueName} planes={shown} pooled={at.kx > 1} />
      <Readout id={readout} text={text} />
      <div class={wide ? "ct-beside" : ""}>
        <HeatMap
          plane={plane} panel={head} store={store} scale={scales[head]} width={room} square hollow zoom={zoom.value}
          x={{ name: "to (key)", labels: src }} y={{ name: "from (query)", labels: dest }}
          label={`${spec.title}, head ${heads[head]}: ${plane.rows} queries × ${plane.cols} keys`} readout={readout} columns={columns ?? 0}
        />
        <Strip dest={dest} src={src} plane={plane} scale={scales[head]} store={store} panel={head} />
      </div>
      <TopCells
        plane={plane} scale={scales[head]} names={["from (query)", "to (key)", valueName]}
        say={(cell) => [place(dest, cell.row, true), place(src, cell.col, true)]}
        onPick={(cell) => store.pick({ panel: head, row: cell.row, col: cell.col })}
      />
    </>
  );
}

function ends(plane: Plane, scale: string): [number, number] {
  const { low, high } = census([plane]);
  if (scale === "diverging") {
    const far = Math.max(Math.abs(low), Math.abs(high)) || 1;
    return [-far, far];
  }
  return high > low || high > 0 ? [Math.min(0, low), Math.max(high, Math.min(0, low) + 1e-12)] : [0, 1];
}

/** The sentence about what is focused, pinned and compared. */
export function describe(store: Store, say: (cell: Cell) => string, value: (cell: Cell) => number, approx: boolean): string {
  const { hover, pinned, compared } = store;
  const parts = [];
  if (hover.value) parts.push(say(hover.value));
  if (pinned.value) {
    const other = compared.value;
    const more = other ? ` — compared: ${say(other)} (difference ${number(value(other) - value(pinned.value), approx)})` : "";
    parts.push(`pinned: ${say(pinned.value)}${more}`);
  }
  return parts.join("\n");
}

function Thumbs({ heads, planes, scales, store, columns, width }: {
  heads: string[]; planes: Plane[]; scales: Scale[]; store: Store; columns: number | null; width: number;
}) {
  const size = columns ? Math.max(20, Math.min(72, Math.floor((width - 44) / columns) - 8)) : width < 500 ? 56 : 72;
  const chosen = store.panel.value;
  const style = columns ? { display: "grid", gridTemplateColumns: `repeat(${columns}, ${size + 6}px)`, gap: "2px" } : {};
  const items = useMemo(
    () => planes.map((plane, head) => <Thumb plane={plane} scale={scales[head]} hollow size={size} />),
    [planes, scales, size],
  );
  const onKeyDown = (event: KeyboardEvent) => {
    const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -(columns ?? 1), ArrowDown: columns ?? 1, "[": -1, "]": 1, "{": -(columns ?? 1), "}": columns ?? 1 }[event.key];
    if (step === undefined) return;
    store.show(chosen + step);
    event.preventDefault();
    const row = event.currentTarget as HTMLElement;
    requestAnimationFrame(() => (row.children[store.panel.value] as HTMLElement | undefined)?.focus());
  };
  return (
    <div class="ct-thumbs" role="group" aria-label="heads" style={style} onKeyDown={onKeyDown}>
      {heads.map((name, head) => (
        <button
          type="button" class="ct-head-button" aria-pressed={head === chosen} tabIndex={head === chosen ? 0 : -1}
          aria-label={`head ${name}`} title={`head ${name}`} onClick={() => store.show(head)}
        >
          {items[head]}
          {size >= 28 && <span>{name}</span>}
        </button>
      ))}
    </div>
  );
}

/** The text, coloured by one row (what a query looks at) or one column (who looks at a key). */
function Strip({ dest, src, plane, scale, store, panel }: {
  dest: string[]; src: string[]; plane: Plane; scale: Scale; store: Store; panel: number;
}) {
  const down = useSignal(false);
  const cell = store.current.value;
  const row = cell?.row ?? plane.rows - 1;
  const col = cell?.col ?? 0;
  const tokens = down.value ? dest : src;
  const weight = (i: number) => (down.value ? plane.at(i, col) : plane.at(row, i));
  const masked = (i: number) => (down.value ? plane.masked(i, col) : plane.masked(row, i));
  const focus = (i: number) => {
    if (down.value) return { panel, row: strongest(plane.rows, (r) => (plane.masked(r, i) ? -Infinity : plane.at(r, i))), col: i };
    return { panel, row: i, col: strongest(plane.cols, (c) => (plane.masked(i, c) ? -Infinity : plane.at(i, c))) };
  };
  const said = down.value
    ? <>who looks at (key) <b>{place(src, col, true)}</b></>
    : <>what (query) <b>{place(dest, row, true)}</b> looks at</>;
  const list = tokens.length > STRIP;
  const order = list ? tokens.map((_, i) => i).filter((i) => !masked(i)).sort((a, b) => weight(b) - weight(a)).slice(0, 12) : null;
  return (
    <div class="ct-strip">
      <div class="ct-strip-head">
        <bdi>{said}</bdi>
        <button type="button" onClick={() => (down.value = !down.value)}>{down.value ? "show what a query looks at" : "show who looks at a key"}</button>
      </div>
      {order ? (
        <ol class="ct-ranked">
          {order.map((i) => <li><bdi>{place(tokens, i, true)}</bdi> <span class="ct-num">{number(weight(i), plane.data.approx)}</span></li>)}
        </ol>
      ) : (
        <div class="ct-tokens" onPointerLeave={() => store.preview(null)}>
          {tokens.map((token, i) => {
            const color = masked(i) ? null : rgb(scale, weight(i));
            const anchor = i === (down.value ? col : row) && cell ? " ct-anchor-token" : "";
            const turn = () => (src === dest ? focus(i) : down.value ? { panel, row: i, col } : { panel, row, col: i });
            return (
              <bdi
                class={"ct-token" + anchor} style={color ? { background: css(color), color: ink(color) } : undefined}
                onPointerEnter={() => store.preview(turn())} onClick={(event) => store.pick(turn(), event.shiftKey)}
              >{visible(token, 80)}</bdi>
            );
          })}
        </div>
      )}
    </div>
  );
}

function strongest(count: number, value: (index: number) => number): number {
  let best = 0;
  for (let i = 1; i < count; i++) if (value(i) > value(best)) best = i;
  return best;
}
