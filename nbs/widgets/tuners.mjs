/* The view of neuronbench.widgets.tuners.TunersBar. */

import { make, widget } from "./parts.mjs";
import { TunerView } from "./tuner.mjs";

// The tab that a key goes to from this one, round the ends; undefined for a key that goes nowhere.
export function tabAfter(name, tab, count) {
  const by = { ArrowRight: 1, ArrowLeft: count - 1 }[name];
  return by === undefined ? undefined : (tab + by) % count;
}

class TunersBarView extends TunerView {
  get kind() {
    return "nb-tuners-bar";
  }

  get title() {
    return "Tuners";
  }

  buildSide() {
    return [];
  }

  buildMain() {
    this.list = make("div", { class: "nb-tabs", role: "tablist", "aria-label": "Tuners" });
    return [this.list];
  }

  listen() {
    super.listen();
    this.on(["tab", "tabs"], () => this.show());
  }

  show() {
    const [tabs, chosen] = [this.get("tabs"), this.get("tab")];
    const focused = this.list.contains(document.activeElement);
    const tab = (text, i) =>
      make("button", {
        type: "button",
        class: "nb-tab",
        role: "tab",
        "aria-selected": String(i === chosen),
        tabindex: i === chosen ? "0" : "-1",
        text,
        onclick: () => this.set({ tab: i }),
      });
    this.list.replaceChildren(...tabs.map(tab));
    if (focused) this.list.children[chosen].focus();
  }

  // The arrow keys move between tabs where one has the focus, as in any list of tabs.
  actionFor(name, target) {
    if (!target.matches("[role=tab]")) return super.actionFor(name, target);
    const tab = tabAfter(name, this.get("tab"), this.get("tabs").length);
    return tab === undefined ? null : () => this.set({ tab });
  }
}

export default widget(TunersBarView);
