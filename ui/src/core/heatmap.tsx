// The heat map: a canvas with a pixel for each cell, labels around it, and boxes for what is hovered and pinned.

import { useComputed, useSignal, type Signal } from "@preact/signals";
import { useEffect, useLayoutEffect, useMemo, useRef } from "preact/hooks";
import { ink as contrasting, rgb, type Scale } from "./color";
import type { Plane } from "./decode";
import { number, visible } from "./format";
import { boldest, draw, pixels } from "./paint";
import type { Cell, Store } from "./store";

export interface AxisSpec {
  name: string;
  labels: string[] | null;
}

export interface Mark {
  row: number;
  col: number;
  what: string;
}

interface Props {
  plane: Plane;
  panel: number;
  store: Store;
  scale: Scale;
  x: AxisSpec;
  y: AxisSpec;
  width: number; // of the place there is, in CSS pixels
  label: string; // for readers of the screen
  readout: string; // id of the element that says what the focused cell holds
  square?: boolean;
  hollow?: boolean; // leave cells above the diagonal empty
  zoom?: number;
  most?: number; // CSS pixels of a cell, at most
  text?: string[][] | null;
  marks?: Mark[];
  splits?: { x: number[]; y: number[] };
  columns?: number; // panels in a layer, for { and }
}

const CHAR = 7.2; // CSS pixels of a character of a label
const LONGEST = 16; // characters of a label

export interface Layout {
  cw: number;
  ch: number;
  kx: number;
  ky: number;
  left: number;
  top: number;
  width: number;
  height: number;
  vertical: boolean;
  chars: number;
  stepX: number;
  stepY: number;
}

export const longest = (labels: string[] | null, count: number, most = LONGEST): number =>
  labels ? labels.reduce((so, one) => Math.max(so, Math.min(most, visible(one, most).length)), 1) : String(count - 1).length;

/** Sizes of everything, from the place there is. */
export function layout(
  rows: number,
  cols: number,
  x: string[] | null,
  y: string[] | null,
  place: number,
  options: { square?: boolean; zoom?: number; most?: number; text?: boolean; ratio?: number },
): Layout {
  const chars = place < 480 ? 9 : LONGEST;
  const left = 24 + longest(y, rows, chars) * CHAR;
  const room = Math.max(40, place - left - 4);
  const most = options.most ?? 28;
  let cw = Math.min(most, room / cols);
  if (options.text) cw = Math.max(cw, Math.min(76, Math.max(48, room / cols)));
  if (cw >= 3) cw = Math.floor(cw);
  let ch = options.square ? cw : options.text ? 26 : Math.min(26, Math.max(cw, Math.min(18, 720 / rows)));
  if (ch >= 3) ch = Math.floor(ch);
  const zoom = options.zoom ?? 1;
  const ratio = options.ratio ?? 1;
  const kx = Math.max(1, Math.ceil(1 / (cw * ratio) - 1e-9));
  const ky = Math.max(1, Math.ceil(1 / (ch * ratio) - 1e-9));
  cw *= zoom;
  ch *= zoom;
  const long = longest(x, cols, chars) * CHAR + 4;
  const vertical = long > cw;
  const top = 20 + (vertical ? long : 16);
  const stepX = Math.max(1, Math.ceil((vertical ? 12 : long) / cw));
  const width = Math.ceil(cols / kx) * kx * cw;
  const height = Math.ceil(rows / ky) * ky * ch;
  return { cw, ch, kx, ky, left, top, width, height, vertical, chars, stepX, stepY: Math.max(1, Math.ceil(12 / ch)) };
}

