/* What every view of neuronbench.widgets is made of; Python puts it in front of each view's own file.
   Text from files, models and people is only ever set through textContent. */

const LINE = 2; // px of a picture, the line around the part of a map above the threshold

/* ---------------------------------------------------------------- elements */

function make(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "text") node.textContent = value;
    else if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}

function drawing(tag, attributes = {}, text = null) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  if (text !== null) node.textContent = text;
  return node;
}

function options(select, values, chosen) {
  select.replaceChildren(...values.map((value) => make("option", { value, text: value })));
  select.value = chosen;
}

function field(label, control, ...rest) {
  return make("label", { class: "nb-field" }, make("span", { text: label }), control, ...rest);
}

function numberInput(label, min, onchange) {
  return make("input", { type: "number", class: "nb-number", min, "aria-label": label, onchange });
}

function key(name) {
  return make("kbd", { text: name });
}

function save(name, type, content) {
  const address = URL.createObjectURL(new Blob([content], { type }));
  make("a", { href: address, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(address), 1000);
}

/* ---------------------------------------------------------------- numbers */

function readable(value) {
  if (value === null || !Number.isFinite(value)) return "–";
  const size = Math.abs(value);
  if (size >= 1e5 || (size < 1e-3 && size > 0)) return value.toExponential(1);
  return value.toFixed(size >= 100 ? 1 : size >= 1 ? 2 : 3);
}

function percent(share) {
  return `${Math.round(100 * share)} %`;
}

/* ---------------------------------------------------------------- pictures */

function bytesOf(view) {
  return new Uint8Array(view.buffer, view.byteOffset, view.byteLength);
}

function bitmaps(pictures) {
  return Promise.all(pictures.map((bytes) => createImageBitmap(new Blob([bytes], { type: "image/jpeg" }))));
}

function canvasOf(bitmap) {
  const canvas = make("canvas", { width: bitmap.width, height: bitmap.height });
  canvas.getContext("2d").drawImage(bitmap, 0, 0);
  return canvas;
}

// The map's colours where the pixel is inside, and a line around that region; `inside` has one number per pixel, 0 for outside.
function paintMap(canvas, values, colours, inside, opacity) {
  const { width, height } = canvas;
  const context = canvas.getContext("2d");
  const picture = context.createImageData(width, height);
  for (let y = 0, i = 0; y < height; y++) {
    for (let x = 0; x < width; x++, i++) {
      if (!inside[i]) continue;
      const border = touchesOutside(inside, i, x, y, width, height);
      const colour = 3 * (border ? 255 : values[i]);
      picture.data[4 * i] = colours.getUint8(colour);
      picture.data[4 * i + 1] = colours.getUint8(colour + 1);
      picture.data[4 * i + 2] = colours.getUint8(colour + 2);
      picture.data[4 * i + 3] = 255 * (border ? Math.min(1, 1.6 * opacity) : opacity);
    }
  }
  context.putImageData(picture, 0, 0);
}

function touchesOutside(inside, i, x, y, width, height) {
  return (
    (x >= LINE && !inside[i - LINE]) ||
    (x < width - LINE && !inside[i + LINE]) ||
    (y >= LINE && !inside[i - LINE * width]) ||
    (y < height - LINE && !inside[i + LINE * width])
  );
}

/* ---------------------------------------------------------------- views */

// A view has a `root`; subclasses say which plain keys do something in `actionFor(key, target)`.
class View {
  constructor(model) {
    this.model = model;
  }

  remove() {
    this.root.remove();
  }

  get(name) {
    return this.model.get(name);
  }

  set(values) {
    for (const [name, value] of Object.entries(values)) this.model.set(name, value);
    this.model.save_changes();
  }

  on(names, act) {
    names.forEach((name) => this.model.on(`change:${name}`, act));
  }

  // The picture below the view is for who reads without a kernel; one that answers has no need of it.
  hideStill() {
    if (this.still) return;
    this.still = make("style", { text: `[data-nb-still="${CSS.escape(this.get("still_id"))}"] { display: none; }` });
    document.head.append(this.still);
  }

  listenToKeys() {
    this.root.addEventListener("keydown", (event) => this.press(event));
    this.root.addEventListener("pointerdown", (event) => this.takeFocus(event));
  }

  press(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || (event.shiftKey && event.key === "Enter")) return; // save, run the cell
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
class UnitBar {
  constructor(view) {
    this.view = view;
    this.layer = make("select", { "aria-label": "Layer", onchange: () => view.setLayer(this.layer.value) });
    this.number = numberInput("Unit number", 0, () => view.goTo(this.number.valueAsNumber));
    this.total = make("span", { class: "nb-muted" });
    this.slider = make("input", { type: "range", class: "nb-slider", min: "0", step: "1", "aria-label": "Unit" });
    this.slider.addEventListener("input", () => view.goTo(this.slider.valueAsNumber));
    const step = (label, text, by) => make("button", { type: "button", class: "nb-step", "aria-label": label, title: label, text, onclick: () => view.move(by) });
    const [before, after] = [step("Previous unit", "‹", -1), step("Next unit", "›", 1)];
    this.root = make("div", { class: "nb-bar" }, field("Layer", this.layer), field("Unit", this.number, this.total), before, this.slider, after);
  }

  show() {
    const [unit, count] = [this.view.get("unit"), this.view.get("unit_count")];
    options(this.layer, this.view.get("layers"), this.view.get("layer"));
    this.number.max = this.slider.max = count - 1;
    this.number.value = this.slider.value = unit;
    this.total.textContent = `of ${count}`;
  }
}
