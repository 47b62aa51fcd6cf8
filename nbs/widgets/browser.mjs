/* The view of neuronbench.widgets.browser.Browser: it draws what Python sends and tells Python what a person chose. */

import {
  bitmaps,
  bytesOf,
  canvasOf,
  colourMap,
  drawing,
  field,
  make,
  numberInput,
  options,
  paint,
  percent,
  readable,
  widget,
  within,
} from "./parts.mjs";
import { UnitsView } from "./units.mjs";

const MOST = 50; // exemplars at most, as in Python
const REACH = 3; // neighbours fetched ahead on each side
const KEPT = 300; // pictures that are kept, some 80 MB
const MARK = 5; // px, half the width of an exemplar's mark in the histogram

/* ---------------------------------------------------------------- what is fetched */

// The unit, and those whose evidence is fetched ahead: its neighbours, the nearest first; the list's first where the unit is not in it.
export function wanted(order, unit) {
  const here = order.indexOf(unit);
  const near = Array.from({ length: REACH }, (_, i) => [order[here + i + 1], order[here - i - 1]]).flat();
  return [unit, ...(here < 0 ? [order[0]] : near)].filter((other) => other !== undefined);
}

/* ---------------------------------------------------------------- words */

// The pooling that ranks: the one chosen, or the first of a layer that was not recorded so; null for a layer of vectors.
export function poolOnView(recorded, chosen) {
  return recorded.includes(chosen) ? chosen : (recorded[0] ?? null);
}

export function nameOfEvidence({ layer, unit, k, pool }) {
  return JSON.stringify([layer, unit, k, pool]);
}

export function remark({ nonfinite }) {
  if (!nonfinite) return "";
  const images = nonfinite === 1 ? "1 image has" : `${nonfinite} images have`;
  return `${images} a NaN or infinite activation; they are not ranked.`;
}

export function exemplarSpoken(entry, i) {
  return `Exemplar ${i + 1}: ${entry.labels[i]} ${entry.ids[i]}, activation ${readable(entry.activations[i])}`;
}

export function histogramSpoken(entry) {
  return `Histogram of ${entry.total - entry.nonfinite} activations from ${readable(entry.edges[0])} to ${readable(entry.edges.at(-1))}`;
}

export function histogramTitle(entry) {
  const pooled = entry.pool ? `, pooled by ${entry.pool}` : "";
  return `Activations on all ${entry.total} images${pooled} (number of images on a log scale; triangles: the exemplars)`;
}

/* ---------------------------------------------------------------- activation maps */

// Bilinear, positions between pixel centres as in torch's align_corners=False.
export function enlarge(map, height, width, tall, wide) {
  const columns = positions(width, wide);
  const result = new Uint8ClampedArray(tall * wide);
  positions(height, tall).forEach(([top, bottom, down], y) => {
    for (let x = 0; x < wide; x++) {
      const [left, right, share] = columns[x];
      const above = map[top * width + left] * (1 - share) + map[top * width + right] * share;
      const below = map[bottom * width + left] * (1 - share) + map[bottom * width + right] * share;
      result[y * wide + x] = above * (1 - down) + below * down;
    }
  });
  return result;
}

// For each pixel of a large line: the two pixels of the small one that it lies between, and how far it is from the first.
export function positions(small, large) {
  return Array.from({ length: large }, (_, i) => {
    const at = within(((i + 0.5) * small) / large - 0.5, 0, small - 1);
    const first = Math.floor(at);
    return [first, Math.min(first + 1, small - 1), at - first];
  });
}

/* ---------------------------------------------------------------- evidence that has arrived */

export class Kept {
  constructor() {
    this.entries = new Map();
  }

  get(name) {
    const entry = this.entries.get(name);
    if (entry) this.put(name, entry); // the most recently used stay longest
    return entry;
  }

  has(name) {
    return this.entries.has(name);
  }

  put(name, entry) {
    this.entries.delete(name);
    this.entries.set(name, entry);
    const most = Math.max(KEPT / (entry.images.length || 1), 2 * REACH + 2);
    while (this.entries.size > most) this.entries.delete(this.entries.keys().next().value);
  }
}

