// What is selected in a figure: one store, shared by all its linked views.

import { computed, signal } from "@preact/signals";

export interface Cell {
  panel: number; // a head, a component, one of several heat maps
  row: number;
  col: number;
}

export const same = (a: Cell | null, b: Cell | null): boolean =>
  a === b || (!!a && !!b && a.panel === b.panel && a.row === b.row && a.col === b.col);

export class Store {
  readonly panel = signal(0);
  readonly hover = signal<Cell | null>(null);
  readonly pinned = signal<Cell | null>(null);
  readonly compared = signal<Cell | null>(null);
  readonly current = computed(() => this.hover.value ?? this.pinned.value);

  constructor(readonly panels: number) {}

  preview(cell: Cell | null): void {
    if (!same(cell, this.hover.value)) this.hover.value = cell;
  }

  /** A click: pin, unpin what was pinned, or (with shift) compare with what is pinned. */
  pick(cell: Cell, compare = false): void {
    if (compare && this.pinned.value) {
      this.compared.value = same(cell, this.compared.value) ? null : cell;
    } else if (same(cell, this.pinned.value)) {
      this.clear();
    } else {
      this.pinned.value = cell;
      this.panel.value = cell.panel;
    }
  }

  clear(): void {
    this.pinned.value = this.compared.value = this.hover.value = null;
  }

  show(panel: number): void {
    if (panel < 0 || panel >= this.panels) return;
    this.panel.value = panel;
    if (this.hover.value) this.hover.value = { ...this.hover.value, panel };
    if (this.pinned.value) this.pinned.value = { ...this.pinned.value, panel };
  }

  /** A key on a grid of `rows` × `cols`; whether it meant anything. */
  key(event: KeyboardEvent, rows: number, cols: number, columns = 0): boolean {
    const at = this.current.value ?? { panel: this.panel.value, row: 0, col: 0 };
    const go = (row: number, col: number) =>
      this.preview({ ...at, row: Math.max(0, Math.min(rows - 1, row)), col: Math.max(0, Math.min(cols - 1, col)) });
    const far = event.ctrlKey || event.metaKey ? 10 : 1;
    const first = !this.current.value;
    switch (event.key) {
      case "ArrowUp": first ? go(0, 0) : go(at.row - far, at.col); break;
      case "ArrowDown": first ? go(0, 0) : go(at.row + far, at.col); break;
      case "ArrowLeft": first ? go(0, 0) : go(at.row, at.col - far); break;
      case "ArrowRight": first ? go(0, 0) : go(at.row, at.col + far); break;
      case "Home": go(at.row, 0); break;
      case "End": go(at.row, cols - 1); break;
      case "Enter": case " ": if (this.current.value) this.pick(this.current.value, event.shiftKey); break;
      case "Escape": this.clear(); break;
      case "[": this.show(this.panel.value - 1); break;
      case "]": this.show(this.panel.value + 1); break;
      case "{": this.show(this.panel.value - (columns || 1)); break;
      case "}": this.show(this.panel.value + (columns || 1)); break;
      default: return false;
    }
    return true;
  }
}
