/* The view of neuronbench.widgets.tuners.TunersBar. The files parts.js and tuner.js come before it. */

export default {
  render({ model, el }) {
    const view = new TunersBarView(model, el);
    return () => view.remove();
  },
};

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
    const tab = (text, i) => make("button", {
      type: "button", class: "nb-tab", role: "tab", "aria-selected": String(i === chosen), tabindex: i === chosen ? "0" : "-1", text, onclick: () => this.set({ tab: i }),
    });
    this.list.replaceChildren(...tabs.map(tab));
    if (focused) this.list.children[chosen].focus();
  }

  // The arrow keys move between tabs where one has the focus, as in any list of tabs.
  actionFor(name, target) {
    if (!target.matches("[role=tab]")) return super.actionFor(name, target);
    const count = this.get("tabs").length;
    const by = { ArrowRight: 1, ArrowLeft: count - 1 }[name];
    return by ? () => this.set({ tab: (this.get("tab") + by) % count }) : null;
  }
}
