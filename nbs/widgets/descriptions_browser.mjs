/* The view of neuronbench.widgets.descriptions_browser.DescriptionsBrowser: descriptions to read where there is no network and no image. */

import { copyButton, make, widget } from "./parts.mjs";
import { UnitsView } from "./units.mjs";

// A text, as a link where it is the address of a page.
export function linked(text) {
  if (!/^https:\/\/[^\s"'<>]+$/.test(text)) return make("span", { text });
  return make("a", { href: text, target: "_blank", rel: "noopener noreferrer", text });
}

// What the view lacks, and how to get it.
export function opening(weights) {
  const network = weights
    ? `the network (${weights}; other weights have other units)`
    : "the network that was described";
  return `No images here. To see what the units respond to, give a folder of images and ${network}:`;
}

class DescriptionsView extends UnitsView {
  constructor(model, el) {
    super(model, el);
    this.start();
    this.model.send({ kind: "ask" });
  }

  get kind() {
    return "nb-descriptions-browser";
  }

  get spoken() {
    return "Browser of descriptions";
  }

  /* what is where */

  buildMain() {
    this.nothing = make("div", { class: "nb-muted", text: "Nothing is said of this unit." });
    this.about = make("div", { class: "nb-about" });
    return make("div", { class: "nb-main" }, ...this.buildHead(), this.nothing, this.buildOpening(), this.about);
  }

  buildOpening() {
    this.codeText = make("code", {});
    this.told = make("div", { class: "nb-told" });
    return make(
      "div",
      { class: "nb-opening" },
      make("div", { class: "nb-row" }, this.told, copyButton(this)),
      make("pre", { tabindex: "0" }, this.codeText),
    );
  }

  /* what changes what */

  listen() {
    super.listen();
    this.on(["said"], () => this.showHead());
    this.on(["about"], () => this.showAbout());
    this.on(["code", "weights"], () => this.showOpening());
    this.hear("msg:custom", () => this.hideStill());
  }

  /* what is shown */

  refresh() {
    super.refresh();
    this.showAbout();
    this.showOpening();
  }

  showHead() {
    super.showHead();
    this.nothing.hidden = !this.descriptions.hidden;
    this.root.dataset.layer = this.get("layer");
    this.root.dataset.unit = this.get("unit");
  }

  // All that is said of a unit, also where one method says several things.
  saidOf(unit) {
    return this.get("said")[unit] ?? [];
  }

  showAbout() {
    const about = this.get("about");
    this.about.replaceChildren(...about.map(([title, facts]) => origin(title, facts, about.length === 1)));
    this.about.hidden = about.length === 0;
  }

  showOpening() {
    this.told.textContent = opening(this.get("weights"));
    this.codeText.textContent = this.get("code");
  }
}

// Where the descriptions of a method come from; open where nothing else is told.
function origin(title, facts, alone) {
  const rows = facts.map(([name, text]) => [make("dt", { text: name }), make("dd", {}, linked(text))]);
  return make("details", alone ? { open: "" } : {}, make("summary", { text: title }), make("dl", {}, ...rows.flat()));
}

export default widget(DescriptionsView);
