/* What every view of neuronbench.widgets is made of.
   Text from files, models and people is only ever set through textContent. */

const LINE = 2; // px of a picture, the line around the part of a map above the threshold
const COPIED = 1600; // ms that the button says so

/* ---------------------------------------------------------------- numbers */

export function readable(value) {
  if (value === null || !Number.isFinite(value)) return "–";
  const size = Math.abs(value);
  if (size >= 1e5 || (size < 1e-3 && size > 0)) return value.toExponential(1);
  return value.toFixed(size >= 100 ? 1 : size >= 1 ? 2 : 3);
}

export function percent(share) {
  return `${Math.round(100 * share)} %`;
}

export function within(value, lowest, highest) {
  return Math.min(Math.max(value, lowest), highest);
}

// A name that no other view has, two of the same kind on one page included: each has a copy of this file, so a count would not do.
export function unique(prefix) {
  return `${prefix}-${Math.random().toString(36).slice(2)}`;
}

/* ---------------------------------------------------------------- pixels */

export function bytesOf(view) {
  return new Uint8Array(view.buffer, view.byteOffset, view.byteLength);
}

// Whether a pixel lies within LINE of the edge of its region; `inside` has one number per pixel, 0 for outside.
export function touchesOutside(inside, i, x, y, width, height) {
  return (
    (x >= LINE && !inside[i - LINE]) ||
    (x < width - LINE && !inside[i + LINE]) ||
    (y >= LINE && !inside[i - LINE * width]) ||
    (y < height - LINE && !inside[i + LINE * width])
  );
}

export function setPixel(pixels, i, red, green, blue, opacity) {
  pixels[4 * i] = red;
  pixels[4 * i + 1] = green;
  pixels[4 * i + 2] = blue;
  pixels[4 * i + 3] = opacity;
}

// The map's colours where the pixel is inside, and a line around that region; `colours` is a DataView of 256 times red, green, blue.
export function colourMap(pixels, width, height, values, colours, inside, opacity) {
  for (let y = 0, i = 0; y < height; y++) {
    for (let x = 0; x < width; x++, i++) {
      if (!inside[i]) continue;
      const border = touchesOutside(inside, i, x, y, width, height);
      const at = 3 * (border ? 255 : values[i]);
      const share = border ? Math.min(1, 1.6 * opacity) : opacity;
      setPixel(pixels, i, colours.getUint8(at), colours.getUint8(at + 1), colours.getUint8(at + 2), 255 * share);
    }
  }
}

/* ---------------------------------------------------------------- elements */

export function make(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "text") node.textContent = value;
    else if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}

export function drawing(tag, attributes = {}, text = null) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  if (text !== null) node.textContent = text;
  return node;
}

export function options(select, values, chosen) {
  select.replaceChildren(...values.map((value) => make("option", { value, text: value })));
  select.value = chosen;
}

export function field(label, control, ...rest) {
  return make("label", { class: "nb-field" }, make("span", { text: label }), control, ...rest);
}

export function numberInput(label, min, onchange) {
  return make("input", { type: "number", class: "nb-number", min, "aria-label": label, onchange });
}

// A search field among descriptions; `onsearch` gets what is typed.
export function searchInput(onsearch) {
  const input = make("input", {
    type: "search",
    placeholder: "Search descriptions",
    "aria-label": "Search descriptions or unit number",
    spellcheck: "false",
  });
  input.addEventListener("input", () => onsearch(input.value));
  return input;
}

export function key(name) {
  return make("kbd", { text: name });
}

export function tableHead(texts) {
  return make("thead", {}, make("tr", {}, ...texts.map((text) => make("th", { scope: "col", text }))));
}

// The words "LAYER unit 5" of a headline.
export function unitTitle(layer, text) {
  return [make("span", { class: "nb-muted", text: layer }), ` ${text}`];
}

