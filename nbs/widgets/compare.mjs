/* The view of neuronbench.widgets.compare.Compare. */

import { bitmaps, field, make, save, searchInput, tableHead, unitTitle, widget } from "./parts.mjs";
import { scoreMark, TunerView, thumbnail, truthKnown, truthMark } from "./tuner.mjs";

export function nameOfPictures(layer, unit, pool) {
  return JSON.stringify([layer, unit, pool]);
}

export function columnHeads(truth, names) {
  return ["unit", "exemplars", ...(truth ? ["truth"] : []), ...names];
}

export function unitCount(count) {
  return count === 1 ? "1 unit" : `${count} units`;
}

class CompareView extends TunerView {
  constructor(model, el) {
    super(model, el);
    this.root.classList.add("nb-one-column");
  }

  get kind() {
    return "nb-compare";
  }

  get title() {
    return "Comparison of descriptions";
  }

  buildSide() {
    return [];
  }

  buildMain() {
    this.strips = new Map(); // unit -> the element with its pictures
    this.pictures = new Map(); // name of layer, unit and pooling -> canvases that have arrived
    this.headline = make("h3", { class: "nb-title" });
    this.query = searchInput((query) => this.set({ query }));
    this.chosen = make("input", {
      type: "text",
      class: "nb-units",
      "aria-label": "Units in the table",
      placeholder: "all",
      title: "Numbers and ranges, such as 3, 5-9",
      spellcheck: "false",
    });
    this.chosen.addEventListener("change", () => this.set({ chosen: this.chosen.value }));
    this.differ = make("input", {
      type: "checkbox",
      onchange: () => this.set({ only_disagreeing: this.differ.checked }),
    });
    this.hits = make("span", { class: "nb-muted", "aria-live": "polite" });
    const button = (text, kind, title) =>
      make("button", { type: "button", class: "nb-button", text, title, onclick: () => this.send(kind) });
    const filter = make(
      "div",
      { class: "nb-row" },
      make(
        "div",
        { class: "nb-controls" },
        field("Units", this.chosen),
        this.query,
        make("label", { class: "nb-field" }, this.differ, make("span", { text: "only where they disagree" })),
        this.hits,
      ),
      make(
        "div",
        { class: "nb-controls" },
        button("Export CSV", "csv", "Download the descriptions listed"),
        button("Save page", "page", "Download the table as a page that needs no kernel"),
      ),
    );
    this.table = make("table", { class: "nb-table" });
    this.seen = new IntersectionObserver((entries) => this.fetch(entries), { rootMargin: "400px" });
    this.endings.push(() => this.seen.disconnect());
    return [this.headline, filter, make("div", { class: "nb-scrolled nb-tall" }, this.table)];
  }

  listen() {
    super.listen();
    this.on(["rows", "names", "listed", "layer", "pool"], () => this.show());
    this.on(["query", "only_disagreeing", "chosen"], () => this.showFilter());
  }

  actionFor(name, target) {
    return target.matches("input, button, summary") ? null : { "/": () => this.query.focus() }[name];
  }

  show() {
    const [rows, listed] = [this.get("rows"), new Set(this.get("listed"))];
    const truth = truthKnown(rows);
    this.headline.replaceChildren(...unitTitle(this.get("layer"), unitCount(rows.length)));
    this.showFilter();
    this.seen.disconnect();
    this.strips.clear();
    const head = tableHead(columnHeads(truth, this.get("names")));
    const body = rows.filter((row) => listed.has(row.unit)).map((row) => this.row(row, truth));
    this.table.replaceChildren(head, make("tbody", {}, ...body));
    for (const strip of this.strips.values()) this.seen.observe(strip);
    this.root.dataset.listed = listed.size;
  }

  showFilter() {
    if (this.query !== document.activeElement) this.query.value = this.get("query");
    if (this.chosen !== document.activeElement) this.chosen.value = this.get("chosen");
    this.differ.checked = this.get("only_disagreeing");
    const [listed, all] = [this.get("listed").length, this.get("rows").length];
    this.hits.textContent = listed === all ? "" : `${listed} of ${all}`;
  }

  row(row, truth) {
    const strip = make("div", { class: "nb-strip", "data-unit": row.unit });
    strip.append(...(this.pictures.get(this.nameOf(row.unit)) ?? []));
    this.strips.set(row.unit, strip);
    const known = truth ? [make("td", { text: row.truth ?? "" })] : [];
    return make(
      "tr",
      { class: row.disagree ? "nb-differ" : "", "data-unit": row.unit },
      make("th", { scope: "row", text: row.unit }),
      make("td", { class: "nb-pictures" }, strip),
      ...known,
      ...row.answers.map((answer) => this.answer(answer)),
    );
  }

  answer({ said, score, right, reason }) {
    if (said === null) return make("td", { class: "nb-muted", text: reason || "not described" });
    const words = make("span", { class: "nb-said-small", text: said });
    return make("td", {}, words, ...truthMark(right), ...scoreMark(score));
  }

  /* what Python sends: pictures of the rows that come into view, and files to keep */

  fetch(entries) {
    const units = entries.filter((entry) => entry.isIntersecting).map((entry) => Number(entry.target.dataset.unit));
    const missing = units.filter((unit) => !this.pictures.has(this.nameOf(unit)));
    for (const unit of missing) this.pictures.set(this.nameOf(unit), []);
    if (missing.length) this.send("pictures", { layer: this.get("layer"), units: missing, pool: this.get("pool") });
  }

  nameOf(unit) {
    return nameOfPictures(this.get("layer"), unit, this.get("pool"));
  }

  async receive(content, buffers) {
    if (content.kind === "file") save(content.name, content.type, content.text);
    if (content.kind !== "pictures") return;
    const canvases = (await bitmaps(buffers)).map((bitmap) => thumbnail(bitmap));
    const name = nameOfPictures(content.layer, content.unit, content.pool);
    this.pictures.set(name, canvases);
    if (name === this.nameOf(content.unit)) this.strips.get(content.unit)?.replaceChildren(...canvases);
  }
}

export default widget(CompareView);
