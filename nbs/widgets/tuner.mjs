/* What every tuner's view is made of: the bar, controls bound to traits, the run line, the code. */

import { canvasOf, copyButton, make, options, readable, UnitBar, View, within } from "./parts.mjs";

// What runs, and how far it is; `running` is {} where nothing does, and its total is null or 0 where that is not known.
export function progressText({ step, done, total }) {
  if (step === undefined) return "";
  return total ? `${step}: ${done} of ${total}` : step;
}

// Subclasses give `title`, `buildSide`, `buildMain`, `show` and, where Python sends pictures, `receive`.
export class TunerView extends View {
  constructor(model, el) {
    super(model);
    this.controls = []; // functions that bring a control up to date with its traits
    this.arrived = Promise.resolve();
    this.root = this.build();
    el.append(this.root);
    this.listenToKeys();
    this.listen();
    this.refresh();
    this.send("ask");
  }

  /* what is where */

  build() {
    this.bar = new UnitBar(this);
    this.message = make("div", { class: "nb-message", role: "status" });
    const name = { class: `nb-view nb-tuner ${this.kind}`, tabindex: "0", role: "group", "aria-label": this.title };
    const body = make(
      "div",
      { class: "nb-body" },
      make("div", { class: "nb-side" }, ...this.buildSide()),
      make("div", { class: "nb-main" }, ...this.buildMain()),
    );
    return make("div", name, this.bar.root, this.message, body, this.buildFoot());
  }

  buildFoot() {
    this.copied = copyButton(this);
    this.codeText = make("code", {});
    this.codeBox = make(
      "details",
      { class: "nb-code" },
      make("summary", { text: "Code" }),
      make("pre", { tabindex: "0" }, this.codeText),
    );
    return make(
      "div",
      { class: "nb-foot" },
      this.buildRun(),
      make("div", { class: "nb-row" }, this.codeBox, this.copied),
    );
  }

  // Run, what is running, Stop; only for tuners that have something to run.
  buildRun() {
    this.run = make("button", { type: "button", class: "nb-button nb-run", onclick: () => this.startRun() });
    this.stop = make("button", { type: "button", class: "nb-button", text: "Stop", onclick: () => this.send("stop") });
    this.progress = make("progress", { "aria-label": "Progress of the run" });
    this.step = make("span", { class: "nb-step-text", "aria-live": "polite" });
    this.runLine = make("div", { class: "nb-controls nb-run-line" }, this.run, this.stop, this.progress, this.step);
    return this.runLine;
  }

  // A slider bound to a trait; it moves while being dragged.
  slider(trait, label, { min, max, step, format = String, help }) {
    const control = make("input", { type: "range", min, max, step, "aria-label": label, title: help ?? "" });
    const value = make("span", { class: "nb-share" });
    control.addEventListener("input", () => this.set({ [trait]: control.valueAsNumber }));
    this.controls.push(() => {
      const now = this.get(trait);
      if (now !== null) control.value = now;
      value.textContent = now === null ? "" : format(now);
    });
    return make(
      "label",
      { class: "nb-setting", title: help ?? "" },
      make("span", { class: "nb-setting-name", text: label }),
      value,
      control,
    );
  }

  choice(trait, label, values, help) {
    const control = make("select", { "aria-label": label, onchange: () => this.set({ [trait]: control.value }) });
    this.controls.push(() => options(control, typeof values === "string" ? this.get(values) : values, this.get(trait)));
    return make(
      "label",
      { class: "nb-setting", title: help ?? "" },
      make("span", { class: "nb-setting-name", text: label }),
      control,
    );
  }

  /* what changes what */

  listen() {
    this.on(["layers", "layer", "unit", "unit_count", "alone"], () => this.showBar());
    this.on(["running", "runs"], () => this.showRun());
    this.on(["message"], () => this.showMessage());
    this.on(["code"], () => this.showCode());
    this.hear("msg:custom", (content, buffers) => {
      this.hideStill();
      this.arrived = this.arrived.then(() => this.take(content, buffers)); // pictures take a moment to decode; the order stays
    });
  }

  send(kind, rest = {}) {
    this.model.send({ kind, ...rest });
  }

  // What cannot be shown is told in the console, and what comes after it is shown.
  async take(content, buffers) {
    if (this.ended) return;
    try {
      await this.receive(content, buffers);
    } catch (error) {
      console.error(error);
    }
  }

  receive() {}

  startRun() {
    this.send("run");
  }

  setLayer(layer) {
    this.set({ layer, unit: 0 });
  }

  goTo(unit) {
    if (Number.isFinite(unit)) this.set({ unit: within(Math.round(unit), 0, this.get("unit_count") - 1) });
    this.showBar();
  }

  move(steps) {
    this.goTo(this.get("unit") + steps);
  }

  /* keys */

  press(event) {
    const enter = event.key === "Enter";
    if (enter && event.target.matches("textarea, input") && (event.ctrlKey || event.metaKey)) this.runNow(event);
    else if (enter && event.target.matches("textarea"))
      event.stopPropagation(); // a line, not a run of the cell
    else super.press(event);
  }

  runNow(event) {
    event.stopPropagation();
    event.preventDefault();
    if (!this.runLine.hidden && !this.run.disabled) this.startRun();
  }

  actionFor(name, target) {
    if (!target.matches("div, figure, details, tr, td")) return null; // a control has keys of its own
    const steps = { j: 1, k: -1, ArrowRight: 1, ArrowLeft: -1 }[name];
    return steps === undefined ? null : () => this.move(steps);
  }

  /* what is shown */

  refresh() {
    this.showBar();
    this.showControls();
    this.showRun();
    this.showMessage();
    this.showCode();
    this.show();
  }

  show() {}

  showBar() {
    this.bar.root.hidden = !this.get("alone");
    this.bar.show();
  }

  showControls() {
    for (const bring of this.controls) bring();
  }

  showRun() {
    const running = this.get("running");
    const { done, total } = running;
    const on = running.step !== undefined;
    this.run.textContent = this.get("runs");
    this.runLine.hidden = !this.get("runs") && !on;
    this.run.disabled = on;
    this.stop.hidden = this.progress.hidden = !on;
    if (total) [this.progress.max, this.progress.value] = [total, done];
    else this.progress.removeAttribute("value");
    this.step.textContent = progressText(running);
    this.root.toggleAttribute("data-running", on);
  }

  showMessage() {
    this.message.textContent = this.get("message");
  }

  showCode() {
    this.codeText.textContent = this.get("code");
  }
}

/* ---------------------------------------------------------------- parts of several tuners */

// Whether a table has a column for the truth; a row's truth is null where none is known.
export function truthKnown(rows) {
  return rows.some((row) => row.truth !== null);
}

export function thumbnail(bitmap, attributes = {}) {
  const canvas = canvasOf(bitmap);
  canvas.classList.add("nb-thumbnail");
  for (const [name, value] of Object.entries(attributes)) canvas.setAttribute(name, value);
  return canvas;
}

// A description's score; nothing where it has none.
export function scoreMark(score) {
  return score === null ? [] : [make("span", { class: "nb-score", text: readable(score) })];
}

// Whether an answer agrees with the known truth; nothing where none is known.
export function truthMark(right) {
  if (right === null) return [];
  return [
    make("span", {
      class: right ? "nb-right" : "nb-wrong",
      text: right ? "✓" : "✗",
      title: right ? "agrees with the truth" : "differs from the truth",
    }),
  ];
}
