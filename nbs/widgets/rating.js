/* The view of neuronbench.widgets.rating.Rating: it shows what Python has kept and sends every click.
   The file parts.js comes before it. */

const WORDS = ["strongly disagree", "disagree", "neither", "agree", "strongly agree"];
const LATE = 3000; // ms after which a click that was not kept is said to be lost

export default {
  render({ model, el }) {
    const view = new RatingView(model, el);
    return () => view.remove();
  },
};

class RatingView {
  constructor(model, el) {
    Object.assign(this, { model, el, clicks: 0, row: 0 });
    el.classList.add("nb-view", "nb-rating");
    el.tabIndex = 0;
    this.press = (event) => this.pressed(event);
    el.addEventListener("keydown", this.press);
    this.shown = () => this.draw();
    this.changed = () => this.mark();
    model.on("change:place", this.shown);
    for (const name of ["ratings", "best", "kept", "lost", "problem"]) model.on(`change:${name}`, this.changed);
    this.arrival = new IntersectionObserver(() => this.takeKeys()); // the first question is drawn before the page has it, and what is not on view gets no keys
    this.arrival.observe(el);
    this.draw();
  }

  remove() {
    clearTimeout(this.waiting);
    this.arrival.disconnect();
    URL.revokeObjectURL(this.picture);
    this.el.removeEventListener("keydown", this.press);
    this.model.off("change:place", this.shown);
    for (const name of ["ratings", "best", "kept", "lost", "problem"]) this.model.off(`change:${name}`, this.changed);
  }

  draw() {
    const { model } = this;
    URL.revokeObjectURL(this.picture);
    this.row = 0;
    this.leaving = false; // after Next, until the next question is there: keys meant for that one must not change this one
    const place = model.get("place"), count = model.get("count");
    if (place >= count) {
      this.lines = [];
      this.el.replaceChildren(make("p", { class: "nb-done", role: "status", text: `Thank you. All ${count} units are rated, and you can close this page.` }), this.backButton(place));
      return;
    }
    this.picture = URL.createObjectURL(new Blob([model.get("sheet")], { type: "image/jpeg" }));
    this.ratings = [...model.get("ratings")];
    this.best = model.get("best");
    this.lines = model.get("texts").map((text, row) => this.line(text, row));
    this.next = make("button", { class: "nb-next", text: "Next", onclick: () => this.finish() });
    this.status = make("span", { class: "nb-status", role: "status" });
    this.el.replaceChildren(
      make("p", { class: "nb-count", text: `${place + 1} of ${count}` }),
      make("progress", { max: count, value: place, "aria-label": "answered" }),
      make("img", { src: this.picture, alt: "ten images that activate one unit", draggable: "false" }),
      make("p", { class: "nb-statement", text: model.get("statement") }),
      this.table(),
      make("p", {}, this.backButton(place), this.next, this.status),
      this.help(),
    );
    this.mark();
    this.takeKeys();
  }

  // From nobody else: in a notebook a person may be writing in a cell.
  takeKeys() {
    if (document.activeElement === document.body) this.el.focus({ preventScroll: true });
  }

  table() {
    const head = ["description", ...WORDS, "best"].map((text) => make("th", { scope: "col", text }));
    return make("table", {}, make("thead", {}, make("tr", {}, ...head)), make("tbody", {}, ...this.lines.map((line) => line.node)));
  }

  line(text, row) {
    const group = `nb-rating-${Math.random()}`;
    const values = WORDS.map((word, step) => make("input", { type: "radio", name: group, "aria-label": `${text}: ${word}`, onchange: () => this.rate(row, step + 1) }));
    const best = make("input", { type: "radio", name: "nb-rating-best", "aria-label": `${text}: best`, onchange: () => this.pick(row) });
    const cells = [...values, best].map((input) => make("td", {}, make("label", {}, input)));
    const node = make("tr", { onclick: () => this.focus(row) }, make("th", { scope: "row", text }), ...cells);
    return { node, values, best };
  }

  backButton(place) {
    const button = make("button", { class: "nb-back", text: "Back", onclick: () => this.model.send({ back: true, click: this.clicks }) });
    button.disabled = place === 0;
    return button;
  }

  help() {
    const says = [["1", "to"], ["5", "rate,"], ["↑", ""], ["↓", "another description,"], ["b", "best,"], ["Enter", "next"]];
    return make("p", { class: "nb-help" }, ...says.flatMap(([name, text]) => [key(name), ` ${text} `]));
  }

  focus(row) {
    this.row = Math.min(Math.max(row, 0), this.lines.length - 1);
    this.lines.forEach((line, number) => line.node.classList.toggle("nb-current", number === this.row));
  }

  rate(row, value) {
    this.change(row, () => (this.ratings[row] = value));
  }

  pick(row) {
    this.change(row, () => (this.best = row));
  }

  change(row, apply) {
    if (this.leaving) return this.paint();
    apply();
    this.focus(row);
    this.send(false);
  }

  complete() {
    return this.best !== null && this.ratings.every((rating) => rating !== null);
  }

  finish() {
    this.leaving = this.complete();
    if (this.leaving) this.send(true);
    else this.say("rate every description and pick the best one first");
  }

  send(complete) {
    this.clicks += 1;
    this.model.send({ click: this.clicks, place: this.model.get("place"), ratings: this.ratings, best: this.best, complete });
    clearTimeout(this.waiting);
    this.say("saving");
    this.waiting = setTimeout(() => this.stay("not saved: the server does not answer. Reload this page when it does; what was saved is still there."), LATE);
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
    const problem = this.model.get("problem");
    const told = problem ? this.model.get("lost") : this.model.get("kept");
    if (told === this.clicks) {
      clearTimeout(this.waiting);
      if (problem) this.stay(problem);
      else this.say(this.clicks ? "saved" : "");
    }
    this.paint();
  }

  paint() {
    this.lines.forEach((line, row) => {
      line.values.forEach((input, step) => (input.checked = this.ratings[row] === step + 1));
      line.best.checked = this.best === row;
    });
    this.next.classList.toggle("nb-ready", this.complete());
    this.focus(this.row);
  }

  pressed(event) {
    if (!this.lines.length || event.ctrlKey || event.metaKey || event.altKey) return;
    const value = Number(event.key);
    if (value >= 1 && value <= WORDS.length) {
      this.rate(this.row, value);
      this.focus(this.row);
    } else if (event.key === "ArrowDown" || event.key === "ArrowUp") this.focus(this.row + (event.key === "ArrowDown" ? 1 : -1));
    else if (event.key === "b") this.pick(this.row);
    else if (event.key === "Enter" && event.target.tagName !== "BUTTON") this.finish();
    else return;
    event.preventDefault();
    event.stopPropagation(); // the notebook has shortcuts of its own
  }
}
