/* The view of neuronbench.widgets.compare.Compare. The files parts.js and tuner.js come before it. */

export default {
  render({ model, el }) {
    const view = new CompareView(model, el);
    return () => view.remove();
  },
};

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
    this.query = make("input", { type: "search", placeholder: "Search descriptions", "aria-label": "Search descriptions or unit number", spellcheck: "false" });
    this.query.addEventListener("input", () => this.set({ query: this.query.value }));
    this.chosen = make("input", { type: "text", class: "nb-units", "aria-label": "Units in the table", placeholder: "all", title: "Numbers and ranges, such as 3, 5-9", spellcheck: "false" });
    this.chosen.addEventListener("change", () => this.set({ chosen: this.chosen.value }));
    this.differ = make("input", { type: "checkbox", onchange: () => this.set({ only_disagreeing: this.differ.checked }) });
    this.found = make("span", { class: "nb-muted", "aria-live": "polite" });
    const button = (text, kind, title) => make("button", { type: "button", class: "nb-button", text, title, onclick: () => this.send(kind) });
    const filter = make(
      "div",
      { class: "nb-row" },
      make("div", { class: "nb-controls" }, field("Units", this.chosen), this.query, make("label", { class: "nb-field" }, this.differ, make("span", { text: "only where they disagree" })), this.found),
      make("div", { class: "nb-controls" }, button("Export CSV", "csv", "Download the descriptions listed"), button("Save page", "page", "Download the table as a page that needs no kernel")),
    );
    this.table = make("table", { class: "nb-table" });
    this.seen = new IntersectionObserver((entries) => this.fetch(entries), { rootMargin: "400px" });
    return [this.headline, filter, make("div", { class: "nb-scrolled nb-tall" }, this.table)];
  }

  remove() {
    this.seen.disconnect();
    super.remove();
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
    const count = rows.length === 1 ? "1 unit" : `${rows.length} units`;
    this.headline.replaceChildren(make("span", { class: "nb-muted", text: this.get("layer") }), ` ${count}`);
    this.showFilter();
    this.seen.disconnect();
    this.strips.clear();
    const truth = rows.some((row) => row.truth !== null);
    const heads = ["unit", "exemplars", ...(truth ? ["truth"] : []), ...this.get("names")];
    const head = make("thead", {}, make("tr", {}, ...heads.map((text) => make("th", { scope: "col", text }))));
    const body = rows.filter((row) => listed.has(row.unit)).map((row) => this.row(row, truth));
    this.table.replaceChildren(head, make("tbody", {}, ...body));
    this.strips.forEach((strip) => this.seen.observe(strip));
    this.root.dataset.listed = listed.size;
  }

  showFilter() {
    if (this.query !== document.activeElement) this.query.value = this.get("query");
    if (this.chosen !== document.activeElement) this.chosen.value = this.get("chosen");
    this.differ.checked = this.get("only_disagreeing");
    const [listed, all] = [this.get("listed").length, this.get("rows").length];
    this.found.textContent = listed === all ? "" : `${listed} of ${all}`;
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
    const said_ = make("span", { class: "nb-said-small", text: said });
    return make("td", {}, said_, ...mark(right), ...(score === null ? [] : [make("span", { class: "nb-score", text: readable(score) })]));
  }

  /* what Python sends: pictures of the rows that come into view, and files to keep */

  fetch(entries) {
    const units = entries.filter((entry) => entry.isIntersecting).map((entry) => Number(entry.target.dataset.unit));
    const missing = units.filter((unit) => !this.pictures.has(this.nameOf(unit)));
    missing.forEach((unit) => this.pictures.set(this.nameOf(unit), []));
    if (missing.length) this.send("pictures", { layer: this.get("layer"), units: missing, pool: this.get("pool") });
  }

  nameOf(unit, layer = this.get("layer"), pool = this.get("pool")) {
    return JSON.stringify([layer, unit, pool]);
  }

  async receive(content, buffers) {
    if (content.kind === "file") save(content.name, content.type, content.text);
    if (content.kind !== "pictures") return;
    const canvases = (await bitmaps(buffers)).map((bitmap) => thumbnail(bitmap));
    const name = this.nameOf(content.unit, content.layer, content.pool);
    this.pictures.set(name, canvases);
    if (name === this.nameOf(content.unit)) this.strips.get(content.unit)?.replaceChildren(...canvases);
  }
}
