import { expect, test } from "vitest";
import { ODD, ink, level, rgb, table, type Scale } from "../src/core/color";
import { made } from "../src/core/decode";
import { boldest, census, pixels } from "../src/core/paint";

const scale = (name: Scale["name"], low: number, high: number): Scale => ({ name, low, high, colors: table(name, "light") });
const pixel = (image: { width: number; data: Uint8ClampedArray }, row: number, col: number) =>
  [...image.data.slice(4 * (row * image.width + col), 4 * (row * image.width + col) + 4)];

test("the ends of a scale are the ends of its table", () => {
  expect([level(-1, -1, 1), level(0, -1, 1), level(1, -1, 1)]).toEqual([0, 128, 255]);
  expect([level(-9, -1, 1), level(9, -1, 1)]).toEqual([0, 255]);
  expect(rgb(scale("sequential", 0, 1), 0)).toEqual([0x00, 0x22, 0x4e]);
  expect(rgb(scale("sequential", 0, 1), 1)).toEqual([0xfe, 0xe8, 0x38]);
});

test("scales rise in lightness all the way (diverging: from the middle out)", () => {
  const light = (colors: Uint8Array, i: number) => 0.2126 * colors[3 * i] + 0.7152 * colors[3 * i + 1] + 0.0722 * colors[3 * i + 2];
  for (const name of ["sequential", "viridis"] as const) {
    const colors = table(name, "light");
    for (let i = 8; i < 256; i += 8) expect(light(colors, i)).toBeGreaterThan(light(colors, i - 8));
  }
  for (const theme of ["light", "dark"] as const) {
    const colors = table("diverging", theme);
    const sign = theme === "light" ? 1 : -1;
    for (let i = 8; i < 120; i += 8) expect(sign * light(colors, i)).toBeGreaterThan(sign * light(colors, i - 8));
    for (let i = 255; i > 136; i -= 8) expect(sign * light(colors, i - 8)).toBeGreaterThan(sign * light(colors, i));
  }
});

test("every cell is one pixel", () => {
  const plane = made(3, 4, (r, c) => r * 4 + c);
  const s = scale("viridis", 0, 11);
  const image = pixels(plane, s);
  for (let r = 0; r < 3; r++) for (let c = 0; c < 4; c++) expect(pixel(image, r, c)).toEqual([...rgb(s, r * 4 + c), 255]);
});

test("one bright cell survives shrinking, of either sign", () => {
  const s = scale("diverging", -1, 1);
  for (const value of [0.9, -0.9]) {
    const plane = made(101, 97, (r, c) => (r === 100 && c === 50 ? value : 0.1));
    const image = pixels(plane, s, 10, 10);
    expect([image.width, image.height]).toEqual([10, 11]);
    expect(pixel(image, 10, 5)).toEqual([...rgb(s, value), 255]);
    expect(boldest(plane, s, 100, 50, 10, 10)).toEqual([100, 50]);
  }
});

test("what is not finite has its own colour, also in a thumbnail", () => {
  const plane = made(4, 4, (r, c) => (r === 1 && c === 1 ? NaN : r === 3 && c === 3 ? -Infinity : 1));
  const s = scale("sequential", 0, 1);
  expect(pixel(pixels(plane, s), 1, 1)).toEqual([...ODD.nan, 255]);
  expect(pixel(pixels(plane, s, 2, 2), 0, 0)).toEqual([...ODD.nan, 255]);
  expect(pixel(pixels(plane, s, 2, 2), 1, 1)).toEqual([...ODD.low, 255]);
  expect(census([plane])).toMatchObject({ nan: 1, low_: 1, high_: 0, low: 1, high: 1 });
});

test("ink reads on every colour: contrast of at least 4.5", () => {
  const lightness = (color: number[]) => {
    const [r, g, b] = color.map((c) => (c / 255 <= 0.04045 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  for (const name of ["sequential", "viridis", "diverging"] as const) {
    const s = scale(name, 0, 255);
    for (let i = 0; i < 256; i++) {
      const back = lightness(rgb(s, i));
      const ratio = ink(rgb(s, i)) === "#fff" ? 1.05 / (back + 0.05) : (back + 0.05) / 0.05;
      expect(ratio).toBeGreaterThanOrEqual(4.5);
    }
  }
});

test("a cell that does not exist stays blank, and hides no neighbour where cells share a pixel", () => {
  const plane = made(2, 4, (r, c) => (c !== 1 ? NaN : r ? -0.5 : 1));
  const s = { ...scale("diverging", -1, 1), blank: true };
  expect(pixel(pixels(plane, s), 0, 0)).toEqual([0, 0, 0, 0]);
  expect(pixel(pixels(plane, s), 0, 1)).toEqual([...rgb(s, 1), 255]);
  expect(pixel(pixels(plane, s, 2, 2), 0, 0)).toEqual([...rgb(s, 1), 255]);
  expect(pixel(pixels(plane, s, 2, 2), 0, 1)).toEqual([0, 0, 0, 0]);
  expect(boldest(plane, s, 0, 0, 2, 2)).toEqual([0, 1]);
});
