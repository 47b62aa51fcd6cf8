/* The list of a layer's units with their descriptions, and what can be done with it: choose, search, sort, pin. */

import { field, key, make, options, readable, save, searchInput, UnitBar, unitTitle, View, within } from "./parts.mjs";

const ROW_HEIGHT = 32; // px, one line of the list of units; units.css uses the same
const PAGE = 10; // units that PageUp and PageDown skip
const SPARE = 4; // lines drawn beyond each end of what is in view

/* ---------------------------------------------------------------- units, in the order of the list */

// The unit some steps along the list; from a unit that is not in it, its first, and undefined where the list is empty.
export function along(order, unit, steps) {
  const here = order.indexOf(unit);
  return order[here < 0 ? 0 : within(here + steps, 0, order.length - 1)];
}

export function toggled(pinned, layer, unit) {
  const others = pinned.filter(([l, u]) => l !== layer || u !== unit);
  return others.length < pinned.length ? others : [...others, [layer, unit]];
}

// [first, last[ of the lines to draw, of `count`, in a list of some height that is scrolled so far.
export function linesInView(scrolled, height, count) {
  const first = Math.max(Math.floor(scrolled / ROW_HEIGHT) - SPARE, 0);
  return [first, Math.min(first + Math.ceil(height / ROW_HEIGHT) + 2 * SPARE, count)];
}

// How far to scroll, as little as can be, so that the line at a place is in view.
export function scrolledTo(place, scrolled, height) {
  const top = place * ROW_HEIGHT;
  return top < scrolled ? Math.max(top, 0) : Math.max(scrolled, top + ROW_HEIGHT - height);
}

/* ---------------------------------------------------------------- the view */

// For the traits of UnitList. Subclasses give `kind`, `spoken` and `buildMain`, which has `buildHead`, and call `start` when they are built;
// they add to `hints`, `browseAction`, `listen` and `refresh`.
export class UnitsView extends View {
  constructor(model, el) {
    super(model);
    this.root = this.build();
    el.append(this.root);
  }

  start() {
    this.listen();
    this.refresh();
  }

  /* what is where */

  build() {
    this.bar = new UnitBar(this);
    return make(
      "div",
      { class: `nb-view nb-units ${this.kind}`, tabindex: "0", role: "application", "aria-label": this.spoken },
      this.bar.root,
      make("div", { class: "nb-body" }, this.buildSide(), this.buildMain()),
      make("div", { class: "nb-hints", "aria-label": "Keyboard" }, ...this.hints().map(hint)),
    );
  }

  buildSide() {
    this.query = searchInput((query) => this.set({ query }));
    this.sort = make("select", {
      "aria-label": "Order of the list",
      onchange: () => this.set({ sort: this.sort.value }),
    });
    this.method = make("select", {
      "aria-label": "Method shown in the list",
      onchange: () => this.set({ method: this.method.value }),
    });
    this.methodField = field("Method", this.method);
    this.hits = make("div", { class: "nb-hits nb-muted nb-small", "aria-live": "polite" });
    this.rows = make("div", { class: "nb-rows" });
    this.list = make(
      "div",
      { class: "nb-list", role: "listbox", "aria-label": "Units", onscroll: () => this.showRows() },
      this.rows,
    );
    const order = make("div", { class: "nb-order" }, field("Sort by", this.sort), this.methodField);
    return make("div", { class: "nb-side" }, this.query, order, this.hits, this.list, this.buildPins());
  }

  buildPins() {
    this.pinTitle = make("span", { class: "nb-heading" });
    this.save = make("button", {
      type: "button",
      class: "nb-button",
      text: "Export CSV",
      onclick: () => this.download(),
    });
    this.save.title = "Download the pinned units and their descriptions";
    this.pins = make("div", { class: "nb-pins", role: "list", "aria-label": "Pinned units" });
    return make("div", { class: "nb-pinned" }, make("div", { class: "nb-row" }, this.pinTitle, this.save), this.pins);
  }

