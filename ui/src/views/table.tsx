// A table that readers can sort by any column.

import { useSignal } from "@preact/signals";
import { useMemo } from "preact/hooks";
import { number } from "../core/format";
import type { ViewProps } from "./view";

type Value = string | number;

export function TableView({ spec }: ViewProps) {
  const { columns, rows, note } = spec.meta as { columns: string[]; rows: Value[][]; note: string };
  const by = useSignal<[number, boolean] | null>(null);
  const numeric = columns.map((_, c) => rows.length > 0 && rows.every((row) => typeof row[c] === "number" || row[c] === ""));
  const sorted = useMemo(() => {
    if (!by.value) return rows;
    const [c, down] = by.value;
    const order = (a: Value, b: Value) =>
      typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b), "en", { numeric: true });
    return [...rows].sort((a, b) => (down ? order(b[c], a[c]) : order(a[c], b[c])));
  }, [by.value, rows]);
  const arrow = (c: number) => (by.value?.[0] === c ? (by.value[1] ? " ▾" : " ▴") : "");
  return (
    <>
      <div class="ct-scroll" tabIndex={0} role="group" aria-label={spec.title || "table"}>
        <table class="ct-table">
          <thead>
            <tr>
              {columns.map((name, c) => (
                <th scope="col" class={numeric[c] ? "ct-num" : ""} aria-sort={by.value?.[0] === c ? (by.value[1] ? "descending" : "ascending") : "none"}>
                  <button type="button" aria-label={name.trim() ? undefined : `sort by column ${c + 1}`} onClick={() => (by.value = by.value?.[0] === c && by.value[1] === numeric[c] ? [c, !numeric[c]] : [c, numeric[c]])}>{name}{arrow(c)}</button>
                </th>
              ))}
            </tr>
          </thead>
          <tbody>
            {sorted.map((row) => <tr>{row.map((cell, c) => <td class={numeric[c] ? "ct-num" : String(cell).length <= 28 ? "ct-short" : ""}><bdi>{typeof cell === "number" ? (Number.isInteger(cell) ? String(cell).replace("-", "−") : number(cell)) : cell}</bdi></td>)}</tr>)}
          </tbody>
        </table>
      </div>
      {note && <p class="ct-muted">{note}</p>}
    </>
  );
}
