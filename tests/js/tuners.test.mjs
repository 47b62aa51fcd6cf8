import assert from "node:assert/strict";
import { test } from "node:test";
import * as compare from "../../nbs/widgets/compare.mjs";
import {
  boxesSpoken,
  cropRows,
  heat,
  leftOut,
  level,
  outlined,
  unpacked,
  veil,
} from "../../nbs/widgets/crops_tuner.mjs";
import * as prompts from "../../nbs/widgets/prompts_tuner.mjs";
import { breakable, dealt, imageSpoken, rankText } from "../../nbs/widgets/scoring_tuner.mjs";
import { progressText, truthKnown } from "../../nbs/widgets/tuner.mjs";
import { tabAfter } from "../../nbs/widgets/tuners.mjs";

test("a run says its step, and how far it is where that is known", () => {
  assert.deepEqual([{}, { step: "captions" }, { step: "captions", done: 0, total: 7 }].map(progressText), [
    "",
    "captions",
    "captions: 0 of 7",
  ]);
});

test("arrows go from tab to tab, round the ends", () => {
  assert.deepEqual(
    [
      ["ArrowRight", 1],
      ["ArrowRight", 3],
      ["ArrowLeft", 0],
      ["j", 1],
    ].map(([key, tab]) => tabAfter(key, tab, 4)),
    [2, 0, 3, undefined],
  );
  assert.deepEqual([tabAfter("ArrowRight", 0, 1), tabAfter("ArrowLeft", 0, 1)], [0, 0]);
});

test("a table has a column for the truth where one is known", () => {
  const [known, unknown] = [{ truth: "" }, { truth: null }];
  assert.deepEqual([[], [unknown], [unknown, known]].map(truthKnown), [false, false, true]);
  assert.deepEqual(compare.columnHeads(true, ["truth"]), ["unit", "exemplars", "truth", "truth"]);
  assert.deepEqual(compare.columnHeads(false, ["a"]), ["unit", "exemplars", "a"]);
  assert.deepEqual(prompts.columnHeads(true, "mine"), ["unit", "truth", "saved: mine", "edited"]);
  assert.deepEqual(prompts.columnHeads(false, "mine"), ["unit", "saved: mine", "edited"]);
});

test("pictures are told apart by layer, unit and pooling", () => {
  const names = [
    ["a", 1, "max"],
    ["a", 1, null],
    ["a", 11, null],
    ["a1", 1, null],
  ].map((of) => compare.nameOfPictures(...of));
  assert.equal(new Set(names).size, 4);
  assert.deepEqual([0, 1, 2].map(compare.unitCount), ["0 units", "1 unit", "2 units"]);
});

test("words that the other description lacks are marked", () => {
  assert.deepEqual(
    prompts.markedWords(
      [
        ["red", false],
        ["cars", true],
      ],
      "nb-added",
    ),
    [
      ["red", ""],
      ["cars", "nb-added"],
    ],
  );
});

/* ---------------------------------------------------------------- crops */

test("the level is the mean of the images' thresholds", () => {
  assert.deepEqual([level([100, 200]), level([])], [150, 128]);
});

test("bits are unpacked as numpy packs them, from any bit on", () => {
  const bytes = new Uint8Array([0b10110000, 0b00000001]);
  assert.deepEqual([...unpacked(bytes, 0, 5)], [1, 0, 1, 1, 0]);
  assert.deepEqual([...unpacked(bytes, 6, 10)], [0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
});

test("boxes that do not become crops are left out", () => {
  const boxes = [
    [0, 0, 4, 4],
    [0, 0, 44, 4],
    [1, 1, 2, 2],
  ];
  assert.deepEqual(leftOut(boxes, [[1, 1, 2, 2]]), boxes.slice(0, 2));
  assert.deepEqual([boxesSpoken(0, 1, 9.6), boxesSpoken(2, 3, 100)], ["0 of 1 box above 10", "2 of 3 boxes above 100"]);
});

test("the lines of crops only ever grow", () => {
  const crops = (count) => Array(count).fill([0, 0, 1, 1]);
  assert.deepEqual([cropRows(1, []), cropRows(1, [crops(4), crops(2)]), cropRows(3, [crops(1)])], [1, 2, 3]);
});

test("the image is dark outside the mask, and a light line goes round it", () => {
  const [width, height] = [8, 1];
  const mask = new Uint8Array([0, 0, 1, 1, 1, 1, 1, 1]);
  const pixels = new Uint8ClampedArray(4 * width);
  outlined(pixels, width, height, mask, (all, i) => veil(all, i, mask));
  const pixel = (i) => [...pixels.subarray(4 * i, 4 * i + 4)];
  assert.deepEqual([1, 2, 3, 4].map(pixel), [
    [0, 0, 0, 150],
    [255, 255, 255, 210],
    [255, 255, 255, 210],
    [0, 0, 0, 0],
  ]);
  const colours = new DataView(new Uint8Array([1, 2, 3, 4, 5, 6]).buffer);
  heat(pixels, 5, [0, 0, 0, 0, 0, 1], colours);
  assert.deepEqual(pixel(5), [4, 5, 6, 140]);
});

/* ---------------------------------------------------------------- scoring */

test("pictures are dealt to candidates in their order, also to one that has none", () => {
  assert.deepEqual(dealt(["a", "b", "c"], [[0, 1], [], [0]]), [["a", "b"], [], ["c"]]);
});

test("ranks that are shared show their half", () => {
  assert.deepEqual([3, 2.5].map(rankText), ["3", "2.5"]);
  assert.equal(imageSpoken({ rank: 2.5, activation: 0.25, counts: true }), "rank 2.5, activation 0.250, counts");
  assert.equal(imageSpoken({ rank: 1, activation: null, counts: false }), "rank 1, activation –");
  assert.equal(breakable("topk_squared").length, "topk_squared".length + 1);
});
