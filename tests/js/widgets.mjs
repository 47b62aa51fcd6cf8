/* Every widget with traits and messages such as Python gives them. */

import { SIDE } from "./front_end.mjs";

const HOSTILE = "<img src=x onerror=\"document.title='broken in'\">";
const COLOURS = new DataView(new Uint8Array(3 * 256).fill(7).buffer);
const JPEG = new DataView(new ArrayBuffer(2));
const PIXELS = SIDE * SIDE;

const bar = { layers: ["conv", HOSTILE], layer: "conv", unit: 2, unit_count: 6, still_id: "still" };
const list = {
  ...bar,
  order: [0, 1, 2, 3, 4, 5],
  table: { [HOSTILE]: [Array(6).fill(HOSTILE), Array(6).fill(0.5)] },
  method: HOSTILE,
  sort: "unit",
  query: "",
  pinned: [["conv", 1]],
  pins_csv: "layer,unit",
};
const tuner = { ...bar, alone: true, runs: "Run", running: {}, message: HOSTILE, code: HOSTILE };

const evidence = {
  kind: "evidence",
  layer: "conv",
  unit: 2,
  k: 2,
  pool: "mean",
  images: [4, 1],
  ids: [HOSTILE, "b"],
  labels: [HOSTILE, ""],
  activations: [0.9, 0.5],
  edges: [0, 0.5, 1],
  counts: [3, 1],
  total: 5,
  nonfinite: 1,
  map_shape: [2, 2],
  map_range: [0, 2],
};
const steps = {
  kind: "steps",
  side: SIDE,
  boxes: [[[0, 0, 4, 4]]],
  found: [
    [
      [0, 0, 4, 4],
      [4, 4, 8, 8],
    ],
  ],
  thresholds: [100],
  key: "drawn",
};
const shown = { images: [2], ids: [HOSTILE], labels: [HOSTILE], activations: [0.9] };
const scores = {
  kind: "scores",
  reason: HOSTILE,
  order: [1, 0],
  winner: 1,
  chosen: "mean",
  columns: [
    { name: "mean", scores: [0.1, 0.2], best: 1 },
    { name: "odd_one", error: HOSTILE },
  ],
  images: [[], [{ place: 0, rank: 1.5, activation: 0.3, counts: true }]],
  key: "drawn",
};

// name -> {traits, messages: [[content, buffers]]}
export const WIDGETS = {
  browser: {
    traits: {
      ...list,
      k: 2,
      pool: "mean",
      pools: { conv: ["mean", "max"], [HOSTILE]: [] },
      opacity: 0.5,
      threshold: 0.5,
      show_map: true,
      colours: COLOURS,
    },
    messages: [
      [evidence, [new DataView(new Uint8Array([0, 90, 180, 255, 0, 0, 0, 255]).buffer), JPEG, JPEG]],
      [{ kind: "failed", layer: "conv", unit: 3, k: 2, pool: "mean", sentence: HOSTILE }, []],
    ],
  },
  compare: {
    traits: {
      ...tuner,
      names: ["a", HOSTILE],
      rows: [
        {
          unit: 0,
          truth: HOSTILE,
          disagree: true,
          answers: [
            { said: HOSTILE, score: 0.2, right: false, reason: "" },
            { said: null, score: null, right: null, reason: HOSTILE },
          ],
        },
        {
          unit: 3,
          truth: null,
          disagree: false,
          answers: [
            { said: "cat", score: null, right: true, reason: "" },
            { said: null, score: null, right: null, reason: "" },
          ],
        },
      ],
      listed: [0, 3],
      query: "",
      chosen: "",
      only_disagreeing: false,
      pool: null,
    },
    messages: [
      [{ kind: "pictures", layer: "conv", unit: 3, pool: null }, [JPEG, JPEG]],
      [{ kind: "file", name: "a.csv", type: "text/csv", text: "a" }, []],
    ],
  },
  crops_tuner: {
    traits: {
      ...tuner,
      threshold: null,
      max_crops: 4,
      max_iou: 0.5,
      max_cover: 0.8,
      min_area: 0,
      upsampling: "bilinear",
      upsamplings: ["bilinear", "nearest"],
      colours: COLOURS,
    },
    messages: [
      [{ kind: "exemplars", ...shown, pool: "mean", spatial: true, key: "first" }, [JPEG]],
      [steps, [new DataView(new Uint8Array(PIXELS / 8).fill(0xf0).buffer), new DataView(new ArrayBuffer(PIXELS))]],
    ],
  },
  descriptions_browser: {
    traits: {
      ...list,
      said: [[], [], [[HOSTILE, HOSTILE, null]], [], [], []],
      about: [
        [HOSTILE, [["source", "https://example.org/a"]]],
        ["other", [["source", HOSTILE]]],
      ],
      weights: HOSTILE,
      code: HOSTILE,
    },
    messages: [[{ kind: "awake" }, []]],
  },
  prompts_tuner: {
    traits: {
      ...tuner,
      simplify: HOSTILE,
      summarise: "b",
      relabel: "c",
      paint: "d",
      examples: "e",
      temperature: 0.3,
      candidates: 5,
      chat: "own",
      chats: ["own", HOSTILE],
      chosen: "",
      versions: ["as given", HOSTILE],
      version: "as given",
      compared: HOSTILE,
      notes: { paint: HOSTILE },
      problems: { paint: HOSTILE },
      estimate: HOSTILE,
      countable: true,
      summary: HOSTILE,
      rows: [
        {
          unit: 2,
          truth: HOSTILE,
          changed: true,
          before: { words: [[HOSTILE, true]], right: false, score: 1, reason: "" },
          after: { words: [], right: null, score: null, reason: HOSTILE },
        },
      ],
    },
    messages: [[{ kind: "awake" }, []]],
  },
  rating: {
    traits: {
      statement: HOSTILE,
      count: 3,
      place: 1,
      texts: [HOSTILE, "red things", "a cat"],
      sheet: JPEG,
      ratings: [null, null, null],
      best: null,
      kept: 0,
      lost: 0,
      problem: "",
    },
    messages: [],
  },
  scoring_tuner: {
    traits: { ...tuner, scoring: "mean", scorings: ["mean", HOSTILE], beta: 5, t: 10, images_per_candidate: 10 },
    messages: [
      [
        { kind: "painted", exemplars: 1, candidates: ["cat", HOSTILE], counts: [[], [0]], stood_in: HOSTILE },
        [JPEG, JPEG],
      ],
      [scores, []],
    ],
  },
  tuners: { traits: { ...tuner, tabs: ["Crops", "Prompts", HOSTILE], tab: 0 }, messages: [] },
};

export { HOSTILE };
