import assert from "node:assert/strict";
import { test } from "node:test";
import {
  bytesOf,
  colourMap,
  isThePages,
  percent,
  readable,
  setPixel,
  touchesOutside,
  unique,
  within,
} from "../../nbs/widgets/parts.mjs";

test("numbers have as many digits as are read", () => {
  const texts = {
    "–": [null, Number.NaN, Number.POSITIVE_INFINITY],
    "0.000": [0],
    "1.0e-4": [1e-4],
    0.123: [0.1234],
    1.23: [1.234],
    123.4: [123.44],
    "1.0e+5": [1e5],
    "-2.50": [-2.5],
  };
  for (const [text, values] of Object.entries(texts)) for (const value of values) assert.equal(readable(value), text);
  assert.deepEqual([0, 0.504, 1].map(percent), ["0 %", "50 %", "100 %"]);
});

test("a value is kept within its range", () => {
  assert.deepEqual(
    [-1, 2, 9].map((value) => within(value, 0, 5)),
    [0, 2, 5],
  );
});

test("names are never the same", () => {
  const names = Array.from({ length: 1000 }, () => unique("nb"));
  assert.equal(new Set(names).size, 1000);
  assert.ok(names.every((name) => /^nb-[0-9a-z]+$/.test(name)));
});

test("bytes are those of the view, not of the buffer that it lies in", () => {
  const buffer = new Uint8Array([1, 2, 3, 4]).buffer;
  assert.deepEqual([...bytesOf(new DataView(buffer, 1, 2))], [2, 3]);
});

test("the edge of a region is two pixels wide, and the picture's own edge is none", () => {
  const [width, height] = [8, 8];
  const inside = new Uint8Array(width * height).map((_, i) => (i % width >= 3 ? 1 : 0));
  const edge = (x, y) => touchesOutside(inside, y * width + x, x, y, width, height);
  assert.deepEqual(
    [3, 4, 5, 7].map((x) => edge(x, 4)),
    [true, true, false, false],
  );
  assert.deepEqual([edge(6, 0), edge(6, 7)], [false, false]);
});

test("a map is coloured inside its region alone, its edge in the last colour and less transparent", () => {
  const [width, height] = [8, 1];
  const colours = new DataView(Uint8Array.from({ length: 768 }, (_, i) => Math.floor(i / 3)).buffer); // value v is the grey v
  const values = new Uint8Array(8).fill(100);
  const inside = new Uint8Array([0, 1, 1, 1, 1, 1, 1, 1]);
  const pixels = new Uint8ClampedArray(4 * 8);
  colourMap(pixels, width, height, values, colours, inside, 0.5);
  const pixel = (i) => [...pixels.subarray(4 * i, 4 * i + 4)];
  assert.deepEqual(pixel(0), [0, 0, 0, 0]);
  assert.deepEqual(pixel(2), [255, 255, 255, 204]);
  assert.deepEqual(pixel(5), [100, 100, 100, 128]);
  setPixel(pixels, 5, 1, 2, 3, 4);
  assert.deepEqual(pixel(5), [1, 2, 3, 4]);
});

test("keys with Control, Meta or Alt, and the one that runs the cell, are the page's", () => {
  const key = (how) => isThePages({ key: "d", ctrlKey: false, metaKey: false, altKey: false, shiftKey: false, ...how });
  assert.deepEqual([{}, { shiftKey: true }, { key: "Enter" }].map(key), [false, false, false]);
  assert.ok([{ ctrlKey: true }, { metaKey: true }, { altKey: true }, { key: "Enter", shiftKey: true }].every(key));
});