export function save(name, type, content) {
  const address = URL.createObjectURL(new Blob([content], { type }));
  make("a", { href: address, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(address), 1000);
}

/* ---------------------------------------------------------------- code to copy */

// The clipboard is closed to pages that came over plain HTTP from another machine; there a selection is copied.
async function copy(text, near) {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  const area = make("textarea", { class: "nb-copied" });
  area.value = text;
  near.append(area);
  area.select();
  document.execCommand("copy");
  area.remove();
}

// A button that copies the trait `code` of a view, and says so for a moment.
export function copyButton(view) {
  const button = make("button", { type: "button", class: "nb-button", text: "Copy as code" });
  button.addEventListener("click", async () => {
    await copy(view.get("code"), view.root);
    button.textContent = "Copied";
    view.later(() => {
      button.textContent = "Copy as code";
    }, COPIED);
  });
  return button;
}

/* ---------------------------------------------------------------- pictures */

export function bitmaps(pictures) {
  return Promise.all(pictures.map((bytes) => createImageBitmap(new Blob([bytes], { type: "image/jpeg" }))));
}

export function canvasOf(bitmap) {
  const canvas = make("canvas", { width: bitmap.width, height: bitmap.height });
  canvas.getContext("2d").drawImage(bitmap, 0, 0);
  return canvas;
}

// All pixels of a canvas, set by `fill(pixels, width, height)`; what it leaves is transparent.
export function paint(canvas, fill) {
  const { width, height } = canvas;
  const context = canvas.getContext("2d");
  const picture = context.createImageData(width, height);
  fill(picture.data, width, height);
  context.putImageData(picture, 0, 0);
}

/* ---------------------------------------------------------------- views */

// What anywidget asks of a module: it calls `render`, and what `render` gives when the view goes.
export function widget(Kind) {
  return {
    render({ model, el }) {
      const view = new Kind(model, el);
      return () => view.remove();
    },
  };
}

// Whether a key belongs to the page whatever the view does: it saves, or runs the cell.
export function isThePages(event) {
  return event.ctrlKey || event.metaKey || event.altKey || (event.shiftKey && event.key === "Enter");
}

// A view has a `root`; subclasses say which plain keys do something in `actionFor(key, target)`.
export class View {
  constructor(model) {
    this.model = model;
    this.endings = []; // what takes off the listeners and observers of this view
    this.ended = false;
  }

  remove() {
    this.ended = true;
    clearTimeout(this.timer);
    for (const end of this.endings.splice(0)) end();
    this.root.remove();
  }

  get(name) {
    return this.model.get(name);
  }

  set(values) {
    for (const [name, value] of Object.entries(values)) this.model.set(name, value);
    this.model.save_changes();
  }

  /* what ends with the view */

  hear(event, act) {
    this.model.on(event, act);
    this.endings.push(() => this.model.off(event, act));
  }

  on(names, act) {
    for (const name of names) this.hear(`change:${name}`, act);
  }

  observe(observer, element) {
    observer.observe(element);
    this.endings.push(() => observer.disconnect());
    return observer;
  }

  // A view has one timer: a later call takes the place of an earlier one.
  later(act, milliseconds) {
    clearTimeout(this.timer);
    if (!this.ended) this.timer = setTimeout(act, milliseconds);
  }

  // The picture below the view is for who reads without a kernel; one that answers has no need of it.
  hideStill() {
    if (this.still || this.ended) return;
    this.still = make("style", { text: `[data-nb-still="${CSS.escape(this.get("still_id"))}"] { display: none; }` });
    document.head.append(this.still);
    this.endings.push(() => this.still.remove());
  }

  /* keys */

  listenToKeys() {
    this.root.addEventListener("keydown", (event) => this.press(event));
    this.root.addEventListener("pointerdown", (event) => this.takeFocus(event));
  }

  press(event) {
    if (isThePages(event)) return;
    event.stopPropagation(); // a plain key is ours: JupyterLab's command mode would cut, copy or delete the cell
    const act = this.actionFor(event.key, event.target);
    if (!act) return;
    event.preventDefault();
    act();
  }

  // A click anywhere in the view makes its keys work; JupyterLab would keep the focus on the cell.
  takeFocus(event) {
    event.stopPropagation();
    if (!event.target.closest("input, select, button, textarea, pre")) this.root.focus({ preventScroll: true });
  }
}

/* ---------------------------------------------------------------- the bar that chooses a unit */

// For a view with the traits layers, layer, unit and unit_count, and with `setLayer`, `goTo` and `move`.
export class UnitBar {
  constructor(view) {
    this.view = view;
    this.layer = make("select", { "aria-label": "Layer", onchange: () => view.setLayer(this.layer.value) });
    this.number = numberInput("Unit number", 0, () => view.goTo(this.number.valueAsNumber));
    this.total = make("span", { class: "nb-muted" });
    this.slider = make("input", { type: "range", class: "nb-slider", min: "0", step: "1", "aria-label": "Unit" });
    this.slider.addEventListener("input", () => view.goTo(this.slider.valueAsNumber));
    this.root = make(
      "div",
      { class: "nb-bar" },
      field("Layer", this.layer),
      field("Unit", this.number, this.total),
      this.step("Previous unit", "‹", -1),
      this.slider,
      this.step("Next unit", "›", 1),
    );
  }

  step(label, text, by) {
    const onclick = () => this.view.move(by);
    return make("button", { type: "button", class: "nb-step", "aria-label": label, title: label, text, onclick });
  }

  show() {
    const [unit, count] = [this.view.get("unit"), this.view.get("unit_count")];
    options(this.layer, this.view.get("layers"), this.view.get("layer"));
    this.number.max = this.slider.max = count - 1;
    this.number.value = this.slider.value = unit;
    this.total.textContent = `of ${count}`;
  }
}
