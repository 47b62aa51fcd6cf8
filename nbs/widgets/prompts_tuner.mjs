/* The view of neuronbench.widgets.prompts_tuner.PromptsTuner. */

import { make, options, tableHead, unitTitle, widget } from "./parts.mjs";
import { scoreMark, TunerView, truthKnown, truthMark } from "./tuner.mjs";

const TEXTS = ["simplify", "summarise", "relabel", "paint", "examples"]; // traits with a prompt
const SHOWN = ["layer", "unit", "rows", "summary", "estimate", "countable", "chosen", "version", "versions"];

export function columnHeads(truth, compared) {
  return ["unit", ...(truth ? ["truth"] : []), `saved: ${compared}`, "edited"];
}

// The words of a description as [text, class]; `words` has [text, whether the other description lacks it].
export function markedWords(words, kind) {
  return words.map(([text, changed]) => [text, changed ? kind : ""]);
}

class PromptsView extends TunerView {
  get kind() {
    return "nb-prompts-tuner";
  }

  get title() {
    return "Prompts tuner";
  }

  buildSide() {
    this.chosen = make("input", {
      type: "text",
      "aria-label": "Units to run on",
      placeholder: "the one on view",
      spellcheck: "false",
    });
    this.chosen.addEventListener("input", () => this.set({ chosen: this.chosen.value }));
    const units = make(
      "label",
      { class: "nb-setting", title: "Numbers and ranges, such as 3, 5-9" },
      make("span", { class: "nb-setting-name", text: "Units to run on" }),
      this.chosen,
      this.problem("chosen"),
    );
    return [
      ...this.buildVersions(),
      make("div", { class: "nb-apart" }),
      this.choice("chat", "Model", "chats"),
      this.slider("temperature", "Temperature", { min: 0, max: 1.5, step: 0.05, format: (x) => x.toFixed(2) }),
      this.slider("candidates", "Candidates", { min: 1, max: 12, step: 1, help: "How many summaries are asked for" }),
      units,
    ];
  }

  buildVersions() {
    this.name = make("input", {
      type: "text",
      "aria-label": "Name of this version",
      placeholder: "a name",
      spellcheck: "false",
    });
    this.version = make("select", {
      "aria-label": "Saved prompts",
      onchange: () => this.send("load", { name: this.version.value }),
    });
    const keep = make("button", {
      type: "button",
      class: "nb-button",
      text: "Save",
      title: "Write the prompts into a text file of this name",
      onclick: () => this.send("save", { name: this.name.value }),
    });
    return [
      make(
        "label",
        { class: "nb-setting" },
        make("span", { class: "nb-setting-name", text: "Saved prompts" }),
        this.version,
      ),
      make(
        "label",
        { class: "nb-setting" },
        make("span", { class: "nb-setting-name", text: "Save as" }),
        make("span", { class: "nb-save" }, this.name, keep),
      ),
    ];
  }

  buildMain() {
    this.headline = make("h3", { class: "nb-title", "aria-live": "polite" });
    this.estimate = make("div", { class: "nb-muted nb-estimate", "aria-live": "polite" });
    this.count = make("button", {
      type: "button",
      class: "nb-button",
      text: "Count tokens",
      title: "Caption the images of these units, and count what the language model would be sent",
      onclick: () => this.send("count"),
    });
    this.summary = make("div", { class: "nb-reason", "aria-live": "polite" });
    this.table = make("table", { class: "nb-table nb-answers" });
    const editors = make(
      "div",
      { class: "nb-editors" },
      this.editor("simplify", "Simplify a caption", 7),
      this.editor("summarise", "Summarise what they share", 7),
      this.editor("relabel", "One label for several", 5),
      this.editor("paint", "Paint a candidate", 5),
    );
    const examples = make(
      "details",
      { class: "nb-examples" },
      make("summary", { text: "Few-shot examples" }),
      this.editor("examples", "Captions, one per line; then -> and their label; an empty line between examples", 14),
    );
    return [
      this.headline,
      editors,
      examples,
      make("div", { class: "nb-row" }, this.estimate, this.count),
      this.summary,
      make("div", { class: "nb-scrolled" }, this.table),
    ];
  }

  // A text bound to a trait, with what is wrong with it beside it.
  editor(trait, label, lines) {
    const area = make("textarea", { rows: lines, "aria-label": label, spellcheck: "false" });
    area.addEventListener("input", () => this.set({ [trait]: area.value }));
    this.controls.push(() => {
      if (area.value !== this.get(trait)) area.value = this.get(trait); // what is being typed keeps its caret
    });
    return make(
      "label",
      { class: "nb-setting nb-editor" },
      make("span", { class: "nb-setting-name", text: label }),
      area,
      this.note(trait),
      this.problem(trait),
    );
  }

  note(trait) {
    const text = make("span", { class: "nb-muted nb-small" });
    this.controls.push(() => {
      text.textContent = this.get("notes")[trait] ?? "";
    });
    return text;
  }

  problem(trait) {
    const text = make("span", { class: "nb-problem", role: "alert" });
    this.controls.push(() => {
      text.textContent = this.get("problems")[trait] ?? "";
    });
    return text;
  }

  listen() {
    super.listen();
    this.on([...TEXTS, "temperature", "candidates", "chat", "chats", "problems"], () => this.showControls());
    this.on([...SHOWN, "running", "problems"], () => this.show());
  }

  showControls() {
    super.showControls();
    this.showRun();
  }

  showRun() {
    super.showRun();
    if (Object.keys(this.get("problems")).length) this.run.disabled = true;
  }

  show() {
    this.headline.replaceChildren(...unitTitle(this.get("layer"), `unit ${this.get("unit")}`));
    if (this.chosen !== document.activeElement) this.chosen.value = this.get("chosen");
    options(this.version, this.get("versions"), this.get("version"));
    this.estimate.textContent = this.get("estimate");
    this.count.hidden = !this.get("countable");
    this.count.disabled = this.root?.hasAttribute("data-running") ?? false;
    this.summary.textContent = this.get("summary");
    this.showTable(this.get("rows"));
  }

  showTable(rows) {
    if (!rows.length) return this.table.replaceChildren();
    const truth = truthKnown(rows);
    const head = tableHead(columnHeads(truth, this.get("compared")));
    const line = (row) =>
      make(
        "tr",
        { class: row.changed ? "nb-changed" : "", "data-unit": row.unit },
        make(
          "th",
          { scope: "row" },
          make("button", {
            type: "button",
            class: "nb-unit-link",
            text: row.unit,
            title: "Show this unit",
            onclick: () => this.goTo(row.unit),
          }),
        ),
        ...(truth ? [make("td", { text: row.truth ?? "" })] : []),
        this.answer(row.before, "nb-removed"),
        this.answer(row.after, "nb-added"),
      );
    this.table.replaceChildren(head, make("tbody", {}, ...rows.map(line)));
  }

  // The words of a description, those that the other one lacks marked.
  answer({ words, right, score, reason }, kind) {
    if (reason) return make("td", { class: "nb-muted", text: reason });
    const spans = markedWords(words, kind).flatMap(([text, name]) => [make("span", { class: name, text }), " "]);
    return make("td", {}, make("span", { class: "nb-said-small" }, ...spans), ...truthMark(right), ...scoreMark(score));
  }
}

export default widget(PromptsView);
