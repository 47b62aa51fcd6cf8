import assert from "node:assert/strict";
import { test } from "node:test";
import { along, linesInView, scrolledTo, toggled } from "../../nbs/widgets/units.mjs";

test("steps go along the list as it is sorted, and stop at its ends", () => {
  const order = [5, 1, 9, 3];
  assert.deepEqual(
    [
      [5, 1],
      [5, -1],
      [1, 10],
      [3, 1],
      [9, 0],
    ].map(([unit, steps]) => along(order, unit, steps)),
    [1, 5, 3, 3, 9],
  );
  assert.equal(along(order, 7, 3), 5); // not in the list: its first
  assert.equal(along([], 7, 1), undefined);
});

test("a pin comes to the end and goes from where it is; layers are told apart", () => {
  const pinned = [
    ["a", 1],
    ["b", 1],
    ["a", 2],
  ];
  assert.deepEqual(toggled(pinned, "b", 2), [...pinned, ["b", 2]]);
  assert.deepEqual(toggled(pinned, "a", 1), [
    ["b", 1],
    ["a", 2],
  ]);
  assert.equal(pinned.length, 3);
});

test("the lines in view are drawn with four more at each end, never more than there are", () => {
  assert.deepEqual(linesInView(0, 320, 1000), [0, 18]);
  assert.deepEqual(linesInView(3200, 320, 1000), [96, 114]);
  assert.deepEqual(linesInView(3200, 320, 105), [96, 105]);
  assert.deepEqual(linesInView(0, 320, 0), [0, 0]);
});

test("a list scrolls as little as can be", () => {
  assert.equal(scrolledTo(5, 0, 320), 0); // in view
  assert.equal(scrolledTo(10, 0, 320), 32); // below
  assert.equal(scrolledTo(2, 320, 320), 64); // above
  assert.equal(scrolledTo(-1, 320, 320), 0); // not in the list
});
