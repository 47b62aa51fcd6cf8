/* Every view, from the text that a front end gets: what it leaves behind, what two of it share, what it does with hostile text. */

import assert from "node:assert/strict";
import { beforeEach, test } from "node:test";
import { pathToFileURL } from "node:url";
import { FakeModel, page, settled } from "./front_end.mjs";
import { HOSTILE, WIDGETS } from "./widgets.mjs";

const { BUNDLES, TRAITS } = process.env; // the folder of the bundled scripts, and {name of a script: the traits that Python shares with it}
assert.ok(
  BUNDLES && TRAITS,
  "run `python -m pytest tests/test_scripts.py`: it bundles the scripts and says where they are",
);

const SAVES = new Set(["browser", "compare", "descriptions_browser"]); // files; their addresses are taken back a moment after, whatever becomes of the view

// Each view on a page has a module of its own, as in a front end.
let loaded = 0;

async function draw(name, model = new FakeModel(WIDGETS[name].traits)) {
  loaded += 1;
  const address = `${pathToFileURL(`${BUNDLES}/${name}.mjs`)}?${loaded}`;
  const { default: widget } = await import(address);
  const el = page.place();
  const end = widget.render({ model, el });
  for (const [content, buffers] of WIDGETS[name].messages) model.emit("msg:custom", content, buffers);
  return { model, el, root: el.firstElementChild, end };
}

async function open(name, model) {
  const view = await draw(name, model);
  await settled();
  return view;
}

beforeEach(() => page.passTime());

// Everything a person can do without Python: keys, clicks, every control.
async function use({ root }) {
  for (const key of ["j", "k", "p", "m", "/", "1", "b", "ArrowDown", "Enter", "End"]) page.press(root, key);
  for (const control of root.querySelectorAll("input, select, textarea")) {
    control.dispatchEvent(new page.window.Event("input", { bubbles: true }));
    control.dispatchEvent(new page.window.Event("change", { bubbles: true }));
  }
  for (const button of root.querySelectorAll("button")) button.click();
  await settled();
}

test("the widgets here have the traits of those in Python", () => {
  const traits = JSON.parse(TRAITS);
  assert.deepEqual(Object.keys(traits).sort(), Object.keys(WIDGETS).sort());
  for (const [name, widget] of Object.entries(WIDGETS))
    assert.deepEqual(new Set(Object.keys(widget.traits)).difference(new Set(traits[name])), new Set(), name);
});

for (const name of Object.keys(WIDGETS)) {
  test(`${name} takes off with it all that it put on`, async () => {
    const before = page.left();
    const view = await open(name);
    assert.ok(view.model.heard.length > 0);
    await use(view);
    view.end();
    assert.equal(view.el.childNodes.length, 0);
    assert.deepEqual(view.model.heard, []);
    if (SAVES.has(name)) page.passTime();
    assert.deepEqual(page.left(), before);
  });

  test(`${name} does nothing more once it is gone`, async () => {
    const before = page.left();
    const { model, end } = await draw(name);
    end(); // while pictures are decoded
    const [sent, saves] = [model.sent.length, model.saves];
    await settled();
    page.passTime();
    assert.deepEqual([model.sent.length, model.saves, page.left()], [sent, saves, before]);
  });

  test(`two of ${name} share no name, and each goes alone`, async () => {
    const [first, second] = [await open(name), await open(name)];
    const names = ({ root }) => new Set([...root.querySelectorAll("input[name]")].map((input) => input.name));
    assert.deepEqual(names(first).intersection(names(second)), new Set());
    const ids = [...page.document.querySelectorAll("[id]")].map((element) => element.id);
    assert.equal(new Set(ids).size, ids.length);
    for (const view of [first, second])
      for (const role of ["for", "aria-controls", "aria-labelledby", "aria-describedby"])
        for (const element of view.root.querySelectorAll(`[${role}]`))
          assert.ok(view.root.querySelector(`#${element.getAttribute(role)}`), `${role} leads out of the view`);
    const heard = second.model.heard.length;
    first.end();
    assert.equal(second.model.heard.length, heard);
    assert.ok(second.root.isConnected);
    second.end();
  });

  test(`${name} shows hostile text as text`, async () => {
    const view = await open(name);
    const texts = [...view.root.querySelectorAll("*")].filter((element) => element.children.length === 0);
    assert.ok(texts.some((element) => element.textContent.includes(HOSTILE)));
    assert.equal(view.root.querySelectorAll("img[src=x], [onerror]").length, 0);
    assert.notEqual(page.document.title, "broken in");
    view.end();
  });
}

