// The wire format (see wire.py): gzip → magic, header length, JSON header, bytes. Arrays stay as small as they came.

export interface Entry {
  dtype: "f32" | "f16" | "u8" | "i32";
  shape: number[];
  layout: "full" | "tril";
  offset: number;
  length: number;
  levels?: number[];
}

export interface Spec {
  v: number;
  view: string;
  title: string;
  tokens: string[];
  meta: any;
  text: string;
  height: number;
}

/** One array. Values are dequantised when they are asked for; `codes` is set for 8-bit arrays. */
export class Data {
  readonly approx: boolean;
  readonly codes: Uint8Array | null;
  private readonly levels: Float64Array;
  private readonly flat: Float32Array | Int32Array | Uint8Array;
  private readonly planeSize: number;

  constructor(
    readonly shape: number[],
    readonly tril: boolean,
    bytes: Uint8Array,
    entry: Entry,
  ) {
    this.approx = entry.dtype === "u8" || entry.dtype === "f16";
    this.levels = new Float64Array([...(entry.levels ?? []), NaN, Infinity, -Infinity]);
    const size = bytes.length / (entry.dtype === "u8" ? 1 : entry.dtype === "f16" ? 2 : 4);
    if (entry.dtype === "u8") this.flat = bytes;
    else if (entry.dtype === "f16") this.flat = halfs(new Uint16Array(bytes.buffer, bytes.byteOffset, size));
    else if (entry.dtype === "i32") this.flat = new Int32Array(bytes.buffer, bytes.byteOffset, size);
    else this.flat = new Float32Array(bytes.buffer, bytes.byteOffset, size);
    this.codes = entry.dtype === "u8" ? bytes : null;
    const n = shape[shape.length - 1] ?? 1;
    this.planeSize = tril ? (n * (n + 1)) / 2 : n * (shape[shape.length - 2] ?? 1);
  }

  /** Where a cell of a plane (the last two axes) is stored; −1 above the diagonal of a triangle. */
  index(plane: number, row: number, col: number): number {
    if (this.tril) return col > row ? -1 : plane * this.planeSize + (row * (row + 1)) / 2 + col;
    return plane * this.planeSize + row * this.shape[this.shape.length - 1] + col;
  }

  /** The value stored at a place. */
  stored(index: number): number {
    const value = this.flat[index];
    return this.codes ? this.levels[value] : value;
  }

  /** The value of a cell of a plane. */
  at(plane: number, row: number, col: number): number {
    const index = this.index(plane, row, col);
    return index < 0 ? 0 : this.stored(index);
  }

  get count(): number {
    return this.flat.length;
  }
}

/** A matrix to look at: the last two axes of an array. */
export class Plane {
  readonly rows: number;
  readonly cols: number;
  constructor(
    readonly data: Data,
    readonly index: number,
  ) {
    this.cols = data.shape[data.shape.length - 1] ?? 1;
    this.rows = data.shape[data.shape.length - 2] ?? 1;
  }
  at(row: number, col: number): number {
    return this.data.at(this.index, row, col);
  }
  masked(row: number, col: number): boolean {
    return this.data.tril && col > row;
  }
}

/** A matrix made in the browser (a sum, a transpose). */
export function made(rows: number, cols: number, value: (row: number, col: number) => number, approx = false): Plane {
  const flat = new Float32Array(rows * cols);
  for (let r = 0; r < rows; r++) for (let c = 0; c < cols; c++) flat[r * cols + c] = value(r, c);
  const bytes = new Uint8Array(flat.buffer);
  const entry: Entry = { dtype: "f32", shape: [rows, cols], layout: "full", offset: 0, length: bytes.length };
  const data = new Data([rows, cols], false, bytes, entry);
  (data as { approx: boolean }).approx = approx;
  return new Plane(data, 0);
}

function halfs(words: Uint16Array): Float32Array {
  const values = new Float32Array(words.length);
  for (let i = 0; i < words.length; i++) {
    const word = words[i];
    const sign = word & 0x8000 ? -1 : 1;
    const exponent = (word >> 10) & 31;
    const fraction = word & 1023;
    if (exponent === 31) values[i] = fraction ? NaN : sign * Infinity;
    else if (exponent === 0) values[i] = sign * fraction * 2 ** -24;
    else values[i] = sign * (1024 + fraction) * 2 ** (exponent - 25);
  }
  return values;
}

export function parse(raw: Uint8Array): { spec: Spec; arrays: Record<string, Data> } {
  if (String.fromCharCode(...raw.subarray(0, 4)) !== "CUT1") throw new Error("these bytes are no figure");
  const length = new DataView(raw.buffer, raw.byteOffset).getUint32(4, true);
  const { arrays: entries, ...spec } = JSON.parse(new TextDecoder().decode(raw.subarray(8, 8 + length)));
  if (spec.v !== 1) throw new Error(`this figure has format ${spec.v}; this page reads format 1`);
  const arrays: Record<string, Data> = {};
  for (const [name, entry] of Object.entries<Entry>(entries)) {
    const start = 8 + length + entry.offset;
    let bytes = raw.subarray(start, start + entry.length);
    if (bytes.byteOffset % 4) bytes = bytes.slice();
    arrays[name] = new Data(entry.shape, entry.layout === "tril", bytes, entry);
  }
  return { spec, arrays };
}

export function fromBase64(text: string): Uint8Array<ArrayBuffer> {
  const binary = atob(text);
  const bytes = new Uint8Array(binary.length);
  for (let i = 0; i < binary.length; i++) bytes[i] = binary.charCodeAt(i);
  return bytes;
}

export async function gunzip(bytes: Uint8Array<ArrayBuffer>): Promise<Uint8Array> {
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}
