// The explorer: sliders over the steps of a drop method on one feature map.
//
// It fills every <div class="attentiondrop-explorer"> of a page, and reads explorer_maps.json, which lies beside this
// file. It needs nothing else. The arithmetic mirrors `attention_steps` of explorer.ipynb, with the same names for the
// same things; tests/test_explorer.py compares the two, plane by plane and number by number.
"use strict";
{
  // ---------------------------------------------------------------- the steps, without a page

  /** k = ⌈β/100 · pixels⌉, at least 1. β in billionths, so that 7 % of 100 is 7 and not, by rounding, 8. */
  function topBetaCount(beta, pixels) {
    const billionths = Math.round(beta * 1e9);
    return Math.max(1, Math.ceil((billionths * pixels) / 1e11));
  }

  /** F_top-β: the k-th largest value of a plane. */
  function topBetaThreshold(plane, beta) {
    const ascending = Float64Array.from(plane).sort();
    return ascending[plane.length - topBetaCount(beta, plane.length)];
  }

  /** F̂ = (F − F_min) / (F_max − F_min), Eq. 6; 0 on a constant plane. */
  function minMaxNormalize(plane) {
    const [low, high] = rangeOf(plane);
    const span = high > low ? high - low : 1;
    return plane.map((f) => (f - low) / span);
  }

  function rangeOf(plane) {
    return [plane.reduce((a, b) => Math.min(a, b)), plane.reduce((a, b) => Math.max(a, b))];
  }

  function sumOf(values) {
    return values.reduce((a, b) => a + b, 0);
  }

  /** The units that a coin may touch: 1. At the threshold itself Eq. 4 (AM) keeps a unit, Algorithm 1 (AD) takes it. */
  function regionOf(plane, method, beta) {
    if (method === "sm" || method === "dropout") return plane.map(() => 1);
    const threshold = topBetaThreshold(plane, beta);
    return plane.map((f) => Number(method === "am" ? f > threshold : f >= threshold));
  }

  /** S: what M would be if every coin said "drop". SM and AD dim a unit by its brightness, AM and dropout take it. */
  function shapeOf(region, fHat, method) {
    const dims = method === "sm" || method === "ad";
    return region.map((inside, i) => 1 - inside * (dims ? fHat[i] : 1));
  }

  /** The factor of each plane (Eq. 9), from the planes' masks; 0 where a mask sums to 0. */
  function factorsOf(masks, rescale) {
    const kept = masks.map(sumOf);
    const sizes = masks.map((mask) => mask.length);
    if (rescale === "none") return kept.map(() => 1);
    if (rescale === "tensor") return kept.map(() => (sumOf(kept) > 0 ? sumOf(sizes) / sumOf(kept) : 0));
    const numerator = (c) => (rescale === "literal" ? 1 : sizes[c]);
    return kept.map((sum, c) => (sum > 0 ? numerator(c) / sum : 0));
  }

  /** All steps but the factor, which may depend on the other planes, for one plane and its coins. */
  function maskSteps(plane, gamma, method, beta) {
    const fHat = minMaxNormalize(plane);
    const region = regionOf(plane, method, beta);
    const s = shapeOf(region, fHat, method);
    const m = s.map((value, i) => (gamma[i] === 1 ? value : 1)); // Eq. 5 and 8
    return { F: plane, F_hat: fHat, region, S: s, gamma, M: m };
  }

  /** Share of the units that M touches, share of the energy ΣF² that it removes, and sum(M). */
  function numbersOf(plane, mask) {
    const energy = sumOf(plane.map((f) => f * f));
    const left = sumOf(plane.map((f, i) => (f * mask[i]) ** 2));
    return {
      touched: mask.filter((m) => m < 1).length / mask.length,
      removed: energy > 0 ? 1 - left / energy : 0,
      sum_M: sumOf(mask),
    };
  }

  /**
   * The planes and numbers of each step, one object for each plane of `map`.
   * map: {planes: [[F, row by row], …]}; options: {method, beta, rescale}; gamma: the coins, shaped as map.planes.
   */
  function attentionSteps(map, { method, beta, rescale }, gamma) {
    const steps = map.planes.map((plane, c) => maskSteps(plane, gamma[c], method, beta));
    const factors = factorsOf(steps.map((step) => step.M), rescale);
    return steps.map((step, c) => ({
      ...step,
      F_out: step.F.map((f, i) => f * step.M[i] * factors[c]),
      ...numbersOf(step.F, step.M),
      factor: factors[c],
    }));
  }

  /** Numbers in [0, 1) from a seed (the generator "mulberry32"): other coins than PyTorch's, but the same each time. */
  function randomNumbers(seed) {
    let state = Math.imul(seed + 1, 0x9e3779b1);
    return () => {
      state = (state + 0x6d2b79f5) | 0;
      let t = Math.imul(state ^ (state >>> 15), 1 | state);
      t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
      return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
    };
  }

  /** γ ~ Bernoulli(α), Eq. 1: a coin says "drop" if u < α. So a larger α only adds to the coins that say so. */
  function drawGamma(map, { alpha, granularity, seed }) {
    const random = randomNumbers(seed);
    const coin = () => Number(random() < alpha);
    const ofImage = coin();
    return map.planes.map((plane) => {
      const ofPlane = coin();
      return plane.map(() => ({ element: coin, map: () => ofPlane, sample: () => ofImage })[granularity]());
    });
  }

  /** The whole numbers of explorer_maps.json as values of F. */
  function readMaps(file) {
    return file.maps.map((map) => ({ ...map, planes: map.planes.map((plane) => plane.map((n) => n * map.step)) }));
  }

  if (typeof module !== "undefined") {
    module.exports = { attentionSteps, drawGamma, readMaps, topBetaCount, topBetaThreshold };
  }

  // ---------------------------------------------------------------- colours

  const DROPPED = [230, 159, 0]; // one orange, for γ = 1, S = 0 and M = 0 alike
  const UNTOUCHED = [236, 236, 236];
  const REGION = [0, 114, 178];
  const VIRIDIS = [
    [68, 1, 84], [71, 44, 122], [59, 81, 139], [44, 113, 142], [33, 144, 141], [39, 173, 129], [92, 200, 99],
    [170, 220, 50], [253, 231, 37],
  ];

  /** The colour at `t`, from 0 to 1, of a scale that runs through `stops`. */
  function colourAt(stops, t) {
    const place = Math.min(Math.max(t, 0), 1) * (stops.length - 1);
    const left = Math.min(Math.floor(place), stops.length - 2);
    return stops[left].map((from, i) => Math.round(from + (place - left) * (stops[left + 1][i] - from)));
  }

  /** 256 colours along a scale, as a canvas stores them; worked out once, for a slider redraws 28 672 units a move. */
  function paletteOf(stops) {
    const colours = new Uint8ClampedArray(4 * 256);
    for (let i = 0; i < 256; i++) colours.set([...colourAt(stops, i / 255), 255], 4 * i);
    return new Uint32Array(colours.buffer);
  }

  function gradient(stops) {
    return `linear-gradient(to right, ${stops.map((rgb) => `rgb(${rgb})`).join(", ")})`;
  }

  // stops: the colours, from 0 to 1, or to the largest value of F where the scale is "bright"
  const PLANES = {
    F: { title: "F, the map", stops: VIRIDIS, scale: "bright" },
    F_hat: { title: "F̂, from 0 to 1", stops: VIRIDIS, scale: "one" },
    region: { title: "region", stops: [UNTOUCHED, REGION], scale: "one" },
    S: { title: "S, if every coin drops", stops: [DROPPED, UNTOUCHED], scale: "one" },
    gamma: { title: "γ, the coins", stops: [UNTOUCHED, DROPPED], scale: "one" },
    M: { title: "M, the mask", stops: [DROPPED, UNTOUCHED], scale: "one" },
    F_out: { title: "F′, what comes out", stops: VIRIDIS, scale: "bright" },
  };
  for (const plane of Object.values(PLANES)) plane.palette = paletteOf(plane.stops);

  // ---------------------------------------------------------------- drawing

  const SIDE = 384; // pixels of a canvas: a multiple of 4 and of 64, and more than is shown, for sharp numbers

  /** Draw `values` on a canvas, a coloured square a unit; on a small plane with their numbers. */
  function paint(canvas, values, map, { stops, palette }, top) {
    const small = document.createElement("canvas");
    [small.width, small.height] = [map.width, map.height];
    const image = new ImageData(map.width, map.height);
    const pixels = new Uint32Array(image.data.buffer);
    values.forEach((v, i) => { pixels[i] = palette[Math.round(255 * Math.min(Math.max(v / top, 0), 1))]; });
    small.getContext("2d").putImageData(image, 0, 0);
    const pen = canvas.getContext("2d");
    pen.imageSmoothingEnabled = false; // units stay squares
    pen.drawImage(small, 0, 0, SIDE, SIDE);
    if (map.width <= 8) writeValues(pen, values, map, stops, top);
  }

  /** Write each value on its unit, dark on light and light on dark. */
  function writeValues(pen, values, map, stops, top) {
    const side = SIDE / map.width;
    pen.font = `${Math.round(side / 3.2)}px sans-serif`;
    pen.textAlign = "center";
    pen.textBaseline = "middle";
    values.forEach((v, i) => {
      const [r, g, b] = colourAt(stops, v / top);
      pen.fillStyle = 0.3 * r + 0.59 * g + 0.11 * b > 120 ? "black" : "white";
      const [column, row] = [i % map.width, Math.floor(i / map.width)];
      pen.fillText(shortNumber(v), (column + 0.5) * side, (row + 0.5) * side);
    });
  }

  /** A number of at most three digits. */
  function shortNumber(v) {
    return String(Number(v.toPrecision(3)));
  }

  // ---------------------------------------------------------------- the page

  const STYLE = `
    .attentiondrop-explorer { container-type: inline-size; color: inherit; line-height: 1.35;
      display: flex; flex-direction: column; }
    .attentiondrop-explorer * { box-sizing: border-box; }
    .ade-controls { display: grid; grid-template-columns: repeat(4, 1fr); gap: .7rem 1.2rem;
      align-items: end; }
    .ade-control { min-width: 0; }
    .ade-control label { display: flex; justify-content: space-between; gap: 1rem; font-size: .9rem;
      margin-bottom: .25rem; }
    .ade-control output { font-variant-numeric: tabular-nums; }
    .ade-control input, .ade-control select, .ade-control button { display: block; width: 100%;
      min-height: 1.9rem; margin: 0; font: inherit; }
    .ade-control select, .ade-control button { color: inherit; background: transparent; padding: .2rem .4rem;
      border: 1px solid currentColor; border-radius: .3rem; }
    .ade-control option { color: black; background: white; }
    .ade-control button { cursor: pointer; }
    .ade-control :disabled, .ade-unused { opacity: .4; }
    .ade-control :focus-visible { outline: 2px solid rgb(0, 114, 178); }
    .ade-rule { margin: 1rem 0 .6rem; }
    .ade-planes { display: grid; grid-template-columns: repeat(7, 1fr); gap: .7rem; }
    .ade-planes figure { margin: 0; min-width: 0; }
    .ade-planes figcaption { font-size: .85rem; margin: 0 0 .2rem; color: inherit; text-align: left; }
    .ade-planes canvas { display: block; width: 100%; aspect-ratio: 1; border: 1px solid rgb(128 128 128 / .5); }
    .ade-numbers { display: grid; grid-template-columns: repeat(4, 1fr); gap: .7rem; margin: 1rem 0; }
    .ade-numbers dt { font-size: .85rem; font-weight: normal; }
    .ade-numbers dd { margin: 0; font-size: 1.25rem; font-variant-numeric: tabular-nums; }
    .ade-legend { display: flex; flex-wrap: wrap; gap: .4rem 1.4rem; padding: 0; margin: 0; list-style: none;
      font-size: .85rem; }
    .ade-legend li { display: flex; align-items: center; gap: .4rem; margin: 0; }
    .ade-legend i { flex: none; width: 4rem; height: .8rem; border: 1px solid rgb(128 128 128 / .5); }
    @container (max-width: 56rem) {
      .ade-controls { grid-template-columns: repeat(2, 1fr); }
      .ade-planes { grid-template-columns: repeat(4, 1fr); }
    }
    @container (max-width: 32rem) {
      .ade-planes, .ade-numbers { grid-template-columns: repeat(2, 1fr); }
      .ade-numbers { margin: 0 0 1rem; order: 1; } /* next to the sliders: the planes fill more than a phone */
      .ade-planes { order: 2; }
      .ade-legend { margin-top: 1rem; order: 3; }
    }
  `;

  const RULES = {
    ad: "AttentionDrop (Algorithm 1): the region is where F ≥ F_top-β; there S = 1 − F̂, elsewhere 1.",
    am: "Adaptive mask (Eq. 4): the region is where F > F_top-β; there S = 0, elsewhere 1. F̂ is not used.",
    sm: "Soft mask (Eq. 7): S = 1 − F̂ everywhere; there is no β.",
    dropout: "Dropout (Eq. 2): S = 0 everywhere, without F̂ and β. With one coin a plane this is SpatialDropout.",
  };

  const SLIDERS = {
    alpha: { label: "α, drop probability", min: 0, max: 1, step: 0.01, value: 0.1 },
    beta: { label: "β, region in percent", min: 1, max: 100, step: 1, value: 20 },
    seed: { label: "seed of the coins", min: 0, max: 99, step: 1, value: 0 },
  };

  const CHOICES = {
    method: {
      label: "method",
      options: { ad: "AttentionDrop (AD)", am: "adaptive mask (AM)", sm: "soft mask (SM)", dropout: "dropout" },
    },
    granularity: {
      label: "granularity: coin per",
      options: { element: "unit (element)", map: "plane (map)", sample: "image (sample)" },
    },
    rescale: {
      label: "rescale: F ⊙ M times",
      options: {
        map: "map: H·W/sum(M)",
        tensor: "tensor: the same, over all planes",
        literal: "literal: 1/sum(M), as printed",
        none: "none: 1",
      },
    },
  };

  /** An element with properties and children. */
  function make(tag, properties = {}, children = []) {
    const element = Object.assign(document.createElement(tag), properties);
    element.append(...children);
    return element;
  }

  /** An <input type="range"> with its label and its value in words. */
  function makeSlider(id, { label, ...limits }) {
    const input = make("input", { type: "range", id, ...limits });
    const shown = make("output", { value: input.value });
    shown.htmlFor = id;
    input.addEventListener("input", () => { shown.value = input.value; });
    const box = make("div", { className: "ade-control" }, [make("label", { htmlFor: id }, [label, shown]), input]);
    return { box, input };
  }

  /** A <select> with its label; options: {value: text}. */
  function makeChoice(id, { label, options }) {
    const items = Object.entries(options).map(([value, text]) => make("option", { value, textContent: text }));
    const input = make("select", { id }, items);
    const box = make("div", { className: "ade-control" }, [make("label", { htmlFor: id, textContent: label }), input]);
    return { box, input };
  }

  /** All planes of all maps, as the options of one <select>: "map number/plane number". */
  function mapOptions(maps) {
    const options = maps.flatMap((map, m) => map.labels.map((label, c) => [`${m}/${c}`, label]));
    return { label: "map", options: Object.fromEntries(options) };
  }

  /** The controls by name; `suffix` keeps the ids of a second explorer on a page apart. */
  function makeControls(maps, suffix) {
    const choice = (name, what) => makeChoice(name + suffix, what);
    const slider = (name) => makeSlider(name + suffix, SLIDERS[name]);
    return {
      map: choice("map", mapOptions(maps)),
      method: choice("method", CHOICES.method),
      alpha: slider("alpha"),
      beta: slider("beta"),
      granularity: choice("granularity", CHOICES.granularity),
      rescale: choice("rescale", CHOICES.rescale),
      seed: slider("seed"),
    };
  }

  /** A button that moves the seed on, for who wants other coins and no particular ones. */
  function makeCoinButton(seed) {
    const toss = () => {
      seed.value = (Number(seed.value) + 1) % (Number(seed.max) + 1);
      seed.dispatchEvent(new Event("input", { bubbles: true }));
    };
    const button = make("button", { type: "button", textContent: "Toss the coins again", onclick: toss });
    return make("div", { className: "ade-control" }, [button]);
  }

  /** {name: {box, canvas, caption}} of the seven planes. */
  function makePlanes() {
    const figures = Object.entries(PLANES).map(([name, { title }]) => {
      const canvas = make("canvas", { width: SIDE, height: SIDE });
      canvas.setAttribute("role", "img");
      const box = make("figure", {}, [make("figcaption", { textContent: title }), canvas]);
      return [name, { box, canvas }];
    });
    return Object.fromEntries(figures);
  }

  const NUMBERS = {
    touched: ["units touched (M < 1)", (step) => percent(step.touched)],
    removed: ["energy removed", (step) => percent(step.removed)],
    sum_M: ["sum(M)", (step) => `${Number(step.sum_M.toFixed(3))} of ${step.M.length}`],
    factor: ["factor", (step) => Number(step.factor.toPrecision(5)).toString()],
  };

  function percent(share) {
    return `${(100 * share).toFixed(1)} %`;
  }

  /** {name: the <dd> that shows the number}, and the list that holds them. */
  function makeNumbers() {
    const shown = Object.fromEntries(Object.keys(NUMBERS).map((name) => [name, make("dd")]));
    const pairs = Object.keys(NUMBERS).map((name) => {
      shown[name].dataset.number = name;
      return make("div", {}, [make("dt", { textContent: NUMBERS[name][0] }), shown[name]]);
    });
    const box = make("dl", { className: "ade-numbers" }, pairs);
    box.setAttribute("aria-live", "polite");
    return { box, shown };
  }

  function makeLegend() {
    const entry = (stops, text) => {
      const bar = make("i");
      bar.style.background = gradient(stops);
      return make("li", {}, [bar, text]);
    };
    return make("ul", { className: "ade-legend" }, [
      entry(VIRIDIS, "F and F′: from 0 to the largest value of F (brighter counts as that); F̂: from 0 to 1"),
      entry([REGION, REGION], "region: where a coin may touch"),
      entry([DROPPED, UNTOUCHED], "γ, S, M: from dropped (γ = 1, M = 0) to untouched (γ = 0, M = 1)"),
    ]);
  }

  /** What the controls say. */
  function readOptions(controls) {
    const value = (name) => controls[name].input.value;
    const number = (name) => Number(value(name));
    const [m, c] = value("map").split("/").map(Number);
    const options = { alpha: number("alpha"), beta: number("beta"), seed: number("seed") };
    for (const name of ["method", "granularity", "rescale"]) options[name] = value(name);
    return { m, c, options };
  }

  /** Draw all planes and numbers again. */
  function redraw(maps, controls, view) {
    const { m, c, options } = readOptions(controls);
    const step = attentionSteps(maps[m], options, drawGamma(maps[m], options))[c];
    const tops = { one: 1, bright: Math.max(rangeOf(step.F)[1], 1e-9) };
    for (const [name, look] of Object.entries(PLANES)) {
      paint(view.planes[name].canvas, step[name], maps[m], look, tops[look.scale]);
      const [low, high] = rangeOf(step[name]).map(shortNumber);
      view.planes[name].canvas.setAttribute("aria-label", `${look.title}; values from ${low} to ${high}`);
    }
    for (const [name, [, text]] of Object.entries(NUMBERS)) view.numbers.shown[name].textContent = text(step);
    const plain = options.method === "am" || options.method === "dropout";
    view.planes.F_hat.box.classList.toggle("ade-unused", plain);
    controls.beta.input.disabled = options.method === "sm" || options.method === "dropout";
    view.rule.textContent = RULES[options.method];
  }

  /** Put an explorer into `root`, in the place of what stands there for a page without scripts. */
  function mount(root, maps, suffix) {
    const controls = makeControls(maps, suffix);
    const view = { planes: makePlanes(), numbers: makeNumbers(), rule: make("p", { className: "ade-rule" }) };
    const boxes = [...Object.values(controls).map(({ box }) => box), makeCoinButton(controls.seed.input)];
    const panel = make("div", { className: "ade-controls" }, boxes);
    const figures = Object.values(view.planes).map(({ box }) => box);
    root.replaceChildren(
      panel, view.rule, make("div", { className: "ade-planes" }, figures), view.numbers.box, makeLegend(),
    );
    panel.addEventListener("input", () => redraw(maps, controls, view));
    redraw(maps, controls, view);
  }

  /** Fill every explorer of the page; where the maps cannot be read, say so below what stands there. */
  async function mountAll(address) {
    const roots = [...document.querySelectorAll(".attentiondrop-explorer")];
    if (roots.length === 0) return;
    try {
      const answer = await fetch(address);
      if (!answer.ok) throw new Error(`the server says ${answer.status}`);
      const maps = readMaps(await answer.json());
      document.head.append(make("style", { textContent: STYLE }));
      roots.forEach((root, i) => mount(root, maps, i === 0 ? "" : `-${i + 1}`));
    } catch (error) {
      roots.forEach((root) => root.append(make("p", { textContent: `No sliders: ${address}: ${error.message}` })));
    }
  }

  if (typeof document !== "undefined") {
    // known only while this file is read, so it is asked for now and used when the page is there
    const address = new URL("explorer_maps.json", document.currentScript.src);
    if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", () => mountAll(address));
    else mountAll(address);
  }
}