  // The name of the unit, with some controls beside the button that pins it, and what is said of it.
  buildHead(...controls) {
    this.title = make("h3", { class: "nb-title", "aria-live": "polite" });
    this.pin = make("button", { type: "button", class: "nb-button nb-pin", onclick: () => this.togglePin() });
    this.descriptions = make("div", { class: "nb-descriptions", role: "list", "aria-label": "Descriptions" });
    const head = make("div", { class: "nb-row" }, this.title, make("div", { class: "nb-row" }, ...controls, this.pin));
    return [head, this.descriptions];
  }

  // [what a key does, its names]
  hints() {
    return [
      ["next", "→", "↓", "j"],
      ["previous", "←", "↑", "k"],
      [`${PAGE} further`, "PgUp", "PgDn"],
      ["first, last", "Home", "End"],
      ["pin", "p"],
      ["search", "/"],
    ];
  }

  /* what changes what */

  listen() {
    this.on(["layers", "layer", "unit_count", "unit", "order", "table", "method", "sort", "query"], () =>
      this.refresh(),
    );
    this.on(["layer", "unit"], () => this.scrollToUnit());
    this.on(["order"], () => this.scrollAsSorted());
    this.on(["pinned"], () => this.showPins());
    this.listenToKeys();
  }

  setLayer(layer) {
    this.set({ layer, unit: 0 });
  }

  goTo(unit) {
    if (Number.isFinite(unit)) this.choose(within(Math.round(unit), 0, this.get("unit_count") - 1));
    this.showBar();
  }

  choose(unit) {
    this.set({ unit });
  }

  // Along the list as it is sorted and searched.
  move(steps) {
    const unit = along(this.get("order"), this.get("unit"), steps);
    if (unit !== undefined) this.goTo(unit);
  }

  togglePin(layer = this.get("layer"), unit = this.get("unit")) {
    this.set({ pinned: toggled(this.get("pinned"), layer, unit) });
  }

  download() {
    save("pinned_units.csv", "text/csv", this.get("pins_csv"));
  }

  /* keys */

  actionFor(name, target) {
    if (target.matches("input[type=search]")) return this.searchAction(name);
    if (target.matches("select, input[type=number]")) return null;
    if (target.matches("input[type=range]") && name.startsWith("Arrow")) return null;
    const pressing = target.matches("button, input[type=checkbox], summary") && (name === " " || name === "Enter");
    return pressing ? null : this.browseAction(name);
  }

  searchAction(name) {
    return {
      ArrowDown: () => this.move(1),
      ArrowUp: () => this.move(-1),
      Enter: () => this.endSearch(),
      Escape: () => this.clearSearch(),
    }[name];
  }

  endSearch() {
    if (!this.get("order").includes(this.get("unit"))) this.move(0);
    this.root.focus({ preventScroll: true });
  }

  clearSearch() {
    this.query.value = "";
    this.set({ query: "" });
    this.root.focus({ preventScroll: true });
  }

  browseAction(name) {
    const all = this.get("order").length;
    return {
      ArrowRight: () => this.move(1),
      ArrowDown: () => this.move(1),
      j: () => this.move(1),
      ArrowLeft: () => this.move(-1),
      ArrowUp: () => this.move(-1),
      k: () => this.move(-1),
      PageDown: () => this.move(PAGE),
      PageUp: () => this.move(-PAGE),
      Home: () => this.move(-all),
      End: () => this.move(all),
      p: () => this.togglePin(),
      "/": () => this.query.focus(),
    }[name];
  }

  /* what is shown */

  refresh() {
    this.showBar();
    this.showSide();
    this.showHead();
    this.showPins();
  }

  showBar() {
    this.bar.show();
  }

  showSide() {
    const methods = Object.keys(this.get("table"));
    const order = this.get("order");
    if (this.query !== document.activeElement) this.query.value = this.get("query");
    options(this.sort, ["unit", "highest score", "lowest score"], this.get("sort"));
    options(this.method, methods, this.get("method"));
    this.methodField.hidden = methods.length < 2;
    this.sort.disabled = methods.length === 0;
    this.hits.textContent = this.get("query") ? `${order.length} of ${this.get("unit_count")} units` : "";
    this.rows.style.height = `${order.length * ROW_HEIGHT}px`;
    this.showRows();
  }

