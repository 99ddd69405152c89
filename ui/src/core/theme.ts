// Dark or light: what the reader chose on this page, else what the system says.

import { computed, signal } from "@preact/signals";
import type { Theme } from "./color";

const system = typeof matchMedia === "function" ? matchMedia("(prefers-color-scheme: dark)") : null;
const dark = signal(system?.matches ?? false);
system?.addEventListener("change", (event) => (dark.value = event.matches));
const chosen = signal<Theme | null>(null);

export const theme = computed<Theme>(() => chosen.value ?? (dark.value ? "dark" : "light"));

export function choose(name: Theme): void {
  chosen.value = name;
  document.documentElement.dataset.theme = name;
}
