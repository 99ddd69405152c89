// The line to the server: messages out, messages and figures in, in order. Lost lines are taken up again.

import { signal } from "@preact/signals";
import { gunzip, parse, type Data, type Spec } from "../core/decode";

export interface Place { layer: number | null; head: number | null; position: number | null }
export type How = "zero" | "mean" | "resample" | "patch" | "scale";
export type Switch = { kind: string; how?: How; factor?: number; layer?: number; head?: number; position?: number | null; writer?: string; reader?: string; query?: number; key?: number; plus?: string; minus?: string };
export type Side = "clean" | "corrupted";
export interface State {
  clean: string | number[]; corrupted: string | number[]; chat: boolean; at: number; right: string | number | null; wrong: string | number | null;
  metric: string; side: Side; switches: Switch[]; roles: Record<string, number>; selected: Place; pins: [number, number][];
  colour: string; source: string; query: string; how: How; attention: string; words: number;
}
export interface About { name: string; layers: number; heads: number; mlp: boolean; context: number; behaviours: { name: string; count: number }[]; chat: boolean; kinds: string[]; text: boolean }
export interface Step { label: string; value: number | null }
export interface Session {
  turn: number; state: State; words: Partial<Record<Side, string[]>>; why: string; differ: number[]; at: number; steps: Step[]; step: number;
  labels: string[]; sources: string[]; texts: Record<Side, string>;
}
export interface Value { turn: number; before: number; after: number; other: number | null; metric: string; unit: string; right: string; wrong: string; switched: boolean; start: number }
export interface Answer { title: string; unit: string; note: string; rows: { label: string; value: number; switch: Switch | null }[] }
export interface Drawn { spec: Spec; arrays: Record<string, Data> }

export const about = signal<About | null>(null);
export const session = signal<Session | null>(null);
export const value = signal<Value | null>(null);
export const text = signal<{ before?: string; after?: string; done: boolean } | null>(null);
export const answer = signal<Answer | null>(null);
export const progress = signal<number | null>(null);
export const notices = signal<{ id: number; text: string; bad: boolean }[]>([]);
export const trouble = signal("connecting…"); // what is wrong with the line; empty: nothing
export const figures: Record<string, ReturnType<typeof signal<Drawn | null>>> = {};
for (const slot of ["map", "next", "attention", "lens", "answer", "peek"]) figures[slot] = signal<Drawn | null>(null);

let socket: WebSocket | null = null;
let wait = 500;
let ids = 0;
let order: Promise<void> = Promise.resolve();

const token = (): string => {
  const given = new URLSearchParams(location.search).get("token");
  if (given) {
    sessionStorage.setItem("cutaway-token", given);
    history.replaceState(null, "", location.pathname + location.hash);
  }
  return given ?? sessionStorage.getItem("cutaway-token") ?? "";
};

const remembered = (): unknown => {
  try {
    return location.hash.length > 1 ? JSON.parse(decodeURIComponent(location.hash.slice(1))) : null;
  } catch {
    return null;
  }
};

export function say(words: string, bad = false): void {
  const id = ++ids;
  notices.value = [...notices.value.slice(-3), { id, text: words, bad }];
  setTimeout(() => dismiss(id), bad ? 20000 : 12000);
}

export const dismiss = (id: number): void => void (notices.value = notices.value.filter((one) => one.id !== id));

export function send(message: object): void {
  if (socket?.readyState === WebSocket.OPEN) socket.send(JSON.stringify(message));
}

export const set = (fields: Partial<State>, slide = false): void => send({ do: "set", fields, slide });

function download(name: string, type: string, content: string): void {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([content], { type }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

async function copy(content: string, name: string, type: string): Promise<void> {
  try {
    await navigator.clipboard.writeText(content);
    say("The code is in the clipboard.");
  } catch {
    download(name, type, content);
  }
}

function take(message: any): void {
  switch (message.kind) {
    case "about": about.value = message; document.title = `${message.name} · cutaway workbench`; break;
    case "state":
      session.value = message;
      history.replaceState(null, "", "#" + encodeURIComponent(JSON.stringify(message.state)));
      break;
    case "steps": if (session.value) session.value = { ...session.value, steps: message.steps }; break;
    case "value": value.value = message; break;
    case "text": text.value = message; break;
    case "answer": answer.value = message; break;
    case "progress": progress.value = message.done; break;
    case "gone": figures[message.slot].value = null; break;
    case "drawn": document.documentElement.dataset.turn = String(message.turn); break;
    case "notice": say(message.text); break;
    case "error": say(message.text, true); break;
    case "file": void (message.copy ? copy(message.text, message.name, message.type) : download(message.name, message.type, message.text)); break;
  }
}

async function receive(data: string | ArrayBuffer): Promise<void> {
  if (typeof data === "string") return take(JSON.parse(data));
  const { spec, arrays } = parse(await gunzip(new Uint8Array(data)));
  const slot = figures[spec.meta.slot];
  if (slot && !(slot.peek() && slot.peek()!.spec.meta.turn > spec.meta.turn)) slot.value = { spec, arrays };
}

export function connect(): void {
  const secret = token();
  const line = (socket = new WebSocket(`ws://${location.host}/socket`));
  line.binaryType = "arraybuffer";
  line.onopen = () => {
    line.send(JSON.stringify({ do: "hello", token: secret, state: session.value ? session.value.state : remembered() }));
    trouble.value = "";
    wait = 500;
    for (const slot of Object.values(figures)) slot.value = null; // turns begin anew with a new server
    progress.value = null;
  };
  line.onmessage = (event) => {
    order = order.then(() => receive(event.data)).catch((error) => say(`a message could not be read: ${error}`, true));
  };
  line.onclose = (event) => {
    if (line !== socket) return;
    if (event.code === 4403) {
      trouble.value = "This page may not talk to the workbench: open the address that the terminal printed, with its token.";
      return;
    }
    trouble.value = event.code === 4429 ? "Too many messages or tabs; waiting…" : "The workbench does not answer; trying again…";
    setTimeout(connect, wait);
    wait = Math.min(5000, wait * 1.6);
  };
}
