import { expect, test } from "vitest";
import { Store } from "../src/core/store";

const cell = (row: number, col: number, panel = 0) => ({ panel, row, col });
const key = (name: string, more = {}) => ({ key: name, ctrlKey: false, metaKey: false, shiftKey: false, ...more }) as KeyboardEvent;

test("hover previews, a click pins, a second click unpins", () => {
  const store = new Store(1);
  store.preview(cell(1, 2));
  expect(store.current.value).toEqual(cell(1, 2));
  store.pick(cell(1, 2));
  store.preview(null);
  expect(store.current.value).toEqual(cell(1, 2));
  store.pick(cell(1, 2));
  expect(store.current.value).toBe(null);
});

test("shift-click compares with what is pinned, and pins where nothing is", () => {
  const store = new Store(1);
  store.pick(cell(0, 0), true);
  expect(store.pinned.value).toEqual(cell(0, 0));
  store.pick(cell(2, 2), true);
  expect([store.pinned.value, store.compared.value]).toEqual([cell(0, 0), cell(2, 2)]);
  store.key(key("Escape"), 3, 3);
  expect([store.pinned.value, store.compared.value]).toEqual([null, null]);
});

test("arrows stay inside; brackets change the head, braces the layer", () => {
  const store = new Store(6);
  store.key(key("ArrowUp"), 3, 4);
  expect(store.hover.value).toEqual(cell(0, 0));
  store.key(key("ArrowUp"), 3, 4);
  store.key(key("End"), 3, 4);
  store.key(key("ArrowRight"), 3, 4);
  expect(store.hover.value).toEqual(cell(0, 3));
  store.key(key("]"), 3, 4, 3);
  expect(store.panel.value).toBe(1);
  store.key(key("}"), 3, 4, 3);
  expect(store.panel.value).toBe(4);
  store.key(key("}"), 3, 4, 3);
  expect(store.panel.value).toBe(4);
  expect(store.hover.value).toEqual(cell(0, 3, 4));
  expect(store.key(key("q"), 3, 4)).toBe(false);
});