function enlargeAll(maps, [height, width], pictures) {
  const bytes = bytesOf(maps);
  return pictures.map((bitmap, i) => {
    const map = bytes.subarray(i * height * width, (i + 1) * height * width);
    return enlarge(map, height, width, bitmap.height, bitmap.width);
  });
}

async function decode(message, buffers) {
  const [maps, pictures] = message.map_shape ? [buffers[0], buffers.slice(1)] : [null, buffers];
  const drawn = await bitmaps(pictures);
  return { ...message, bitmaps: drawn, enlarged: maps ? enlargeAll(maps, message.map_shape, drawn) : null };
}

/* ---------------------------------------------------------------- the view */

class BrowserView extends UnitsView {
  constructor(model, el) {
    super(model, el);
    this.kept = new Kept();
    this.asked = null; // the name of the evidence Python is working on
    this.failed = new Map(); // name -> Python's sentence
    this.start();
  }

  get kind() {
    return "nb-browser";
  }

  get spoken() {
    return "Browser of units";
  }

  /* what is where */

  buildMain() {
    this.message = make("div", { class: "nb-message", role: "status" });
    this.grid = make("div", { class: "nb-grid", role: "list", "aria-label": "Exemplars" });
    this.histogramTitle = make("div", { class: "nb-muted nb-small" });
    this.histogram = make("div", { class: "nb-histogram" });
    this.count = numberInput("Number of exemplars", 1, () => this.setCount());
    this.count.max = MOST;
    this.pool = make("select", {
      "aria-label": "Pooling that ranks",
      onchange: () => this.set({ pool: this.pool.value }),
    });
    this.poolField = field("Ranked by", this.pool);
    const head = this.buildHead(this.poolField, field("Exemplars", this.count));
    const [controls, title] = [this.buildControls(), this.histogramTitle];
    return make("div", { class: "nb-main" }, ...head, controls, this.message, this.grid, title, this.histogram);
  }

  buildControls() {
    this.showMap = make("input", {
      type: "checkbox",
      "aria-label": "Show the activation map",
      onchange: () => this.set({ show_map: this.showMap.checked }),
    });
    this.opacity = this.buildShare("Opacity of the map", "opacity");
    this.threshold = this.buildShare("Threshold of the map", "threshold");
    this.opacityText = make("output", { class: "nb-share" });
    this.thresholdText = make("output", {
      class: "nb-share nb-wide",
      title: "The activation above which the map is drawn",
    });
    this.mapFields = make(
      "div",
      { class: "nb-map" },
      make("label", { class: "nb-field" }, this.showMap, make("span", { text: "Activation map" })),
      field("Opacity", this.opacity, this.opacityText),
      field("Threshold", this.threshold, this.thresholdText),
    );
    this.noMap = make("span", { class: "nb-muted", text: "This layer has no activation map." });
    return make("div", { class: "nb-controls" }, this.mapFields, this.noMap);
  }

  buildShare(label, trait) {
    const control = make("input", { type: "range", min: "0", max: "1", step: "0.01", "aria-label": label });
    control.addEventListener("input", () => this.set({ [trait]: control.valueAsNumber }));
    return control;
  }

  hints() {
    const all = super.hints();
    return [...all.slice(0, -1), ["map", "m"], ...all.slice(-1)];
  }

  /* what changes what */

  listen() {
    super.listen();
    this.on(["k", "pool"], () => this.refresh());
    this.on(["opacity", "threshold", "show_map"], () => this.showMaps());
    this.hear("msg:custom", (message, buffers) => {
      this.hideStill();
      this.receive(message, buffers);
    });
    this.observe(new ResizeObserver(() => this.showHistogram()), this.histogram);
  }

  setCount() {
    const count = within(Math.round(this.count.valueAsNumber) || 1, 1, MOST);
    this.count.value = count;
    this.set({ k: count });
  }

  pools() {
    return this.get("pools")[this.get("layer")] ?? [];
  }

