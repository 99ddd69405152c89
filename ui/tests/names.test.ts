import { expect, test } from "vitest";
import { named, unnamed } from "../src/core/names";
import type { Spec } from "../src/core/decode";

const spec = (view: string, meta: object = {}) => ({ view, meta }) as Spec;

test("a selection in the words of its view, and back", () => {
  const cell = { panel: 5, row: 2, col: 1 };
  const cases: [Spec, object][] = [
    [spec("attention"), { head: 5, dest: 2, src: 1 }],
    [spec("attention", { columns: 4 }), { layer: 1, head: 1, dest: 2, src: 1 }],
    [spec("attribution", { answers: ["a", "b"], hasTotal: true }), { component: 3, answer: 2, position: 1 }],
    [spec("attribution", { answers: ["a", "b"], hasTotal: false }), { component: 4, answer: 2, position: 1 }],
    [spec("grid"), { panel: 5, row: 2, column: 1 }],
  ];
  for (const [one, words] of cases) {
    expect(named(one, cell)).toEqual(words);
    expect(unnamed(one, words as Record<string, number>)).toEqual(cell);
  }
  expect(named(spec("attribution", { answers: ["a"] }), { panel: 0, row: 2, col: 1 })).toEqual({ component: 2, position: 1 });
  expect(named(spec("lines"), { panel: 0, row: 0, col: 3 })).toEqual({ point: 3 });
  expect(unnamed(spec("tokens"), { position: 4 })).toEqual({ panel: 0, row: 0, col: 4 });
  expect([named(spec("grid"), null), unnamed(spec("grid"), null)]).toEqual([null, null]);
});
