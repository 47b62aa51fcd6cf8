/* The view of neuronbench.widgets.rating.Rating: it shows what Python has kept and sends every click. */

import { key, make, tableHead, unique, View, widget, within } from "./parts.mjs";

const WORDS = ["strongly disagree", "disagree", "neither", "agree", "strongly agree"];
const LATE = 3000; // ms after which a click that was not kept is said to be lost
const LOST = "not saved: the server does not answer. Reload this page when it does; what was saved is still there.";

// Whether every description is rated from 1 to 5 and one is picked as best; null stands for what is not.
export function complete(ratings, best) {
  return best !== null && ratings.every((rating) => rating !== null);
}

// The number of a click: above all that this view has sent or Python has answered, so that the answer to it is told from others.
export function nextClick(last, kept, lost) {
  return Math.max(last, kept, lost) + 1;
}

// What a key does: {rate: 1 to 5}, {move: lines down}, {pick: true}, {finish: true}, or null for nothing.
export function meaning(name) {
  if (/^[1-5]$/.test(name)) return { rate: Number(name) };
  return { ArrowDown: { move: 1 }, ArrowUp: { move: -1 }, b: { pick: true }, Enter: { finish: true } }[name] ?? null;
}

class RatingView extends View {
  constructor(model, el) {
    super(model);
    this.clicks = 0;
    this.row = 0;
    this.root = make("div", { class: "nb-view nb-rating", tabindex: "0", onkeydown: (event) => this.press(event) });
    el.append(this.root);
    this.listen();
    this.draw();
  }

  listen() {
    this.on(["place"], () => this.draw());
    this.on(["kept", "lost", "problem"], () => this.mark());
    this.on(["ratings", "best"], () => this.follow());
    this.observe(new IntersectionObserver(() => this.takeKeys()), this.root); // the first question is drawn before the page has it, and what is not on view gets no keys
    this.endings.push(() => URL.revokeObjectURL(this.picture));
  }

  draw() {
    URL.revokeObjectURL(this.picture);
    this.row = 0;
    this.unkept = false; // from a click on, until Python has kept it
    this.leaving = false; // after Next, until the next question is there: keys meant for that one must not change this one
    const [place, count] = [this.get("place"), this.get("count")];
    if (place >= count) this.drawEnd(place, count);
    else this.drawQuestion(place, count);
  }

  drawEnd(place, count) {
    this.lines = [];
    const thanks = `Thank you. All ${count} units are rated, and you can close this page.`;
    this.root.replaceChildren(make("p", { class: "nb-done", role: "status", text: thanks }), this.backButton(place));
  }

  drawQuestion(place, count) {
    this.picture = URL.createObjectURL(new Blob([this.get("sheet")], { type: "image/jpeg" }));
    this.ratings = [...this.get("ratings")];
    this.best = this.get("best");
    this.group = unique("nb-rating"); // radio buttons of one name are one choice, on the whole page
    this.lines = this.get("texts").map((text, row) => this.line(text, row));
    this.next = make("button", { class: "nb-next", text: "Next", onclick: () => this.finish() });
    this.status = make("span", { class: "nb-status", role: "status" });
    this.root.replaceChildren(
      make("p", { class: "nb-count", text: `${place + 1} of ${count}` }),
      make("progress", { max: count, value: place, "aria-label": "answered" }),
      make("img", { src: this.picture, alt: "ten images that activate one unit", draggable: "false" }),
      make("p", { class: "nb-statement", text: this.get("statement") }),
      this.table(),
      make("p", {}, this.backButton(place), this.next, this.status),
      this.help(),
    );
    this.mark();
    this.takeKeys();
  }

  // From nobody else: in a notebook a person may be writing in a cell.
  takeKeys() {
    if (document.activeElement === document.body) this.root.focus({ preventScroll: true });
  }

  table() {
    const rows = this.lines.map((line) => line.node);
    return make("table", {}, tableHead(["description", ...WORDS, "best"]), make("tbody", {}, ...rows));
  }