export function HeatMap(props: Props) {
  const { plane, panel, store, scale, x, y, text, marks, splits } = props;
  const base = useRef<HTMLCanvasElement>(null);
  const over = useRef<HTMLCanvasElement>(null);
  const area = useRef<HTMLDivElement>(null);
  const scroller = useRef<HTMLDivElement>(null);
  const focused = useSignal(false);
  const ratio = typeof devicePixelRatio === "number" ? devicePixelRatio : 1;
  const at = useMemo(
    () =>
      layout(plane.rows, plane.cols, x.labels, y.labels, props.width, {
        square: props.square, zoom: props.zoom, most: props.most, text: !!text, ratio,
      }),
    [plane.rows, plane.cols, x.labels, y.labels, props.width, props.square, props.zoom, props.most, text, ratio],
  );

  useLayoutEffect(() => {
    draw(base.current!, pixels(plane, scale, at.ky, at.kx, props.hollow));
  }, [plane, scale, at.kx, at.ky, props.hollow]);
  const ink = () => inkCells(over.current!, scroller.current!, plane, scale, at, text ?? null, ratio);
  useEffect(ink, [plane, scale, at, text]);

  const cellAt = (event: PointerEvent | MouseEvent): Cell | null => {
    const box = area.current!.getBoundingClientRect();
    let col = Math.floor((event.clientX - box.left) / at.cw);
    let row = Math.floor((event.clientY - box.top) / at.ch);
    if (row < 0 || col < 0 || row >= plane.rows || col >= plane.cols) return null;
    if ((at.kx > 1 || at.ky > 1) && (props.zoom ?? 1) * at.cw < 4)
      [row, col] = boldest(plane, scale, row - (row % at.ky), col - (col % at.kx), at.ky, at.kx);
    return { panel, row, col };
  };
  const onKeyDown = (event: KeyboardEvent) => {
    if (store.key(event, plane.rows, plane.cols, props.columns)) event.preventDefault();
  };
  return (
    <div ref={scroller} class="ct-scroll" onScroll={ink} tabIndex={props.zoom && props.zoom > 1 ? 0 : undefined}>
      <div class="ct-map" style={{ width: at.left + at.width + 4, height: at.top + at.height + 4 }}>
        <div class="ct-axis" style={{ left: at.left, top: 0, maxWidth: at.width }}>{x.name}</div>
        <div class="ct-axis ct-axis-y" style={{ left: 0, top: at.top, maxHeight: Math.max(at.height, 60) }}>{y.name}</div>
        <Labels axis={x} count={plane.cols} at={at} across />
        <Labels axis={y} count={plane.rows} at={at} />
        <div
          ref={area}
          class="ct-area"
          role="application"
          aria-roledescription="heat map"
          aria-label={props.label}
          aria-describedby={props.readout}
          tabIndex={0}
          style={{ left: at.left, top: at.top, width: at.width, height: at.height }}
          onPointerMove={(event) => store.preview(cellAt(event))}
          onPointerLeave={() => store.preview(null)}
          onClick={(event) => {
            const cell = cellAt(event);
            if (cell) store.pick(cell, event.shiftKey);
          }}
          onKeyDown={onKeyDown}
          onFocus={() => (focused.value = true)}
          onBlur={() => ((focused.value = false), store.preview(null))}
        >
          <canvas ref={base} class="ct-cells" aria-hidden="true" />
          <canvas ref={over} class="ct-ink" aria-hidden="true" />
          {splits?.x.map((c) => <i class="ct-split" style={{ left: c * at.cw - 1, top: 0, width: 2, height: at.height }} />)}
          {splits?.y.map((r) => <i class="ct-split" style={{ left: 0, top: r * at.ch - 1, width: at.width, height: 2 }} />)}
          {marks?.map((mark) => <i class="ct-mark" title={mark.what} style={box(at, mark.row, mark.col)} />)}
          <Box of={store.compared} at={at} panel={panel} kind="compared" />
          <Box of={store.pinned} at={at} panel={panel} kind="pinned" />
          <Box of={store.hover} at={at} panel={panel} kind="hover" />
        </div>
      </div>
    </div>
  );
}

const box = (at: Layout, row: number, col: number) => ({
  left: col * at.cw, top: row * at.ch, width: Math.max(at.cw, 3), height: Math.max(at.ch, 3),
});

/** The outline of a selected cell; in the other panels the same cell is outlined more thinly. */
function Box({ of, at, panel, kind }: { of: Signal<Cell | null>; at: Layout; panel: number; kind: string }) {
  const style = useComputed(() => (of.value ? box(at, of.value.row, of.value.col) : { display: "none" }));
  const name = useComputed(() => `ct-box ct-${kind}${of.value && of.value.panel !== panel ? " ct-echo" : ""}`);
  return <i class={name} style={style.value} />;
}

