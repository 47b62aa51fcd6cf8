/* The view of neuronbench.widgets.crops_tuner.CropsTuner. */

import {
  bitmaps,
  bytesOf,
  canvasOf,
  drawing,
  make,
  options,
  paint,
  percent,
  readable,
  setPixel,
  touchesOutside,
  unitTitle,
  widget,
} from "./parts.mjs";
import { TunerView } from "./tuner.mjs";

const VEIL = 150; // of 255, how dark the image is outside the mask
const HEAT = 140; // of 255, how opaque the map is
const SIDE = 128; // px of a crop's canvas
const ACROSS = 3; // crops side by side; crops_tuner.css uses the same
const ANY = 128; // the level where no image has a threshold

/* ---------------------------------------------------------------- thresholds, bits and boxes */

// The mean of the images' thresholds.
export function level(thresholds) {
  return thresholds.length ? thresholds.reduce((a, b) => a + b, 0) / thresholds.length : ANY;
}

// `count` bits from bit `first` on, the highest of a byte first, as numpy packs them: one byte for each.
export function unpacked(bytes, first, count) {
  const bits = new Uint8Array(count);
  for (let i = 0, at = first; i < count; i++, at++) bits[i] = (bytes[at >> 3] >> (7 - (at & 7))) & 1;
  return bits;
}

// The boxes that do not become crops.
export function leftOut(boxes, taken) {
  const kept = new Set(taken.map(String));
  return boxes.filter((box) => !kept.has(String(box)));
}

// Lines of crops that the image with most of them needs, and never fewer than before, so that the page does not jump while dragging.
export function cropRows(before, boxes) {
  return Math.max(before, ...boxes.map((taken) => Math.ceil(taken.length / ACROSS)));
}

export function boxesSpoken(taken, boxes, threshold) {
  return `${taken} of ${boxes} ${boxes === 1 ? "box" : "boxes"} above ${Math.round(threshold)}`;
}

/* ---------------------------------------------------------------- what lies over an image */

// Dark outside the mask.
export function veil(pixels, i, mask) {
  if (!mask[i]) pixels[4 * i + 3] = VEIL;
}

export function heat(pixels, i, map, colours) {
  const at = 3 * map[i];
  setPixel(pixels, i, colours.getUint8(at), colours.getUint8(at + 1), colours.getUint8(at + 2), HEAT);
}

// Each pixel set by `put(pixels, i)`, and a light line around the mask.
export function outlined(pixels, width, height, mask, put) {
  for (let y = 0, i = 0; y < height; y++) {
    for (let x = 0; x < width; x++, i++) {
      if (mask[i] && touchesOutside(mask, i, x, y, width, height)) setPixel(pixels, i, 255, 255, 255, 210);
      else put(pixels, i);
    }
  }
}

/* ---------------------------------------------------------------- the view */

class CropsView extends TunerView {
  get kind() {
    return "nb-crops-tuner";
  }

  get title() {
    return "Crops tuner";
  }

  buildSide() {
    this.otsu = make("input", { type: "checkbox", "aria-label": "Otsu's threshold" });
    this.otsu.addEventListener("change", () =>
      this.set({ threshold: this.otsu.checked ? null : Math.round(this.level()) }),
    );
    const threshold = this.slider("threshold", "Threshold", {
      min: 0,
      max: 255,
      step: 1,
      help: "The map's own range is 0 to 255; what lies above the threshold is the mask",
    });
    this.thresholdSlider = threshold.querySelector("input");
    this.thresholdText = threshold.querySelector(".nb-share");
    const share = { min: 0, max: 1, step: 0.01, format: percent };
    return [
      make("label", { class: "nb-field" }, this.otsu, make("span", { text: "Otsu's threshold" })),
      threshold,
      this.slider("max_crops", "Crops of an image", { min: 0, max: 10, step: 1, help: "At most, largest first" }),
      this.slider("max_iou", "Maximum IoU", {
        ...share,
        help: "A box that overlaps one already taken by more than this is left out",
      }),
      this.slider("max_cover", "Maximum cover", {
        ...share,
        help: "A box that covers this share of the image is left out",
      }),
      this.slider("min_area", "Minimum area", {
        min: 0,
        max: 0.25,
        step: 0.005,
        format: (x) => `${(100 * x).toFixed(1)} %`,
        help: "A smaller box is left out",
      }),
      this.choice("upsampling", "Map upsampling", "upsamplings", "How the map is enlarged to the image"),
      this.buildOverlay(),
    ];
  }

