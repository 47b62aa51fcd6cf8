/* The view of neuronbench.widgets.scoring_tuner.ScoringTuner. */

import { bitmaps, make, readable, unitTitle, widget } from "./parts.mjs";
import { TunerView, thumbnail } from "./tuner.mjs";

const MOST = 20; // images of a candidate on the sliders

// The pictures of each candidate, out of those that came one after the other; `places` has a list for each candidate.
export function dealt(pictures, places) {
  let at = 0;
  return places.map(({ length }) => {
    at += length;
    return pictures.slice(at - length, at);
  });
}

export function imageSpoken({ rank, activation, counts }) {
  return `rank ${rank}, activation ${readable(activation)}${counts ? ", counts" : ""}`;
}

// Images of equal activation share a rank, which may be half a number.
export function rankText(rank) {
  return Number.isInteger(rank) ? String(rank) : rank.toFixed(1);
}

// A name that may be broken at its underscores.
export function breakable(name) {
  return name.replaceAll("_", "_\u200b");
}

class ScoringView extends TunerView {
  get kind() {
    return "nb-scoring-tuner";
  }

  get title() {
    return "Scoring tuner";
  }

  buildSide() {
    const count = { min: 1, max: MOST, step: 1 };
    const beta = this.slider("beta", "β, best ranks", {
      ...count,
      help: "topk_squared takes the squares of the β smallest ranks",
    });
    const t = this.slider("t", "t, best images", {
      ...count,
      help: "image_products takes the t painted images of highest activation",
    });
    const images = this.slider("images_per_candidate", "Q, images of each", {
      ...count,
      help: "How many of the painted images are used",
    });
    return [
      this.choice("scoring", "Scoring function", "scorings", "Which candidate becomes the description"),
      beta,
      t,
      images,
    ];
  }

  buildMain() {
    this.headline = make("h3", { class: "nb-title", "aria-live": "polite" });
    this.reason = make("div", { class: "nb-reason", "aria-live": "polite" });
    this.table = make("table", { class: "nb-table nb-scores" });
    this.exemplars = make("div", {
      class: "nb-strip",
      role: "list",
      "aria-label": "Exemplars and crops that were captioned",
    });
    this.exemplarsTitle = make("div", {
      class: "nb-muted nb-small",
      text: "Exemplars and crops that were captioned, largest activation first",
    });
    this.stoodIn = make("div", { class: "nb-muted nb-small nb-stood-in" });
    this.rows = make("div", { class: "nb-candidates", role: "list", "aria-label": "Candidates, best first" });
    return [
      this.headline,
      this.reason,
      make("div", { class: "nb-scrolled" }, this.table),
      this.exemplarsTitle,
      this.exemplars,
      this.stoodIn,
      this.rows,
    ];
  }

  listen() {
    super.listen();
    this.on(["scoring", "scorings", "beta", "t", "images_per_candidate"], () => this.showControls());
    this.on(["layer", "unit"], () => this.show());
  }

  show() {
    this.headline.replaceChildren(...unitTitle(this.get("layer"), `unit ${this.get("unit")}`));
  }

  /* what Python sends: the pictures once for a trace, and for every change the scores */

  async receive(content, buffers) {
    if (content.kind === "painted") await this.setPainted(content, buffers);
    if (content.kind === "scores") this.setScores(content);
    if (content.kind === "nothing") this.setNothing(content);
  }

  setNothing({ sentence }) {
    this.candidates = null;
    for (const part of [this.table, this.exemplars, this.rows]) part.replaceChildren();
    this.exemplarsTitle.hidden = true;
    this.stoodIn.textContent = "";
    this.reason.textContent = sentence;
  }

  async setPainted(content, buffers) {
    const pictures = await bitmaps(buffers);
    const shown = pictures.slice(0, content.exemplars);
    this.exemplarsTitle.hidden = shown.length === 0;
    this.exemplars.replaceChildren(
      ...shown.map((bitmap, i) => thumbnail(bitmap, { role: "listitem", "aria-label": `Exemplar or crop ${i + 1}` })),
    );
    this.stoodIn.textContent = content.stood_in;
    const painted = dealt(pictures.slice(content.exemplars), content.counts);
    this.candidates = content.candidates.map((text, i) => new Candidate(text, content.counts[i], painted[i]));
  }

  setScores(content) {
    if (!this.candidates) return;
    this.reason.textContent = content.reason;
    for (const [place, candidate] of content.order.entries())
      this.candidates[candidate].show(content, candidate, place);
    this.rows.replaceChildren(...content.order.map((candidate) => this.candidates[candidate].root));
    this.table.replaceChildren(this.tableHead(content), this.tableBody(content));
    this.root.dataset.drawn = content.key; // the settings that are on screen now
  }

  tableHead({ columns, chosen }) {
    const heads = columns.map(({ name }) =>
      make("th", { scope: "col", class: name === chosen ? "nb-chosen" : "", text: breakable(name) }),
    );
    return make("thead", {}, make("tr", {}, make("th", { scope: "col", text: "candidate" }), ...heads));
  }

  tableBody({ columns, chosen, order }) {
    const row = (candidate, place) =>
      make(
        "tr",
        {},
        make("th", { scope: "row", text: this.candidates[candidate].text }),
        ...columns.flatMap((column) => this.cell(column, candidate, place, order.length, column.name === chosen)),
      );
    return make("tbody", {}, ...order.map(row));
  }

  // A function that failed has one cell, with its error, beside all candidates.
  cell({ scores, error, best }, candidate, place, count, chosen) {
    if (error) return place ? [] : [make("td", { class: "nb-error", rowspan: count, text: error })];
    const kind = `${chosen ? "nb-chosen" : ""} ${candidate === best ? "nb-best" : ""}`;
    return [make("td", { class: kind, text: `${candidate === best ? "★ " : ""}${readable(scores[candidate])}` })];
  }
}

/* ---------------------------------------------------------------- one candidate with its painted images */

class Candidate {
  constructor(text, places, pictures) {
    this.text = text;
    this.pictures = new Map(places.map((place, i) => [place, pictures[i]]));
    this.place = make("span", { class: "nb-place" });
    this.score = make("span", { class: "nb-score" });
    this.strip = make("div", { class: "nb-strip", role: "list", "aria-label": `Images of ${text}` });
    const head = make(
      "div",
      { class: "nb-candidate-head" },
      this.place,
      make("span", { class: "nb-said", text }),
      this.score,
    );
    this.root = make("div", { class: "nb-candidate", role: "listitem" }, head, this.strip);
  }

  show({ columns, chosen, images, winner }, candidate, place) {
    const { scores } = columns.find(({ name }) => name === chosen);
    this.place.textContent = candidate === winner ? "★" : `${place + 1}`;
    this.score.textContent = scores ? readable(scores[candidate]) : "";
    this.root.classList.toggle("nb-winner", candidate === winner);
    this.strip.replaceChildren(...images[candidate].map((image) => this.painted(image)));
    if (!images[candidate].length)
      this.strip.replaceChildren(make("span", { class: "nb-muted", text: "no image: the painter gave none" }));
  }

  painted(image) {
    const spoken = imageSpoken(image);
    const figure = make("figure", {
      class: image.counts ? "nb-painted nb-counts" : "nb-painted",
      role: "listitem",
      "aria-label": spoken,
      title: spoken,
    });
    figure.append(thumbnail(this.pictures.get(image.place)), make("figcaption", { text: rankText(image.rank) }));
    return figure;
  }
}

export default widget(ScoringView);