function Labels({ axis, count, at, across = false }: { axis: AxisSpec; count: number; at: Layout; across?: boolean }) {
  return useMemo(() => {
    const step = across ? at.stepX : at.stepY;
    const out = [];
    for (let i = 0; i < count; i += step) {
      const text = axis.labels ? visible(axis.labels[i], at.chars) : String(i);
      const style = across
        ? { left: at.left + (i + 0.5) * at.cw, bottom: `calc(100% - ${at.top - 3}px)` }
        : { right: `calc(100% - ${at.left - 4}px)`, top: at.top + (i + 0.5) * at.ch };
      out.push(<bdi class={across ? (at.vertical ? "ct-label ct-up" : "ct-label ct-over") : "ct-label ct-side"} style={style}>{text}</bdi>);
    }
    return <div aria-hidden="true">{out}</div>;
  }, [axis.labels, count, at, across]);
}

/**
 * What is written into cells: their text, signs of negative values, and crosses where a value is not finite. The canvas covers
 * what the scroller shows and follows it, so a map of any size has its words: browsers limit how large a canvas may be.
 */
function inkCells(
  canvas: HTMLCanvasElement, scroller: HTMLElement, plane: Plane, scale: Scale, at: Layout, text: string[][] | null, ratio: number,
): void {
  const room = at.cw >= 9 && at.ch >= 9;
  const left = Math.max(0, scroller.scrollLeft - at.left);
  const top = Math.max(0, scroller.scrollTop - at.top);
  const width = room ? Math.min(at.width - left, scroller.clientWidth) : 1;
  const height = room ? Math.min(at.height - top, scroller.clientHeight) : 1;
  canvas.width = Math.max(1, Math.round(width * ratio));
  canvas.height = Math.max(1, Math.round(height * ratio));
  Object.assign(canvas.style, { left: `${left}px`, top: `${top}px`, width: `${width}px`, height: `${height}px` });
  if (!room) return;
  const pen = canvas.getContext("2d")!;
  pen.scale(ratio, ratio);
  pen.translate(-left, -top);
  pen.textAlign = "center";
  pen.textBaseline = "middle";
  const most = Math.max(1, Math.floor((at.cw - 4) / 6.7));
  const strong = 0.12 * Math.max(Math.abs(scale.low), Math.abs(scale.high));
  const last = { row: Math.min(plane.rows, Math.ceil((top + height) / at.ch)), col: Math.min(plane.cols, Math.ceil((left + width) / at.cw)) };
  for (let r = Math.floor(top / at.ch); r < last.row; r++)
    for (let c = Math.floor(left / at.cw); c < last.col; c++) {
      const value = plane.at(r, c);
      const word = text ? visible(text[r][c], most) : "";
      const sign = !Number.isFinite(value) ? (scale.blank ? "" : number(value).replace("NaN", "×")) : scale.name === "diverging" && value < -strong ? "−" : "";
      if (!word && !sign) continue;
      pen.fillStyle = contrasting(rgb(scale, value));
      pen.font = word ? "11px ui-monospace, monospace" : `${Math.min(13, at.ch - 2)}px system-ui, sans-serif`;
      pen.globalAlpha = word || !Number.isFinite(value) ? 1 : 0.65;
      pen.fillText(word || sign, (c + 0.5) * at.cw, (r + 0.5) * at.ch + 0.5);
    }
}

/** A thumbnail: the boldest cell of each block survives. */
export function Thumb({ plane, scale, hollow, size }: { plane: Plane; scale: Scale; hollow?: boolean; size: number }) {
  const canvas = useRef<HTMLCanvasElement>(null);
  useLayoutEffect(() => {
    const k = Math.max(1, Math.ceil(Math.max(plane.rows, plane.cols) / size));
    draw(canvas.current!, pixels(plane, scale, k, k, hollow));
  }, [plane, scale, hollow, size]);
  return <canvas ref={canvas} class="ct-thumb" style={{ width: size, height: Math.max(8, (size * plane.rows) / plane.cols) }} aria-hidden="true" />;
}