  // What lies over the images is a matter of looking, no setting: Python does not know of it.
  buildOverlay() {
    this.overlay = make("select", { "aria-label": "Over the images", onchange: () => this.draw() });
    options(this.overlay, ["mask", "map", "nothing"], "mask");
    return make(
      "label",
      { class: "nb-setting nb-apart" },
      make("span", { class: "nb-setting-name", text: "Over the images" }),
      this.overlay,
    );
  }

  buildMain() {
    this.headline = make("h3", { class: "nb-title", "aria-live": "polite" });
    this.ranked = make("div", { class: "nb-muted nb-small" });
    this.legend = make("div", {
      class: "nb-muted nb-small",
      text: "Numbered boxes become crops, shown below each exemplar as the captioner sees them; dashed boxes are left out.",
    });
    this.noMaps = make("div", {
      class: "nb-message",
      text: "This layer has no activation maps, so there are no attention crops: Describe-and-Dissect goes on with the exemplars alone.",
    });
    this.grid = make("div", { class: "nb-grid", role: "list", "aria-label": "Exemplars with their crops" });
    return [this.headline, this.ranked, this.legend, this.noMaps, this.grid];
  }

  listen() {
    super.listen();
    this.on(["threshold", "max_crops", "max_iou", "max_cover", "min_area", "upsampling"], () => this.showControls());
    this.on(["layer", "unit"], () => this.show());
  }

  show() {
    this.headline.replaceChildren(...unitTitle(this.get("layer"), `unit ${this.get("unit")}`));
  }

  showControls() {
    super.showControls();
    const automatic = this.get("threshold") === null;
    this.otsu.checked = automatic;
    this.thresholdSlider.classList.toggle("nb-automatic", automatic);
    if (automatic && this.steps) {
      this.thresholdSlider.value = this.level();
      this.thresholdText.textContent = `${Math.min(...this.steps.thresholds)}–${Math.max(...this.steps.thresholds)}`;
    }
  }

  level() {
    return level(this.steps?.thresholds ?? []);
  }

  /* what Python sends: the exemplars once for a unit, their maps once for an upsampling, and for every change the steps */

  async receive(content, buffers) {
    if (content.kind === "exemplars") await this.setExemplars(content, buffers);
    if (content.kind === "steps") this.setSteps(content, buffers);
  }

  async setExemplars(content, buffers) {
    this.pictures = await bitmaps(buffers);
    this.steps = null;
    this.rows = 1;
    this.tiles = this.pictures.map((bitmap, i) => new Tile(bitmap, content, i));
    this.grid.replaceChildren(...this.tiles.map((tile) => tile.root));
    this.ranked.textContent = content.pool
      ? `Exemplars are ranked by their activation, pooled by ${content.pool}.`
      : "";
    this.noMaps.hidden = content.spatial;
    this.legend.hidden = !content.spatial;
    if (!content.spatial) this.root.dataset.drawn = content.key;
  }

  setSteps(content, buffers) {
    if (!this.tiles || !(buffers[1] ?? this.maps)) return; // sent before this view had asked: its own come next
    this.steps = content;
    this.masks = bytesOf(buffers[0]);
    if (buffers[1]) this.maps = bytesOf(buffers[1]);
    this.draw();
    this.showControls();
    this.root.dataset.drawn = content.key; // the settings that are on screen now
  }

