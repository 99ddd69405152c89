// Small pieces of the workbench: a live figure, choices, panels.

import { useSignal } from "@preact/signals";
import type { ComponentChildren } from "preact";
import { useEffect, useMemo } from "preact/hooks";
import { Store } from "../core/store";
import { Figure, panels } from "../figure";
import { figures } from "./link";

/** A figure that is drawn anew in place whenever its place of the page gets another; its selection stays. */
export function Live({ slot, onStore, empty }: { slot: string; onStore?: (store: Store) => void | (() => void); empty?: string }) {
  const drawn = figures[slot].value;
  const count = drawn ? panels(drawn.spec, drawn.arrays) : 0;
  const view = drawn?.spec.view;
  const store = useMemo(() => new Store(Math.max(1, count)), [count, view]);
  useEffect(() => onStore?.(store), [store]);
  if (!drawn) return empty ? <p class="ct-muted">{empty}</p> : null;
  return <Figure key={`${view} ${count}`} spec={drawn.spec} arrays={drawn.arrays} store={store} />;
}

export function Panel({ title, id, children, tools }: { title: string; id: string; children: ComponentChildren; tools?: ComponentChildren }) {
  return (
    <section class="wb-panel" id={id} aria-labelledby={`${id}-title`}>
      <div class="wb-panel-head"><h2 id={`${id}-title`}>{title}</h2>{tools}</div>
      {children}
    </section>
  );
}

export function Choice<T extends string>({ label, value, options, onPick, why = {} }: {
  label: string; value: T; options: readonly (readonly [T, string])[]; onPick: (value: T) => void; why?: Partial<Record<T, string>>;
}) {
  return (
    <div class="wb-choice" role="radiogroup" aria-label={label}>
      {options.map(([name, word]) => (
        <label title={why[name] || undefined}>
          <input type="radio" name={label} checked={name === value} disabled={!!why[name]} onChange={() => onPick(name)} />
          <span>{word}</span>
        </label>
      ))}
    </div>
  );
}

export function Pick({ label, value, options, onPick }: { label: string; value: string; options: readonly (readonly [string, string])[]; onPick: (value: string) => void }) {
  return (
    <label class="ct-menu">
      {label}
      <select value={value} onChange={(event) => onPick(event.currentTarget.value)}>
        {options.map(([name, word]) => <option value={name}>{word}</option>)}
      </select>
    </label>
  );
}

/** A field whose text counts when it is left or Enter is pressed. */
export function Field({ label, value, onGive, placeholder, size = 12, hidden }: {
  label: string; value: string; onGive: (text: string) => void; placeholder?: string; size?: number; hidden?: boolean;
}) {
  const draft = useSignal<string | null>(null);
  const give = () => {
    if (draft.value !== null && draft.value !== value) onGive(draft.value);
    draft.value = null;
  };
  return (
    <label class="ct-menu">
      {!hidden && label}
      <input
        class="wb-field" type="text" aria-label={label} size={size} value={draft.value ?? value} placeholder={placeholder} spellcheck={false}
        onInput={(event) => (draft.value = event.currentTarget.value)} onBlur={give} onKeyDown={(event) => event.key === "Enter" && give()}
      />
    </label>
  );
}

/** A slider that tells every value while it moves, and the last one once more. */
export function Slider({ label, value, min, max, step, onTurn }: { label: string; value: number; min: number; max: number; step: number; onTurn: (value: number, slide: boolean) => void }) {
  return (
    <label class="ct-menu">
      <span class="wb-hidden">{label}</span>
      <input
        type="range" min={min} max={max} step={step} value={value}
        onInput={(event) => onTurn(Number(event.currentTarget.value), true)}
      />
      <span class="ct-num">{value}</span>
    </label>
  );
}
