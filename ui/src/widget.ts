// The live figure of a notebook: an anywidget module. What is pinned travels to Python and back.

import { effect } from "@preact/signals";
import { render as unmount } from "preact";
import { gunzip, parse } from "./core/decode";
import { named, unnamed } from "./core/names";
import { same } from "./core/store";
import { fail, mount } from "./figure";

interface Model {
  get(name: string): any;
  set(name: string, value: unknown): void;
  save_changes(): void;
  on(event: string, callback: () => void): void;
  off(event: string, callback: () => void): void;
}

async function render({ model, el }: { model: Model; el: HTMLElement }): Promise<() => void> {
  el.classList.add("cutaway");
  try {
    const view: DataView = model.get("data");
    const bytes = new Uint8Array(view.byteLength);
    bytes.set(new Uint8Array(view.buffer, view.byteOffset, view.byteLength));
    const { spec, arrays } = parse(await gunzip(bytes));
    const store = mount(el, spec, arrays);
    const take = () => {
      const cell = unnamed(spec, model.get("selection"));
      if (same(cell, store.pinned.peek()) || (cell && cell.panel >= store.panels)) return;
      store.pinned.value = cell;
      if (cell) store.panel.value = cell.panel;
    };
    take();
    model.on("change:selection", take);
    const stop = effect(() => {
      const cell = store.pinned.value;
      if (same(cell, unnamed(spec, model.get("selection")))) return;
      model.set("selection", named(spec, cell));
      model.save_changes();
    });
    return () => {
      stop();
      model.off("change:selection", take);
      unmount(null, el);
    };
  } catch (error) {
    fail(el, error instanceof Error ? error.message : String(error));
    return () => unmount(null, el);
  }
}

export default { render };
