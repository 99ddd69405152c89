import { expect, test } from "vitest";
import { number, place, signed, tick, visible } from "../src/core/format";
import { extent, logTicks, ticks } from "../src/core/axes";
import { find } from "../src/views/search";

test("numbers: three digits, a real minus, ≈ where rounded", () => {
  expect([number(0.12345), number(-12.345), number(0), number(123456), number(1e-5)]).toEqual(["0.123", "−12.3", "0", "1.23e+5", "1.00e−5"]);
  expect([number(NaN), number(-Infinity), number(0.5, true), signed(0.5), signed(-0.5)]).toEqual(["NaN", "−∞", "≈ 0.500", "+0.500", "−0.500"]);
  expect([tick(50), tick(-0.25), tick(0.1 + 0.2)]).toEqual(["50", "−0.25", "0.3"]);
});

test("white space of tokens is visible, words keep their spaces", () => {
  expect([visible(" the"), visible("\n"), visible("a\tb"), visible("layer 0"), visible("a  b"), visible(""), visible(" ")]).toEqual(["·the", "↵", "a⇥b", "layer 0", "a··b", "∅", "·"]);
  expect(visible("x".repeat(2000), 16)).toHaveLength(16);
  expect(place(["a", " b"], 1, true)).toBe("1 “·b”");
});

test("ticks are round and inside", () => {
  expect(ticks(0, 1, 5)).toHaveLength(6);
  expect(ticks(-3, 7, 5)).toEqual([-2, 0, 2, 4, 6]);
  expect(logTicks(1, 1000)).toEqual([1, 10, 100, 1000]);
  expect(extent([NaN, Infinity], false, false)).toEqual([0, 1]);
  expect(extent([2, 2], false, false)).toEqual([1.5, 2.5]);
});

test("a search puts the exact token first", () => {
  const rows = ["other", " the", "the", "then", " bathe", "THE"];
  const order = { count: 2, stored: (i: number) => [4, 0][i] };
  expect(find(rows, "the", order).rows).toEqual([2, 1, 5, 3, 0, 4]);
  expect(find(rows, "", order)).toEqual({ rows: [4, 0], count: 6 });
  expect(find(rows, "zzz", order).count).toBe(0);
});