/* ---------------------------------------------------------------- rating */

const radios = ({ root }, label) => [...root.querySelectorAll(`input[aria-label$="${label}"]`)];

test("what is picked in a rating leaves the other on the page as it is", async () => {
  const [first, second] = [await open("rating"), await open("rating")];
  radios(first, ": best")[0].click();
  radios(second, ": best")[1].click();
  radios(first, ": agree")[2].click();
  radios(second, ": disagree")[2].click();
  const checked = ({ root }) => [...root.querySelectorAll("input")].flatMap((input, i) => (input.checked ? [i] : []));
  assert.deepEqual(
    [checked(first), checked(second)],
    [
      [5, 15],
      [11, 13],
    ],
  );
  for (const { model, best, rating } of [
    { ...first, best: 0, rating: 4 },
    { ...second, best: 1, rating: 2 },
  ])
    assert.deepEqual(model.sent.at(-1), { click: 2, place: 1, ratings: [null, null, rating], best, complete: false });
  first.end();
  second.end();
});

const said = ({ root }) => root.querySelector(".nb-status").textContent;

// As Python answers the last click: what is kept is told before what it was.
function keep(model) {
  const { click, ratings, best } = model.sent.at(-1);
  model.set("kept", click);
  model.set("ratings", ratings);
  model.set("best", best);
}

test("two views of the same questions show the same, and neither undoes the other's clicks", async () => {
  const first = await open("rating");
  const second = await open("rating", first.model);
  radios(first, ": agree")[0].click();
  radios(first, ": best")[0].click();
  keep(first.model);
  assert.ok(radios(second, ": agree")[0].checked && radios(second, ": best")[0].checked);
  radios(second, ": disagree")[2].click();
  assert.deepEqual(
    first.model.sent.map(({ click }) => click),
    [1, 2, 3],
  );
  assert.deepEqual(first.model.sent.at(-1).ratings, [4, null, 2]);
  assert.equal(first.model.sent.at(-1).best, 0);
  keep(first.model);
  assert.ok(radios(first, ": disagree")[2].checked);
  assert.deepEqual([said(first), said(second)], ["saved", "saved"]);
  first.end();
  second.end();
});

test("a click that is on its way is not undone by what was kept before it", async () => {
  const view = await open("rating");
  page.press(view.root, "2");
  const [before] = view.model.sent.splice(0);
  page.press(view.root, "b");
  const [after] = view.model.sent.splice(0);
  view.model.sent.push(before);
  keep(view.model);
  assert.ok(radios(view, ": disagree")[0].checked && radios(view, ": best")[0].checked);
  view.model.set("problem", "not kept: the disk is full");
  view.model.set("lost", after.click);
  assert.ok(radios(view, ": best")[0].checked); // the next click tries again
  view.end();
});

test("a click that Python does not keep is said to be lost, unless the page went before", async () => {
  const [stays, goes] = [await open("rating"), await open("rating")];
  for (const view of [stays, goes]) page.press(view.root, "3");
  assert.equal(said(stays), "saving");
  const status = goes.root.querySelector(".nb-status");
  goes.end();
  page.passTime();
  assert.match(said(stays), /^not saved: the server does not answer/);
  assert.equal(status.textContent, "saving");
  stays.model.set("kept", 1);
  assert.equal(said(stays), "saved");
  stays.end();
});

