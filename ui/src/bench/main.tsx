// The workbench: a page where a model is taken apart by hand. Everything it shows follows the server's state.

import { effect, signal, useSignal } from "@preact/signals";
import { render } from "preact";
import { number, signed, visible } from "../core/format";
import type { Cell, Store } from "../core/store";
import { choose, theme } from "../core/theme";
import { about, answer, connect, dismiss, figures, notices, progress, send, session, set, text, trouble, value, type How, type Side, type State, type Switch } from "./link";
import { Choice, Field, Live, Panel, Pick, Slider } from "./parts";

const mode = signal<"select" | "switch">("select");
const how = signal<How>("zero");
const factor = signal(0.5);
const only = signal(false); // switches act at the selected position only
const edge = signal({ writer: "embed", reader: "logits" });
const steer = signal({ layer: 0, plus: " love", minus: " hate", factor: 1 });
const name = signal("experiment");
const cell = signal<Cell | null>(null); // of the attention, pinned

const HOWS: readonly (readonly [How, string])[] = [["zero", "zero"], ["mean", "mean"], ["resample", "resample"], ["patch", "patch"], ["scale", "scale"]];
const HOW_WORDS = "zero: nothing; mean: its mean over positions; resample: the other prompt's, at random positions; patch: the other prompt's, position by position; scale: times a number";

const state = (): State => session.value!.state;
const same = (a: Switch, b: Switch): boolean =>
  a.kind === b.kind && a.layer === b.layer && a.head === b.head && (a.position ?? null) === (b.position ?? null) &&
  a.writer === b.writer && a.reader === b.reader && a.query === b.query && a.key === b.key && a.plus === b.plus && a.minus === b.minus;

const switched = (one: Switch): boolean => state().switches.some((other) => same(one, other));

/** The switches with one of them flipped. */
const flipped = (one: Switch): Switch[] =>
  switched(one) ? state().switches.filter((other) => !same(one, other)) : [...state().switches, one];

function withHow(one: Switch): Switch {
  return { ...one, how: how.value, factor: how.value === "scale" ? factor.value : 0 };
}

/** The switch of what is selected, if something is. */
function ofSelection(): Switch | null {
  const { layer, head, position } = state().selected;
  const at = only.value ? position : null;
  if (layer !== null && head !== null) return withHow({ kind: "head", layer, head, position: at });
  if (layer !== null) return withHow({ kind: "mlp", layer, position: at });
  return position === null ? null : withHow({ kind: "position", position, layer: 0 });
}

const flip = (one: Switch): void => set({ switches: flipped(one) });

/** A cell of the map was picked: select its head or MLP, and switch it where clicks do. */
function pickCell(at: Cell | null, last: Cell | null): void {
  const { heads } = about.value!;
  const target = at ?? (mode.value === "switch" ? last : null);
  if (!target) return set({ selected: { ...state().selected, layer: null, head: null } });
  const layer = target.col;
  const head = target.row < heads ? target.row : null;
  const fields: Partial<State> = { selected: { ...state().selected, layer, head } };
  if (head !== null && !state().pins.some(([l, h]) => l === layer && h === head)) fields.pins = [[layer, head]];
  if (mode.value === "switch") fields.switches = flipped(withHow(head === null ? { kind: "mlp", layer, position: null } : { kind: "head", layer, head, position: null }));
  set(fields);
}

let peeking = 0;
let peeked: number | undefined;

/** The map and the selection follow each other; hovering shows a head's attention for a moment. */
function followMap(store: Store): () => void {
  let last: Cell | null = null;
  let quiet = true; // the first run only reads
  const stops = [
    effect(() => {
      const pinned = store.pinned.value;
      if (!quiet && pinned !== last) pickCell(pinned, last);
      last = pinned;
      quiet = false;
    }),
    effect(() => {
      const hovered = store.hover.value;
      clearTimeout(peeked);
      if (!hovered || hovered.row >= (about.value?.heads ?? 0)) return void (figures.peek.value = null);
      peeked = setTimeout(() => {
        if (Date.now() - peeking < 80) return;
        peeking = Date.now();
        send({ do: "peek", layer: hovered.col, head: hovered.row });
      }, 120) as unknown as number;
    }),
    effect(() => {
      const chosen = session.value?.state.selected;
      if (!chosen || !about.value) return;
      const row = chosen.head ?? about.value.heads;
      const pinned = store.pinned.peek();
      if (chosen.layer === null ? pinned === null : pinned?.row === row && pinned.col === chosen.layer) return;
      last = chosen.layer === null ? null : { panel: 0, row, col: chosen.layer };
      store.pinned.value = last;
    }),
  ];
  return () => stops.forEach((stop) => stop());
}

