/* A page and a model as a front end gives them to a view, which count what the view leaves behind. */

import { Window } from "happy-dom";

/* ---------------------------------------------------------------- the model */

// As anywidget's: `get`, `set`, `save_changes`, `send`, `on`, `off`. A trait that Python does not have is an error.
export class FakeModel {
  constructor(traits) {
    this.traits = structuredClone(traits);
    this.heard = []; // [event, listener]
    this.sent = [];
    this.saves = 0;
  }

  get(name) {
    if (!(name in this.traits)) throw new Error(`the model has no trait ${name}`);
    return this.traits[name];
  }

  set(name, value) {
    if (JSON.stringify(this.get(name)) === JSON.stringify(value)) return;
    this.traits[name] = value;
    this.emit(`change:${name}`);
  }

  save_changes() {
    this.saves += 1;
  }

  send(content) {
    this.sent.push(content);
  }

  on(event, listener) {
    if (event.startsWith("change:")) this.get(event.slice("change:".length));
    this.heard.push([event, listener]);
  }

  off(event, listener) {
    this.heard = this.heard.filter(([name, act]) => name !== event || act !== listener);
  }

  emit(event, ...values) {
    for (const [name, act] of [...this.heard]) if (name === event) act(...values);
  }
}

/* ---------------------------------------------------------------- the page */

class Counted {
  static live = new Set();

  constructor(act) {
    this.act = act;
  }

  observe() {
    Counted.live.add(this);
  }

  disconnect() {
    Counted.live.delete(this);
  }
}

class Canvas2D {
  drawImage() {}

  createImageData(width, height) {
    return { data: new Uint8ClampedArray(4 * width * height), width, height };
  }

  putImageData(picture) {
    this.picture = picture;
  }
}

// Every picture that Python sends is this large here.
export const SIDE = 8;

// The one page of this process. Timers run when a test says so.
class Page {
  constructor() {
    this.window = new Window({ url: "http://localhost/" });
    this.document = this.window.document;
    this.timers = new Map(); // number -> what it does
    this.timersMade = 0;
    this.addresses = new Set(); // of objects
    this.copied = [];
    this.listeners = 0; // on what a view did not make: the document, the window, the element it is given
    this.counting();
    this.asGlobals();
  }

  counting() {
    for (const target of [this.window, this.document, this.document.documentElement, this.document.body])
      this.count(target);
  }

  count(target) {
    const [add, remove] = [target.addEventListener.bind(target), target.removeEventListener.bind(target)];
    target.addEventListener = (...how) => {
      this.listeners += 1;
      add(...how);
    };
    target.removeEventListener = (...how) => {
      this.listeners -= 1;
      remove(...how);
    };
  }

  asGlobals() {
    const { window, timers, addresses, copied } = this;
    window.HTMLCanvasElement.prototype.getContext = function () {
      this.context ??= new Canvas2D();
      return this.context;
    };
    URL.createObjectURL = () => {
      const address = `blob:${crypto.randomUUID()}`;
      addresses.add(address);
      return address;
    };
    URL.revokeObjectURL = (address) => addresses.delete(address);
    const globals = {
      window,
      document: window.document,
      CSS: { escape: (text) => text },
      IntersectionObserver: Counted,
      ResizeObserver: Counted,
      createImageBitmap: async () => ({ width: SIDE, height: SIDE }),
      setTimeout: (act) => {
        this.timersMade += 1;
        timers.set(this.timersMade, act);
        return this.timersMade;
      },
      clearTimeout: (number) => timers.delete(number),
      navigator: { clipboard: { writeText: async (text) => copied.push(text) } },
    };
    for (const [name, value] of Object.entries(globals))
      Object.defineProperty(globalThis, name, { value, configurable: true, writable: true });
  }

  // An element such as a front end gives to a view.
  place() {
    const el = this.document.createElement("div");
    this.count(el);
    this.document.body.append(el);
    return el;
  }

  passTime() {
    const due = [...this.timers];
    for (const [number, act] of due) {
      this.timers.delete(number);
      act();
    }
  }

  press(target, key, how = {}) {
    const event = new this.window.KeyboardEvent("keydown", { key, bubbles: true, cancelable: true, ...how });
    target.dispatchEvent(event);
    return event;
  }

  // What is there beyond the elements.
  left() {
    return {
      listeners: this.listeners,
      timers: this.timers.size,
      observers: Counted.live.size,
      addresses: this.addresses.size,
      inHead: this.document.head.children.length,
    };
  }
}

export const page = new Page();

// Until what was promised so far is done, such as pictures that are decoded.
export async function settled() {
  for (let turn = 0; turn < 20; turn++) await null;
}