  poolOnView() {
    return poolOnView(this.pools(), this.get("pool"));
  }

  choose(unit) {
    this.failed.delete(this.nameOf(unit)); // what failed once may work now
    super.choose(unit);
  }

  browseAction(name) {
    return name === "m" ? () => this.set({ show_map: !this.get("show_map") }) : super.browseAction(name);
  }

  /* what is shown */

  refresh() {
    super.refresh();
    this.showEvidence();
    this.fetch();
  }

  showBar() {
    super.showBar();
    this.count.value = this.get("k");
    options(this.pool, this.pools(), this.poolOnView());
    this.poolField.hidden = this.pools().length < 2;
  }

  /* the evidence */

  nameOf(unit) {
    return nameOfEvidence({ layer: this.get("layer"), unit, k: this.get("k"), pool: this.poolOnView() });
  }

  showEvidence() {
    const name = this.nameOf(this.get("unit"));
    const entry = this.kept.get(name);
    this.root.toggleAttribute("data-waiting", !entry);
    this.message.textContent = entry ? remark(entry) : (this.failed.get(name) ?? "");
    if (!entry || entry === this.shown) return;
    this.shown = entry;
    this.grid.replaceChildren(...entry.images.map((_, i) => this.exemplar(entry, i)));
    this.showMaps();
    this.showHistogram();
    this.root.dataset.layer = entry.layer;
    this.root.dataset.unit = entry.unit; // what is on screen now
  }

  exemplar(entry, i) {
    const { width, height } = entry.bitmaps[i];
    return make(
      "figure",
      {
        class: "nb-exemplar",
        role: "listitem",
        "aria-label": exemplarSpoken(entry, i),
        "data-image": entry.images[i],
        onpointerenter: () => this.point(i, true),
        onpointerleave: () => this.point(i, false),
      },
      make(
        "div",
        { class: "nb-picture" },
        canvasOf(entry.bitmaps[i]),
        make("canvas", { class: "nb-overlay", width, height }),
      ),
      make(
        "figcaption",
        {},
        make("span", { class: "nb-activation", text: readable(entry.activations[i]) }),
        make("span", { class: "nb-label", title: entry.labels[i], text: entry.labels[i] }),
        make("span", { class: "nb-id", title: entry.ids[i], text: entry.ids[i] }),
      ),
    );
  }

  // An exemplar and its mark in the histogram light up together.
  point(i, on) {
    this.grid.children[i]?.classList.toggle("nb-lit", on);
    this.histogram.querySelectorAll(".nb-mark")[i]?.classList.toggle("nb-lit", on);
  }

  showMaps() {
    const [opacity, threshold, on] = [this.get("opacity"), this.get("threshold"), this.get("show_map")];
    const entry = this.shown;
    const spatial = Boolean(entry?.enlarged);
    this.mapFields.hidden = Boolean(entry) && !spatial;
    this.noMap.hidden = !entry || spatial;
    this.showMap.checked = on;
    this.opacity.value = opacity;
    this.threshold.value = threshold;
    this.opacity.disabled = this.threshold.disabled = !on;
    this.opacityText.textContent = percent(opacity);
    this.thresholdText.textContent = spatial ? this.thresholdSpoken(entry, threshold) : percent(threshold);
    this.grid.querySelectorAll(".nb-overlay").forEach((canvas, i) => {
      canvas.hidden = !on || !spatial;
      if (!canvas.hidden) this.drawMap(canvas, entry.enlarged[i], threshold, opacity);
    });
  }

  drawMap(canvas, map, threshold, opacity) {
    const inside = map.map((value) => value >= 255 * threshold);
    paint(canvas, (pixels, width, height) =>
      colourMap(pixels, width, height, map, this.get("colours"), inside, opacity),
    );
  }

  thresholdSpoken(entry, threshold) {
    const [low, high] = entry.map_range;
    return readable(low + threshold * (high - low));
  }