  scrollToUnit() {
    const place = this.get("order").indexOf(this.get("unit"));
    this.list.scrollTop = scrolledTo(place, this.list.scrollTop, this.list.clientHeight);
  }

  // What was searched for, or sorted by score, is read from its start.
  scrollAsSorted() {
    if (this.get("query") || this.get("sort") !== "unit") this.list.scrollTop = 0;
    else this.scrollToUnit();
  }

  // Only the lines in view exist, so that thousands of units cost no more than twenty.
  showRows() {
    const order = this.get("order");
    const [first, last] = linesInView(this.list.scrollTop, this.list.clientHeight || 400, order.length);
    const [said, scores] = this.get("table")[this.get("method")] ?? [[], []];
    this.rows.replaceChildren(
      ...order.slice(first, last).map((unit, i) => this.unitRow(unit, first + i, said[unit], scores[unit])),
    );
  }

  unitRow(unit, place, said, score) {
    return make(
      "div",
      {
        class: "nb-unit",
        role: "option",
        "aria-selected": String(unit === this.get("unit")),
        style: `top:${place * ROW_HEIGHT}px`,
        onclick: () => this.goTo(unit),
      },
      make("span", { class: "nb-unit-number", text: unit }),
      make("span", {
        class: said ? "nb-unit-said" : "nb-unit-said nb-muted",
        title: said ?? "",
        text: said ?? "not described",
      }),
      make("span", { class: "nb-unit-score", text: said && known(score) ? readable(score) : "" }),
    );
  }

  showHead() {
    this.title.replaceChildren(...unitTitle(this.get("layer"), `unit ${this.get("unit")}`));
    const rows = this.saidOf(this.get("unit")).map(([method, said, score]) => descriptionRow(method, said, score));
    this.descriptions.replaceChildren(...rows);
    this.descriptions.hidden = rows.length === 0;
  }

  // [method, description, score] of a unit: the best of each method.
  saidOf(unit) {
    const all = Object.entries(this.get("table"));
    return all.filter(([, [said]]) => said[unit]).map(([method, [said, scores]]) => [method, said[unit], scores[unit]]);
  }

  showPins() {
    const pinned = this.get("pinned");
    const here = pinned.some(([layer, unit]) => layer === this.get("layer") && unit === this.get("unit"));
    this.pin.textContent = here ? "★ Pinned" : "☆ Pin";
    this.pin.setAttribute("aria-pressed", String(here));
    this.pinTitle.textContent = `Pinned (${pinned.length})`;
    this.save.disabled = pinned.length === 0;
    this.pins.replaceChildren(...pinned.map(([layer, unit]) => this.pinChip(layer, unit)));
  }

  pinChip(layer, unit) {
    const button = (attributes) => make("button", { type: "button", ...attributes });
    return make(
      "span",
      { class: "nb-chip", role: "listitem" },
      button({
        text: `${layer} · ${unit}`,
        "aria-label": `Show ${layer} unit ${unit}`,
        onclick: () => this.set({ layer, unit }),
      }),
      button({
        class: "nb-remove",
        text: "×",
        "aria-label": `Unpin ${layer} unit ${unit}`,
        onclick: () => this.togglePin(layer, unit),
      }),
    );
  }
}

function known(score) {
  return score !== null && score !== undefined;
}

function hint([text, ...names]) {
  return make("span", {}, ...names.map(key), ` ${text}`);
}

function descriptionRow(method, said, score) {
  return make(
    "div",
    { class: "nb-description", role: "listitem" },
    make("span", { class: "nb-method", text: method }),
    make(
      "span",
      {},
      make("span", { class: "nb-said", text: said }),
      ...(known(score) ? [make("span", { class: "nb-score", title: "Score", text: readable(score) })] : []),
    ),
  );
}