test("keys rate, move, pick and finish; those of the page are let through", async () => {
  const view = await open("rating");
  assert.equal(page.press(view.root, "s", { ctrlKey: true }).defaultPrevented, false);
  for (const key of ["5", "ArrowDown", "4", "ArrowDown", "ArrowDown", "1", "b"])
    assert.ok(page.press(view.root, key).defaultPrevented);
  page.press(view.root, "Enter");
  assert.deepEqual(view.model.sent.at(-1), { click: 5, place: 1, ratings: [5, 4, 1], best: 2, complete: true });
  page.press(view.root, "2"); // meant for the next question
  assert.equal(view.model.sent.length, 5);
  view.end();
});

/* ---------------------------------------------------------------- browser and tuners */

test("the browser asks for one unit at a time, what is on view first", async () => {
  const view = await open("browser");
  const { model } = view;
  assert.deepEqual(
    model.sent.map(({ unit }) => unit),
    [2, 1],
  ); // 3 had failed
  model.emit("msg:custom", { kind: "failed", layer: "conv", unit: 1, k: 2, pool: "mean", sentence: "no" }, []);
  await settled();
  assert.deepEqual(
    model.sent.map(({ unit }) => unit),
    [2, 1, 4],
  );
  view.end();
});

test("a plain key does not reach the notebook, and one that saves does", async () => {
  for (const name of ["browser", "crops_tuner", "descriptions_browser", "tuners"]) {
    const view = await open(name);
    const reached = [];
    view.el.addEventListener("keydown", (event) => reached.push(event.key));
    page.press(view.root, "d");
    page.press(view.root, "s", { ctrlKey: true });
    page.press(view.root, "Enter", { shiftKey: true });
    assert.deepEqual(reached, ["s", "Enter"]);
    view.end();
  }
});

test("the still picture is hidden while a view of it answers, and no longer", async () => {
  const hidden = () => page.document.head.textContent.includes("still");
  const view = await open("prompts_tuner");
  assert.ok(hidden());
  view.end();
  assert.ok(!hidden());
});

test("code is copied, and the button says so for a moment", async () => {
  const view = await open("tuners");
  const button = [...view.root.querySelectorAll("button")].find(({ textContent }) => textContent === "Copy as code");
  button.click();
  await settled();
  assert.deepEqual([page.copied.at(-1), button.textContent], [HOSTILE, "Copied"]);
  page.passTime();
  assert.equal(button.textContent, "Copy as code");
  view.end();
});

test("a message that cannot be shown does not keep back the next", async (t) => {
  const complaints = t.mock.method(console, "error", () => {});
  const view = await open("scoring_tuner");
  view.model.emit("msg:custom", { kind: "scores" }, []);
  view.model.emit("msg:custom", { kind: "nothing", sentence: "no candidates" }, []);
  await settled();
  assert.equal(complaints.mock.callCount(), 1);
  assert.equal(view.root.querySelector(".nb-reason").textContent, "no candidates");
  view.end();
});

test("what is said of a unit shows all of it; an address is a link, and other text is none", async () => {
  const view = await open("descriptions_browser");
  const said = () => [...view.root.querySelectorAll(".nb-said")].map(({ textContent }) => textContent);
  view.model.set("said", [
    [],
    [],
    [
      ["people", "a facemask", null],
      ["people", "wool", null],
    ],
    [],
    [],
    [],
  ]);
  assert.deepEqual(said(), ["a facemask", "wool"]);
  page.press(view.root, "j");
  assert.deepEqual([view.model.get("unit"), said()], [3, []]);
  assert.ok(view.root.textContent.includes("Nothing is said of this unit."));
  assert.deepEqual(
    [...view.root.querySelectorAll("a")].map((link) => link.getAttribute("href")),
    ["https://example.org/a"],
  );
  view.end();
});