const followAttention = (store: Store): (() => void) => effect(() => void (cell.value = store.pinned.value));

// The page, from top to bottom.

function Head() {
  const known = about.value;
  return (
    <header class="wb-head">
      <h1>cutaway <span class="ct-muted">workbench</span></h1>
      <p class="ct-muted">{known && <><b class="wb-model"><bdi>{visible(known.name, 60)}</bdi></b> · {known.layers} layers × {known.heads} heads{known.mlp ? " and MLPs" : ""}</>}</p>
      <button type="button" class="ct-theme" aria-label="dark or light" title="dark or light" onClick={() => choose(theme.peek() === "dark" ? "light" : "dark")}>◐</button>
    </header>
  );
}

function Notices() {
  return (
    <div class="wb-notices" role="status" aria-live="polite">
      {trouble.value && <p class="wb-notice wb-bad">{trouble.value}</p>}
      {notices.value.map(({ id, text: words, bad }) => (
        <p class={bad ? "wb-notice wb-bad" : "wb-notice"} key={id}><bdi>{words}</bdi> <button type="button" aria-label="close this message" onClick={() => dismiss(id)}>×</button></p>
      ))}
    </div>
  );
}

function PromptCard({ side }: { side: Side }) {
  const { state: now, words, differ, texts } = session.value!;
  const runs = now.side === side;
  const tokens = words[side] ?? [];
  const roleAt = (at: number) => Object.entries(now.roles).filter(([, place]) => place === at).map(([role]) => role).join(" ");
  const draft = useSignal<string | null>(null);
  const give = () => {
    if (draft.value !== null && draft.value !== texts[side]) set({ [side]: draft.value });
    draft.value = null;
  };
  return (
    <div class={runs ? "wb-card wb-runs" : "wb-card"}>
      <div class="wb-card-head">
        <label><input type="radio" name="which prompt runs" checked={runs} disabled={!tokens.length} onChange={() => set({ side })} /> <b>{side}</b> <span class="ct-muted">{runs ? "runs with the switches" : "gives values to patch"}</span></label>
        <span class="ct-muted ct-num">{tokens.length} tokens</span>
      </div>
      <textarea
        rows={2} value={draft.value ?? texts[side]} aria-label={`text of the ${side} prompt`} spellcheck={false} disabled={!about.value?.text}
        placeholder={side === "corrupted" ? "another text, to compare with and to patch from" : "a text"}
        onInput={(event) => (draft.value = event.currentTarget.value)} onBlur={give}
        onKeyDown={(event) => { if (event.key === "Enter" && !event.shiftKey) { event.preventDefault(); give(); } }}
      />
      <div class="wb-tokens" role="group" aria-label={`tokens of the ${side} prompt`}>
        {tokens.map((token, at) => (
          <button
            type="button" aria-pressed={now.selected.position === at}
            class={"wb-token" + (differ.includes(at) ? " wb-differs" : "") + (now.selected.position === at ? " ct-on" : "") + (runs && at === session.value!.at ? " wb-asked" : "")}
            title={`position ${at}${roleAt(at) ? ` (${roleAt(at)})` : ""}`}
            onClick={() => set({ selected: { ...now.selected, position: now.selected.position === at ? null : at } })}
          ><bdi>{visible(token, 40)}</bdi><small>{roleAt(at) || at}{differ.includes(at) && <span class="wb-hidden">, differs</span>}</small></button>
        ))}
      </div>
    </div>
  );
}