  draw() {
    if (!this.steps) return;
    this.rows = cropRows(this.rows, this.steps.boxes);
    this.grid.style.setProperty("--nb-crop-rows", this.rows);
    const [overlay, colours, pixels] = [this.overlay.value, this.get("colours"), this.steps.side ** 2];
    this.tiles.forEach((tile, i) => {
      tile.drawOverlay(
        overlay,
        this.maps.subarray(i * pixels, (i + 1) * pixels),
        unpacked(this.masks, i * pixels, pixels),
        colours,
      );
      tile.drawBoxes(this.steps.boxes[i], this.steps.found[i], this.steps.thresholds[i]);
    });
  }
}

/* ---------------------------------------------------------------- one exemplar with its crops */

class Tile {
  constructor(bitmap, content, i) {
    const { width, height } = bitmap;
    this.bitmap = bitmap;
    this.overlay = make("canvas", { class: "nb-overlay", width, height });
    this.boxes = drawing("svg", { viewBox: `0 0 ${width} ${height}`, class: "nb-boxes", "aria-hidden": "true" });
    this.crops = make("div", { class: "nb-crops", role: "list", "aria-label": `Crops of exemplar ${i + 1}` });
    this.about = make("span", { class: "nb-id" });
    const spoken = `Exemplar ${i + 1}: ${content.labels[i]} ${content.ids[i]}, activation ${readable(content.activations[i])}`;
    this.root = make(
      "figure",
      { class: "nb-exemplar", role: "listitem", "aria-label": spoken, "data-image": content.images[i] },
      make("div", { class: "nb-picture" }, canvasOf(bitmap), this.overlay, this.boxes),
      make(
        "figcaption",
        { title: content.ids[i] },
        make("span", { class: "nb-activation", text: readable(content.activations[i]) }),
        make("span", { class: "nb-label", title: content.labels[i], text: content.labels[i] }),
        this.about,
      ),
      this.crops,
    );
  }

  drawOverlay(overlay, map, mask, colours) {
    const put = { mask: (pixels, i) => veil(pixels, i, mask), map: (pixels, i) => heat(pixels, i, map, colours) }[
      overlay
    ];
    paint(this.overlay, (pixels, width, height) => put && outlined(pixels, width, height, mask, put));
  }

  drawBoxes(taken, boxes, threshold) {
    const dashed = leftOut(boxes, taken).map((box) => outline(box, "nb-left-out"));
    this.boxes.replaceChildren(...dashed, ...taken.flatMap((box, i) => numbered(box, i)));
    this.about.textContent = boxesSpoken(taken.length, boxes.length, threshold);
    this.crops.replaceChildren(...taken.map((box, i) => this.crop(box, i)));
  }

  // A crop is stretched to the size of the image, as in Python.
  crop([left, top, right, bottom], i) {
    const canvas = make("canvas", {
      class: `nb-crop nb-colour-${i % 5}`,
      role: "listitem",
      "aria-label": `Crop ${i + 1}`,
      width: SIDE,
      height: SIDE,
    });
    canvas.getContext("2d").drawImage(this.bitmap, left, top, right - left, bottom - top, 0, 0, SIDE, SIDE);
    return canvas;
  }
}

function outline([left, top, right, bottom], kind) {
  return drawing("rect", {
    class: kind,
    x: left,
    y: top,
    width: right - left,
    height: bottom - top,
    "vector-effect": "non-scaling-stroke",
  });
}

// The number stands above its box, or below one at the upper edge.
function numbered(box, i) {
  const [left, top, , bottom] = box;
  const colour = `nb-colour-${i % 5}`;
  return [
    outline(box, "nb-halo"),
    outline(box, `nb-box ${colour}`),
    drawing(
      "text",
      { class: `nb-number-of-box ${colour}`, x: left, y: top > 34 ? top - 8 : bottom + 30 },
      String(i + 1),
    ),
  ];
}

export default widget(CropsView);
