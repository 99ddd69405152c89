import { expect, test } from "vitest";
import fixture from "./wire.json";
import { Data, Plane, fromBase64, gunzip, parse, type Entry } from "../src/core/decode";

const read = async () => parse(await gunzip(fromBase64(fixture.data)));
const number = (value: number | string): number => (typeof value === "number" ? value : ({ nan: NaN, inf: Infinity, "-inf": -Infinity } as any)[value]);

test("a figure that Python wrote is read value by value", async () => {
  const { spec, arrays } = await read();
  expect(spec.title).toBe(fixture.title);
  expect(spec.tokens).toEqual(fixture.tokens);
  for (const [name, { shape, values, tolerance }] of Object.entries(fixture.arrays)) {
    const data = arrays[name];
    expect(data.shape).toEqual(shape);
    const cols = shape[shape.length - 1];
    const rows = shape[shape.length - 2] ?? 1;
    values.forEach((wanted, i) => {
      const found = data.at(Math.floor(i / (rows * cols)), Math.floor(i / cols) % rows, i % cols);
      if (Number.isFinite(number(wanted))) expect(Math.abs(found - number(wanted))).toBeLessThanOrEqual(tolerance);
      else expect(found).toBe(number(wanted));
    });
  }
});

test("a triangle keeps half of its values and is empty above the diagonal", async () => {
  const { arrays } = await read();
  const plane = new Plane(arrays.triangle, 1);
  expect(arrays.triangle.tril).toBe(true);
  expect(plane.masked(0, 1)).toBe(true);
  expect(plane.masked(1, 1)).toBe(false);
  expect(plane.at(0, 2)).toBe(0);
});

test("what was rounded says so, what was not does not", async () => {
  const { arrays } = await read();
  expect(arrays.exact.approx).toBe(false);
  expect(arrays.whole.approx).toBe(false);
  expect(arrays.half.approx).toBe(true);
  expect(arrays.levels.approx).toBe(true);
});

test("halfs: subnormal, largest, negative zero, not finite", () => {
  const words = new Uint16Array([0x0001, 0x7bff, 0x8000, 0x7c00, 0xfc00, 0x7e00, 0x3555]);
  const entry: Entry = { dtype: "f16", shape: [7], layout: "full", offset: 0, length: 14 };
  const data = new Data([7], false, new Uint8Array(words.buffer), entry);
  const values = Array.from({ length: 7 }, (_, i) => data.stored(i));
  expect(values.slice(0, 2)).toEqual([2 ** -24, 65504]);
  expect(Object.is(values[2], -0)).toBe(true);
  expect(values.slice(3, 6)).toEqual([Infinity, -Infinity, NaN]);
  expect(values[6]).toBeCloseTo(1 / 3, 3);
});

test("other bytes are refused", () => {
  expect(() => parse(new TextEncoder().encode("PK\u0003\u0004 nothing"))).toThrow("no figure");
});