function Prompts() {
  const { state: now, why } = session.value!;
  const known = about.value!;
  const word = (given: string | number | null, shown?: string) => (given === null ? "" : typeof given === "string" ? given : shown ?? `#${given}`);
  const given = (words: string) => (words === "" ? null : /^#\d+$/.test(words) ? Number(words.slice(1)) : words);
  return (
    <Panel
      id="prompts" title="Prompts"
      tools={
        <div class="ct-tools">
          {known.behaviours.length > 0 && <Examples />}
          {known.chat && <label class="ct-menu"><input type="checkbox" checked={now.chat} onChange={() => set({ chat: !now.chat })} /> chat template</label>}
        </div>
      }
    >
      <div class="wb-pair"><PromptCard side="clean" /><PromptCard side="corrupted" /></div>
      {why && (session.value!.words.corrupted?.length ?? 0) > 0 && <p class="wb-why">{why}</p>}
      <div class="ct-tools">
        <Field label="answer" value={word(now.right, value.value?.right)} placeholder={value.value ? `${visible(value.value.right, 20)} (automatic)` : ""} onGive={(words) => set({ right: given(words) })} />
        <Field label="compared with" value={word(now.wrong, value.value?.wrong)} placeholder={value.value ? `${visible(value.value.wrong, 20)} (automatic)` : ""} onGive={(words) => set({ wrong: given(words) })} />
        <Pick label="metric" value={now.metric} options={[["logit difference", "logit difference"], ["log-probability", "log-probability of the answer"], ["probability", "probability of the answer"], ["KL", "KL from the clean run"]]} onPick={(metric) => set({ metric })} />
      </div>
    </Panel>
  );
}

const example = signal<{ name: string; number: number } | null>(null);

function Examples() {
  const known = about.value!.behaviours;
  const now = example.value ?? { name: known[0].name, number: 0 };
  const count = known.find((one) => one.name === now.name)?.count ?? 1;
  const go = (next: { name: string; number: number }) => {
    example.value = next;
    send({ do: "example", behaviour: next.name, number: next.number });
  };
  return (
    <>
      <Pick label="example of" value={now.name} options={known.map((one) => [one.name, one.name] as const)} onPick={(picked) => go({ name: picked, number: 0 })} />
      <span class="ct-menu">
        <button type="button" aria-label="example before" disabled={now.number <= 0} onClick={() => go({ ...now, number: now.number - 1 })}>‹</button>
        <span class="ct-num">{now.number + 1} of {count}</span>
        <button type="button" aria-label="next example" disabled={now.number + 1 >= count} onClick={() => go({ ...now, number: now.number + 1 })}>›</button>
      </span>
    </>
  );
}

function MapPanel() {
  const { state: now, sources } = session.value!;
  return (
    <Panel id="map" title="The model" tools={<Choice label="a click" value={mode.value} options={[["select", "click selects"], ["switch", "click switches off"]]} onPick={(to) => (mode.value = to)} />}>
      <div class="ct-tools">
        <Pick label="colour" value={now.colour} options={[["direct", "direct effect on the answer"], ["attention", "attention to…"], ["change", "change between the prompts"], ["ablation", "exact effect of switching off"]]} onPick={(colour) => set({ colour })} />
        {now.colour === "attention" && (
          <>
            <Pick label="to" value={now.source} options={sources.map((one) => [one, one] as const)} onPick={(source) => set({ source })} />
            <Pick label="from" value={now.query} options={[["end", "the end"], ["every", "every token"]]} onPick={(query) => set({ query })} />
          </>
        )}
        {now.colour === "ablation" && <button type="button" class="wb-button" onClick={() => send({ do: "ask", what: "strongest" })}>compute it for all</button>}
      </div>
      <Live slot="map" onStore={followMap} empty="…" />
    </Panel>
  );
}

function nameOf(): string {
  const { layer, head, position } = state().selected;
  const at = position === null ? "" : ` · position ${position}`;
  if (layer === null) return position === null ? "nothing selected" : `position ${position}`;
  return (head === null ? `MLP ${layer}` : `head ${layer}.${head}`) + at;
}

function Selected() {
  const { state: now, why } = session.value!;
  const one = ofSelection();
  const on = one !== null && switched(one);
  const both = (session.value!.words.corrupted?.length ?? 0) > 0 && (session.value!.words.clean?.length ?? 0) > 0;
  const reasons: Partial<Record<How, string>> = { patch: both ? why : "there is one prompt only", resample: both ? "" : "there is one prompt only" };
  const isHead = now.selected.layer !== null && now.selected.head !== null;
  const pinned = now.pins.some(([l, h]) => l === now.selected.layer && h === now.selected.head);
  return (
    <Panel id="selected" title={nameOf()}>
      <div class="ct-tools" title={HOW_WORDS}>
        <Choice label="what takes its place" value={how.value} options={HOWS} onPick={(to) => (how.value = to)} why={reasons} />
        {how.value === "scale" && <Field label="times" size={5} value={String(factor.value)} onGive={(words) => (factor.value = Number(words) || 0)} />}
      </div>
      <div class="ct-tools">
        <button type="button" class="wb-button wb-main" disabled={!one} onClick={() => one && flip(one)}>{on ? "switch back on" : "switch off"}</button>
        {now.selected.layer !== null && now.selected.position !== null && (
          <label class="ct-menu"><input type="checkbox" checked={only.value} onChange={() => (only.value = !only.value)} /> only at position {now.selected.position}</label>
        )}
        {isHead && (
          <button type="button" class="wb-button" onClick={() => set({ pins: pinned ? now.pins.filter(([l, h]) => !(l === now.selected.layer && h === now.selected.head)) : [...now.pins.slice(-7), [now.selected.layer!, now.selected.head!]] })}>{pinned ? "unpin" : "pin beside others"}</button>
        )}
      </div>
      {Object.values(reasons).some(Boolean) && <p class="ct-muted">{reasons.patch}</p>}
      <details class="wb-more">
        <summary>an edge, or a steering vector</summary>
        <div class="ct-tools">
          <Field label="from writer" size={8} value={edge.value.writer} onGive={(writer) => (edge.value = { ...edge.value, writer })} />
          <Field label="to reader" size={8} value={edge.value.reader} onGive={(reader) => (edge.value = { ...edge.value, reader })} />
          <button type="button" class="wb-button" onClick={() => flip(withHow({ kind: "edge", ...edge.value }))}>switch the edge</button>
          <span class="ct-muted">writers: embed, 3.1, 3.mlp; readers: 5.2.q, 5.2.k, 5.2.v, 5.mlp, logits</span>
        </div>
        <div class="ct-tools">
          <Field label="steer towards" size={10} value={steer.value.plus} onGive={(plus) => (steer.value = { ...steer.value, plus })} />
          <Field label="away from" size={10} value={steer.value.minus} onGive={(minus) => (steer.value = { ...steer.value, minus })} />
          <Field label="before layer" size={4} value={String(steer.value.layer)} onGive={(words) => (steer.value = { ...steer.value, layer: Math.max(0, Math.round(Number(words) || 0)) })} />
          <button type="button" class="wb-button" disabled={!about.value?.text} onClick={() => flip({ kind: "steer", ...steer.value })}>steer</button>
        </div>
      </details>
    </Panel>
  );
}

function Switches() {
  const { state: now, labels } = session.value!;
  const turn = (at: number, to: number, slide: boolean) => set({ switches: now.switches.map((one, i) => (i === at ? { ...one, factor: to } : one)) }, slide);
  return (
    <Panel id="switches" title={`Switches (${now.switches.length})`} tools={now.switches.length > 0 && <button type="button" class="wb-button" onClick={() => set({ switches: [] })}>all back on</button>}>
      {now.switches.length === 0 && <p class="ct-muted">None: the model runs as it is.</p>}
      <ul class="wb-chips">
        {now.switches.map((one, at) => (
          <li class="wb-chip">
            <bdi>{visible(labels[at] ?? "", 120)}</bdi>
            {(one.kind === "steer" || one.how === "scale") && <Slider label={`strength of ${labels[at]}`} value={one.factor ?? 0} min={one.kind === "steer" ? -8 : -2} max={one.kind === "steer" ? 8 : 4} step={0.25} onTurn={(to, slide) => turn(at, to, slide)} />}
            <button type="button" aria-label={`switch back on: ${labels[at]}`} onClick={() => set({ switches: now.switches.filter((_, i) => i !== at) })}>×</button>
          </li>
        ))}
      </ul>
    </Panel>
  );
}

function Changed() {
  const now = value.value;
  const words = state().words;
  return (
    <Panel id="changed" title="What changed" tools={now && now.switched ? <span class="ct-muted">recomputed from layer {now.start}</span> : undefined}>
      {now && (
        <div class="wb-value" aria-live="polite">
          <span class="ct-muted"><bdi>{now.metric}</bdi>{now.metric === "logit difference" && <>: <bdi class="ct-mono">{visible(now.right, 30)}</bdi> over <bdi class="ct-mono">{visible(now.wrong, 30)}</bdi></>}</span>
          <div class="wb-numbers">
            <span class="wb-big ct-num" id="after">{number(now.after)}</span>
            {now.switched && <span class="ct-num wb-delta">{signed(now.after - now.before)} <span class="ct-muted">from {number(now.before)}</span></span>}
            {now.other !== null && <span class="ct-muted ct-num">other prompt: {number(now.other)}</span>}
          </div>
        </div>
      )}
      <Live slot="next" empty="…" />
      <div class="ct-tools">
        <label class="ct-menu"><input type="checkbox" checked={words > 0} disabled={!about.value?.text} onChange={() => set({ words: words ? 0 : 20 })} /> generate text</label>
        {words > 0 && <Field label="tokens" size={4} value={String(words)} onGive={(given) => set({ words: Math.max(1, Math.min(100, Math.round(Number(given) || 20))) })} />}
      </div>
      {words > 0 && text.value && (
        <dl class="wb-texts">
          {now?.switched && <><dt>with switches</dt><dd><bdi>{text.value.after}</bdi></dd></>}
          <dt>{now?.switched ? "without" : "goes on"}</dt><dd><bdi>{now?.switched ? text.value.before : text.value.after}</bdi></dd>
        </dl>
      )}
    </Panel>
  );
}

function Attention() {
  const { state: now } = session.value!;
  const peek = figures.peek.value;
  const at = cell.value;
  const pin = at && now.pins[at.panel];
  return (
    <Panel id="attention" title="Attention" tools={now.pins.length > 0 && <Choice label="which attention" value={now.attention} options={[["now", "with switches"], ["clean", "without"], ["change", "change"]]} onPick={(attention) => set({ attention })} />}>
      {!now.pins.length && !peek && <p class="ct-muted">Point at a head of the map to see its attention; click to keep it.</p>}
      {peek && <div class="wb-peek" aria-hidden="true"><Live slot="peek" /></div>}
      <div style={peek ? { display: "none" } : undefined}><Live slot="attention" onStore={followAttention} /></div>
      {pin && !peek && (
        <div class="ct-tools">
          <button type="button" class="wb-button" onClick={() => (set({ selected: { ...now.selected, layer: pin[0], head: pin[1] } }), send({ do: "ask", what: "look", query: at!.row, key: at!.col }))}>why did {pin[0]}.{pin[1]} look from {at!.row} to {at!.col}?</button>
          <button type="button" class="wb-button" onClick={() => flip({ kind: "look", layer: pin[0], head: pin[1], query: at!.row, key: at!.col })}>cut this look</button>
        </div>
      )}
    </Panel>
  );
}

const Lens = () => (
  <Panel id="lens" title="Logit lens at the answer"><div class="wb-lens"><Live slot="lens" empty="…" /></div></Panel>
);

function Ask() {
  const found = answer.value;
  const most = found ? Math.max(1e-12, ...found.rows.map((row) => Math.abs(row.value))) : 1;
  const busy = progress.value !== null;
  return (
    <Panel id="ask" title="Ask">
      <div class="ct-tools">
        <button type="button" class="wb-button" disabled={busy} onClick={() => send({ do: "ask", what: "strongest" })}>which single switch moves the answer most?</button>
        <button type="button" class="wb-button" disabled={busy} onClick={() => send({ do: "ask", what: "writers" })}>who writes {state().selected.layer === null ? "the answer" : `what ${nameOf().split(" ·")[0]} reads`}?</button>
        <button type="button" class="wb-button" disabled={busy || !!session.value!.why} title={session.value!.why || undefined} onClick={() => send({ do: "ask", what: "edges" })}>which edges matter?</button>
        <Pick label="switches by" value={state().how} options={HOWS.slice(0, 4)} onPick={(to) => set({ how: to as How })} />
      </div>
      {busy && (
        <div class="ct-tools"><progress max={1} value={progress.value || undefined} aria-label="how far the answer is" /> <button type="button" class="wb-button" onClick={() => send({ do: "stop" })}>stop</button></div>
      )}
      {found && (
        <>
          <h3><bdi>{visible(found.title, 200)}</bdi> <span class="ct-muted">({found.unit})</span></h3>
          <Live slot="answer" />
          <div class="wb-rows" tabIndex={0} role="group" aria-label="answer">
            {found.rows.map((row) => (
              <div class="wb-row">
                <bdi class="ct-mono">{visible(row.label, 60)}</bdi>
                <span class="wb-track" aria-hidden="true"><i class={row.value < 0 ? "wb-minus" : ""} style={{ width: `${(50 * Math.abs(row.value)) / most}%` }} /></span>
                <span class="ct-num">{signed(row.value)}</span>
                {row.switch ? <button type="button" class="wb-button" aria-label={`switch ${row.label}`} aria-pressed={switched(row.switch)} onClick={() => flip(row.switch!)}>{switched(row.switch) ? "on again" : "switch"}</button> : <span />}
              </div>
            ))}
          </div>
          <p class="ct-muted"><bdi>{found.note}</bdi></p>
        </>
      )}
    </Panel>
  );
}

const NEWEST = 60; // steps that the list shows at first: each click draws the list anew
const every = signal(false);

function Steps() {
  const { steps, step } = session.value!;
  const first = every.value ? 0 : Math.max(0, Math.min(steps.length - NEWEST, step));
  return (
    <Panel
      id="steps" title={`Steps (${steps.length})`}
      tools={
        <div class="ct-tools">
          <button type="button" class="wb-button" disabled={step <= 0} onClick={() => send({ do: "step", to: step - 1 })}>undo</button>
          <button type="button" class="wb-button" disabled={step + 1 >= steps.length} onClick={() => send({ do: "step", to: step + 1 })}>redo</button>
        </div>
      }
    >
      {first > 0 && <button type="button" class="wb-button" onClick={() => (every.value = true)}>show the {first} before</button>}
      <ol class="wb-steps" start={first} tabIndex={0} aria-label="steps">
        {steps.slice(first).map((one, n) => (
          <li><button type="button" aria-current={first + n === step ? "step" : undefined} onClick={() => send({ do: "step", to: first + n })}><bdi>{visible(one.label, 100)}</bdi><span class="ct-num">{one.value === null ? "" : number(one.value)}</span></button></li>
        ))}
      </ol>
      <div class="ct-tools">
        <Field label="name" size={14} value={name.value} onGive={(words) => (name.value = words.replace(/[^A-Za-z0-9_-]+/g, "-").replace(/^[-_]+/, "").slice(0, 60) || "experiment")} />
        <button type="button" class="wb-button" onClick={() => send({ do: "save", what: "record", name: name.value })}>save the record</button>
        <button type="button" class="wb-button" onClick={() => send({ do: "save", what: "python", name: name.value })}>copy as Python</button>
        <button type="button" class="wb-button" onClick={() => send({ do: "save", what: "page", name: name.value })}>save the page</button>
      </div>
    </Panel>
  );
}

function Bench() {
  if (!session.value || !about.value) return <><Head /><Notices /></>;
  return (
    <>
      <Head />
      <Notices />
      <main class="wb-main-grid">
        <Prompts />
        <div class="wb-column"><MapPanel /><Selected /><Switches /><Ask /><Steps /></div>
        <div class="wb-column"><Changed /><Attention /><Lens /></div>
      </main>
    </>
  );
}

render(<Bench />, document.getElementById("bench")!);
connect();
