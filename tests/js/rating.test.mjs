import assert from "node:assert/strict";
import { test } from "node:test";
import { complete, meaning, nextClick } from "../../nbs/widgets/rating.mjs";

test("an answer is complete with every rating and the best one", () => {
  assert.ok(complete([1, 5], 0));
  for (const [ratings, best] of [
    [[1, null], 0],
    [[1, 5], null],
    [[null], null],
  ])
    assert.ok(!complete(ratings, best));
});

test("keys have a meaning or none", () => {
  assert.deepEqual(["1", "5", "b", "Enter", "ArrowDown", "ArrowUp"].map(meaning), [
    { rate: 1 },
    { rate: 5 },
    { pick: true },
    { finish: true },
    { move: 1 },
    { move: -1 },
  ]);
  for (const key of ["0", "6", "55", " ", "F5"]) assert.equal(meaning(key), null, key);
});

test("a click has a number that Python has not answered, whichever view sent it", () => {
  assert.deepEqual([nextClick(0, 0, 0), nextClick(3, 2, 0), nextClick(0, 5, 0), nextClick(1, 2, 7)], [1, 4, 6, 8]);
});
