// What the three coordinates of a selection are called in each view, for those who read it from outside.

import type { Spec } from "./decode";
import type { Cell } from "./store";

const NAMES: Record<string, [string, string, string]> = {
  attention: ["head", "dest", "src"],
  attribution: ["component", "answer", "position"],
  headtypes: ["", "layer", "head"],
  layers: ["", "", "edge"],
  lines: ["", "", "point"],
  bars: ["", "", "group"],
  logprobs: ["", "", "position"],
  tokens: ["text", "", "position"],
};

export type Named = Record<string, number>;

/** A cell in the words of its view; heads of a gallery are a layer and a head, a single answer has components as rows. */
export function named(spec: Spec, cell: Cell | null): Named | null {
  if (!cell) return null;
  if (spec.view === "attention" && spec.meta.columns) {
    const columns: number = spec.meta.columns;
    return { layer: Math.floor(cell.panel / columns), head: cell.panel % columns, dest: cell.row, src: cell.col };
  }
  if (spec.view === "attribution") {
    const extra = extraMaps(spec);
    if (extra === null) return { component: cell.row, position: cell.col };
    return { component: cell.panel - extra, answer: cell.row, position: cell.col };
  }
  const [panel, row, col] = NAMES[spec.view] ?? ["panel", "row", "column"];
  const out: Named = {};
  if (panel) out[panel] = cell.panel;
  if (row) out[row] = cell.row;
  if (col) out[col] = cell.col;
  return out;
}

/** The cell that such words name; what is not named is 0. */
export function unnamed(spec: Spec, words: Named | null): Cell | null {
  if (!words) return null;
  const at = (name: string) => words[name] ?? 0;
  if (spec.view === "attention" && spec.meta.columns)
    return { panel: at("layer") * spec.meta.columns + at("head"), row: at("dest"), col: at("src") };
  if (spec.view === "attribution") {
    const extra = extraMaps(spec);
    if (extra === null) return { panel: 0, row: at("component"), col: at("position") };
    return { panel: at("component") + extra, row: at("answer"), col: at("position") };
  }
  const [panel, row, col] = NAMES[spec.view] ?? ["panel", "row", "column"];
  return { panel: at(panel), row: at(row), col: at(col) };
}

/** How many maps (the sum, what is left over) stand before the components; null where there is one map of all. */
function extraMaps(spec: Spec): number | null {
  return spec.meta.answers.length === 1 ? null : spec.meta.hasTotal ? 2 : 1;
}