  showHistogram() {
    const entry = this.shown;
    const width = this.histogram.clientWidth;
    if (!entry || !width) return;
    this.histogramTitle.textContent = histogramTitle(entry);
    this.histogram.replaceChildren(drawHistogram(entry, width, (i, on) => this.point(i, on)));
  }

  /* asking Python: one unit at a time, what is on screen first, then its neighbours in the list */

  fetch() {
    if (this.asked) return;
    const unit = wanted(this.get("order"), this.get("unit")).find(
      (u) => !this.kept.has(this.nameOf(u)) && !this.failed.has(this.nameOf(u)),
    );
    if (unit === undefined) return;
    this.asked = this.nameOf(unit);
    this.model.send({ kind: "ask", layer: this.get("layer"), unit, k: this.get("k"), pool: this.poolOnView() });
  }

  async receive(message, buffers) {
    const name = nameOfEvidence(message);
    if (message.kind === "failed") this.failed.set(name, message.sentence);
    else if (!this.kept.has(name)) this.kept.put(name, await decode(message, buffers));
    if (this.ended) return; // while pictures were decoded
    if (this.asked === name) this.asked = null;
    this.showEvidence();
    this.fetch();
  }
}

/* ---------------------------------------------------------------- the histogram */

const HEIGHT = 96; // px of the histogram
const BASE = 66; // px from its top; the bars stand on it
const MARGIN = 4; // px at its left and right

// Where an activation stands, in px from the left of a histogram of some width.
export function across(value, edges, width) {
  const span = edges.at(-1) - edges[0] || 1;
  return MARGIN + ((value - edges[0]) / span) * (width - 2 * MARGIN);
}

// The bars {x, y, width, height} in px; their heights are on a log scale.
export function bars({ counts, edges }, width) {
  const most = Math.log1p(Math.max(...counts, 1));
  return counts.map((count, i) => {
    const height = (Math.log1p(count) / most) * (BASE - 2);
    const [from, to] = [across(edges[i], edges, width), across(edges[i + 1], edges, width)];
    return { x: from + 0.5, y: BASE - height, width: Math.max(to - from - 1, 0.5), height };
  });
}

// The values below the histogram {x, anchor, value}: at its ends and its middle.
export function ticks(edges, width) {
  const [first, span] = [edges[0], edges.at(-1) - edges[0] || 1];
  return [
    { x: MARGIN, anchor: "start", value: first },
    { x: width / 2, anchor: "middle", value: first + span / 2 },
    { x: width - MARGIN, anchor: "end", value: first + span },
  ];
}

function drawHistogram(entry, width, point) {
  const svg = drawing("svg", { width, height: HEIGHT, role: "img", "aria-label": histogramSpoken(entry) });
  svg.append(...bars(entry, width).map((bar, i) => drawBar(bar, entry, i)));
  svg.append(drawing("line", { class: "nb-axis", x1: MARGIN, x2: width - MARGIN, y1: BASE + 0.5, y2: BASE + 0.5 }));
  svg.append(...entry.activations.map((value, i) => exemplarMark(across(value, entry.edges, width), i, point)));
  svg.append(...ticks(entry.edges, width).map(drawTick));
  return svg;
}

function drawBar(bar, { counts, edges }, i) {
  const rect = drawing("rect", { class: "nb-column", ...bar });
  rect.append(drawing("title", {}, `${counts[i]} images from ${readable(edges[i])} to ${readable(edges[i + 1])}`));
  return rect;
}

function drawTick({ x, anchor, value }) {
  return drawing("text", { class: "nb-tick", x, y: BASE + 24, "text-anchor": anchor }, readable(value));
}

function exemplarMark(x, i, point) {
  const mark = drawing("path", { class: "nb-mark", d: `M${x} ${BASE + 1} l${MARK} ${1.6 * MARK} h${-2 * MARK} z` });
  mark.append(drawing("title", {}, `Exemplar ${i + 1}`));
  mark.addEventListener("pointerenter", () => point(i, true));
  mark.addEventListener("pointerleave", () => point(i, false));
  return mark;
}

export default widget(BrowserView);
