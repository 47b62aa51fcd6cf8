import assert from "node:assert/strict";
import { test } from "node:test";
import {
  across,
  bars,
  enlarge,
  exemplarSpoken,
  histogramSpoken,
  histogramTitle,
  Kept,
  nameOfEvidence,
  poolOnView,
  positions,
  remark,
  ticks,
  wanted,
} from "../../nbs/widgets/browser.mjs";

test("the unit on view is fetched first, then its neighbours, the nearest first", () => {
  assert.deepEqual(wanted([0, 1, 2, 3, 4, 5, 6, 7, 8], 4), [4, 5, 3, 6, 2, 7, 1]);
  assert.deepEqual(wanted([0, 1, 2], 0), [0, 1, 2]);
  assert.deepEqual(wanted([8, 9], 4), [4, 8]);
  assert.deepEqual(wanted([], 4), [4]);
});

test("the pooling on view is the chosen one where it was recorded", () => {
  assert.deepEqual(
    [poolOnView(["mean", "max"], "max"), poolOnView(["mean"], "max"), poolOnView([], "max")],
    ["max", "mean", null],
  );
});

test("evidence is told apart by layer, unit, number and pooling, whatever else comes with it", () => {
  const asked = { layer: 'a","b', unit: 1, k: 10, pool: null };
  assert.equal(nameOfEvidence(asked), nameOfEvidence({ images: [1], ...asked }));
  const others = [{ layer: "a" }, { unit: 2 }, { k: 9 }, { pool: "mean" }].map((other) =>
    nameOfEvidence({ ...asked, ...other }),
  );
  assert.equal(new Set([nameOfEvidence(asked), ...others]).size, 5);
});

test("what is said of evidence", () => {
  const entry = {
    labels: ["dog"],
    ids: ["a.jpg"],
    activations: [1.5],
    edges: [0, 1, 2],
    total: 9,
    nonfinite: 1,
    pool: "max",
  };
  assert.equal(exemplarSpoken(entry, 0), "Exemplar 1: dog a.jpg, activation 1.50");
  assert.equal(histogramSpoken(entry), "Histogram of 8 activations from 0.000 to 2.00");
  assert.match(histogramTitle(entry), /^Activations on all 9 images, pooled by max \(/);
  assert.match(histogramTitle({ ...entry, pool: null }), /^Activations on all 9 images \(/);
  assert.deepEqual(
    [0, 1, 2].map((nonfinite) => remark({ nonfinite }).slice(0, 10)),
    ["", "1 image ha", "2 images h"],
  );
});

test("a map is enlarged as torch does with align_corners=False", () => {
  assert.deepEqual(positions(2, 4), [
    [0, 1, 0],
    [0, 1, 0.25],
    [0, 1, 0.75],
    [1, 1, 0],
  ]);
  const expected = [0, 25, 75, 100, 25, 50, 100, 125, 75, 100, 150, 175, 100, 125, 175, 200];
  assert.deepEqual([...enlarge(new Uint8Array([0, 100, 100, 200]), 2, 2, 4, 4)], expected);
  assert.deepEqual([...enlarge(new Uint8Array([7]), 1, 1, 2, 3)], Array(6).fill(7));
});

test("the pictures used last are kept, some 300", () => {
  const kept = new Kept();
  const entry = () => ({ images: Array(50) });
  for (let i = 0; i < 8; i++) kept.put(i, entry());
  assert.ok(kept.get(0)); // used again
  kept.put(8, entry());
  assert.deepEqual(
    [0, 1, 8].map((name) => kept.has(name)),
    [true, false, true],
  );
  assert.equal(kept.entries.size, 8); // never fewer than a unit and its neighbours on both sides
  assert.equal(kept.get("none"), undefined);
});

test("bars and marks stand where their activations are, also where all are alike", () => {
  const edges = [1, 2, 3];
  assert.deepEqual(
    [1, 2, 3].map((value) => across(value, edges, 108)),
    [4, 54, 104],
  );
  const [low, high] = bars({ counts: [0, 9], edges }, 108);
  assert.deepEqual(low, { x: 4.5, y: 66, width: 49, height: 0 });
  assert.deepEqual(high, { x: 54.5, y: 2, width: 49, height: 64 });
  assert.deepEqual(
    ticks(edges, 108).map(({ x, value }) => [x, value]),
    [
      [4, 1],
      [54, 2],
      [104, 3],
    ],
  );
  assert.equal(across(1, [1, 1], 108), 4);
  assert.ok(
    bars({ counts: [0], edges: [1, 1] }, 108).every(({ x, y, width, height }) =>
      [x, y, width, height].every(Number.isFinite),
    ),
  );
});