  line(text, row) {
    const choice = (name, word, onchange) =>
      make("input", { type: "radio", name: `${this.group}-${name}`, "aria-label": `${text}: ${word}`, onchange });
    const values = WORDS.map((word, step) => choice(row, word, () => this.rate(row, step + 1)));
    const best = choice("best", "best", () => this.pick(row));
    const cells = [...values, best].map((input) => make("td", {}, make("label", {}, input)));
    const node = make("tr", { onclick: () => this.focus(row) }, make("th", { scope: "row", text }), ...cells);
    return { node, values, best };
  }

  backButton(place) {
    const button = make("button", {
      class: "nb-back",
      text: "Back",
      onclick: () => this.model.send({ back: true, click: this.clicks }),
    });
    button.disabled = place === 0;
    return button;
  }

  help() {
    const says = [
      ["1", "to"],
      ["5", "rate,"],
      ["↑", ""],
      ["↓", "another description,"],
      ["b", "best,"],
      ["Enter", "next"],
    ];
    return make("p", { class: "nb-help" }, ...says.flatMap(([name, text]) => [key(name), ` ${text} `]));
  }

  focus(row) {
    this.row = within(row, 0, this.lines.length - 1);
    for (const [number, line] of this.lines.entries()) line.node.classList.toggle("nb-current", number === this.row);
  }

  rate(row, value) {
    this.change(row, () => {
      this.ratings[row] = value;
    });
  }

  pick(row) {
    this.change(row, () => {
      this.best = row;
    });
  }

  change(row, apply) {
    if (this.leaving) return this.paint();
    apply();
    this.focus(row);
    this.send(false);
  }

  complete() {
    return complete(this.ratings, this.best);
  }

  finish() {
    this.leaving = this.complete();
    if (this.leaving) this.send(true);
    else this.say("rate every description and pick the best one first");
  }

  send(complete) {
    this.clicks = nextClick(this.clicks, this.get("kept"), this.get("lost"));
    this.unkept = true;
    this.model.send({ click: this.clicks, place: this.get("place"), ratings: this.ratings, best: this.best, complete });
    this.say("saving");
    this.later(() => this.stay(LOST), LATE);
    this.paint();
  }

  stay(text) {
    this.leaving = false;
    this.say(text);
  }

  say(text) {
    this.status.textContent = text;
  }

  // What Python has kept: an older answer than the last click changes nothing.
  mark() {
    if (!this.lines.length) return;
    const problem = this.get("problem");
    const told = this.get(problem ? "lost" : "kept");
    if (told === this.clicks) {
      clearTimeout(this.timer);
      if (problem) this.stay(problem);
      else this.say(this.clicks ? "saved" : "");
      this.unkept = Boolean(problem);
    }
    this.paint();
  }

  // What another view of the same questions has changed, unless a click of this one is on its way.
  follow() {
    if (!this.lines.length || this.unkept) return;
    this.ratings = [...this.get("ratings")];
    this.best = this.get("best");
    this.paint();
  }

  paint() {
    for (const [row, line] of this.lines.entries()) {
      for (const [step, input] of line.values.entries()) input.checked = this.ratings[row] === step + 1;
      line.best.checked = this.best === row;
    }
    this.next.classList.toggle("nb-ready", this.complete());
    this.focus(this.row);
  }

  press(event) {
    if (!this.lines.length || event.ctrlKey || event.metaKey || event.altKey) return;
    const does = meaning(event.key);
    if (!does || (does.finish && event.target.tagName === "BUTTON")) return; // a button has Enter for itself
    if (does.rate) this.rate(this.row, does.rate);
    if (does.move) this.focus(this.row + does.move);
    if (does.pick) this.pick(this.row);
    if (does.finish) this.finish();
    event.preventDefault();
    event.stopPropagation(); // the notebook has shortcuts of its own
  }
}

export default widget(RatingView);
