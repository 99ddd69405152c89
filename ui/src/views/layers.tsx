// A circuit: layers up, components across, edges as wide as their effects; behind an edge the patterns of its heads.

import { useComputed, useSignal } from "@preact/signals";
import { useMemo } from "preact/hooks";
import { number, visible } from "../core/format";
import { Readout, useId } from "../core/parts";
import { Store } from "../core/store";
import { Attention } from "./attention";
import type { ViewProps } from "./view";

interface Node { name: string; row: number; mlp: boolean }
const ROW = 58, BOX = 20, LEFT = 52;
const SIDE: Record<string, number> = { q: -0.3, k: 0, v: 0.3 };

export function Layers({ spec, arrays, store, width }: ViewProps) {
  const { nodes, rows, sources, targets, reads, heads, valueName, rest } = spec.meta as {
    nodes: Node[]; rows: string[]; sources: number[]; targets: number[]; reads: string[]; heads: string[]; valueName: string; rest: string;
  };
  const readout = useId();
  const count = sources.length;
  const most = useSignal(Math.min(count, 60));
  const effect = (edge: number) => arrays.effects.at(0, 0, edge);
  const far = useMemo(() => Math.max(1e-12, ...sources.map((_, edge) => Math.abs(effect(edge)) || 0)), [arrays]);
  const shown = most.value;
  const { place, wide, height } = useMemo(() => {
    const across = rows.map((_, row) => nodes.map((node, at) => ({ node, at })).filter(({ node }) => node.row === row));
    const right = nodes.some((node) => node.mlp) ? 52 : 0; // MLPs have a column of their own, which no edge between heads crosses
    const wide = Math.max(width, LEFT + right + Math.max(...across.map((one) => one.length)) * 46);
    const height = rows.length * ROW + 8;
    const place: [number, number][] = [];
    across.forEach((some, row) => some.forEach(({ at }, index) => {
      const x = nodes[at].mlp ? wide - 26 : LEFT + ((index + 0.5) * (wide - LEFT - right)) / some.length;
      place[at] = [x, height - (row + 0.5) * ROW - 4];
    }));
    return { place, wide, height };
  }, [width, nodes]);
  const label = (edge: number) => `${nodes[sources[edge]].name} → ${nodes[targets[edge]].name}${reads[edge] ? "." + reads[edge] : ""}`;
  const say = (edge: number) => `${label(edge)}: ${valueName} ${number(effect(edge), arrays.effects.approx)}` + (arrays.sure ? `, chosen in ${Math.round(100 * arrays.sure.at(0, 0, edge))}% of the draws` : "");
  const text = useComputed(() => {
    const parts = [];
    if (store.hover.value) parts.push(say(store.hover.value.col));
    if (store.pinned.value) parts.push(`pinned: ${say(store.pinned.value.col)}`);
    return parts.join("\n");
  });
  const path = (edge: number) => {
    const [x0, y0] = place[sources[edge]];
    const [to, y1] = place[targets[edge]];
    const x1 = to + (SIDE[reads[edge]] ?? 0) * 34;
    const bend = Math.max(16, (y0 - y1) * 0.45);
    const aside = x0 === to && y0 - y1 > 2.5 * ROW ? Math.min(90, (y0 - y1) / 5) : 0; // straight up it would run through the nodes between
    return `M${x0},${y0 - BOX / 2}C${x0 - aside},${y0 - bend} ${x1 - aside},${y1 + bend} ${x1},${y1 + BOX / 2}`;
  };
  const current = store.current.value?.col;
  const pinned = store.pinned.value?.col;
  const touching = (at: number) => current !== undefined && (sources[current] === at || targets[current] === at);
  const joined = useMemo(() => new Set([...sources.slice(0, shown), ...targets.slice(0, shown)]), [shown]);
  const order = useMemo(() => Array.from({ length: shown }, (_, at) => shown - 1 - at), [shown]); // strongest last, on top
  const drawn = useMemo(
    () => order.map((edge) => {
      const cell = { panel: 0, row: 0, col: edge };
      return (
        <g>
          <path class={effect(edge) < 0 ? "ct-edge ct-edge-less" : "ct-edge"} d={path(edge)} stroke-width={0.6 + (5.4 * Math.abs(effect(edge))) / far} />
          <path
            class="ct-edge-hit" data-edge={edge} d={path(edge)} onPointerEnter={() => store.preview(cell)} onPointerLeave={() => store.preview(null)}
            onClick={() => store.pick(cell)}
          />
        </g>
      );
    }),
    [order, place],
  );
  return (
    <>
      <div class="ct-legend">
        <span>{valueName}, largest {number(far)}</span>
        <span class="ct-odd"><svg width="26" height="8" aria-hidden="true"><line class="ct-edge" x1="0" x2="26" y1="4" y2="4" stroke-width="4" /></svg>above 0</span>
        <span class="ct-odd"><svg width="26" height="8" aria-hidden="true"><line class="ct-edge ct-edge-less" x1="0" x2="26" y1="4" y2="4" stroke-width="4" /></svg>below 0</span>
        <span class="ct-muted">edges end at the left, middle or right of a head: its queries, keys, values</span>
        {rest && <span class="ct-muted">{rest}</span>}
      </div>
      {count > 1 && (
        <label class="ct-menu">
          strongest edges <input type="range" min="1" max={count} value={shown} onInput={(event) => (most.value = Number(event.currentTarget.value))} /> {shown} of {count}
        </label>
      )}
      <Readout id={readout} text={text} hint="Point at an edge to read it; click to see the attention patterns behind it; arrow keys move from edge to edge." />
      <div class="ct-scroll">
        <svg
          class="ct-chart ct-layers" width={wide} height={height} tabIndex={0} role="application" aria-roledescription="circuit"
          aria-label={`${spec.title}: ${count} edges`} aria-describedby={readout} onBlur={() => store.preview(null)}
          onKeyDown={(event) => store.key(event, 1, shown) && event.preventDefault()}
        >
          {rows.map((name, row) => <text class="ct-row-name" x={2} y={height - (row + 0.5) * ROW}>{visible(name, 9)}</text>)}
          {drawn}
          {current !== undefined && current < shown && <path class="ct-edge-chosen" d={path(current)} />}
          {nodes.map((node, at) => (
            <g class={touching(at) ? "ct-node ct-node-on" : joined.has(at) ? "ct-node" : "ct-node ct-node-idle"}>
              <rect x={place[at][0] - 21} y={place[at][1] - BOX / 2} width={42} height={BOX} rx={5} />
              <text x={place[at][0]} y={place[at][1] + 4} text-anchor="middle">{visible(node.name, 7)}</text>
            </g>
          ))}
        </svg>
      </div>
      {pinned !== undefined && <Behind key={pinned} edge={pinned} />}
    </>
  );

  /** The patterns of the heads at an edge's ends, the one that reads first. */
  function Behind({ edge }: { edge: number }) {
    const ends = [targets[edge], sources[edge]].map((at) => nodes[at].name);
    const planes = ends.map((name) => heads.indexOf(name)).filter((at) => at >= 0);
    const inner = useMemo(() => new Store(planes.length), []);
    if (!arrays.patterns || !planes.length) return <p class="ct-muted">Neither end of {label(edge)} is a head with a pattern here.</p>;
    const meta = { heads: planes.map((at) => heads[at]), planes, range: [0, 1], scale: "sequential", valueName: "attention", perHead: false, columns: null };
    return (
      <section aria-label={`patterns behind ${label(edge)}`}>
        <p class="ct-muted">{meta.heads.join(", ")}. {spec.meta.patternsOf}</p>
        <Attention spec={{ ...spec, title: `patterns behind ${label(edge)}`, meta }} arrays={{ patterns: arrays.patterns }} store={inner} width={width} />
      </section>
    );
  }
}
