"use strict";
// Controls and pictures of the page. flow.js has the numbers, models.js the trained networks.

const EXTENT = 2.8; // The square shows the plane from -EXTENT to EXTENT.
const CELLS = 64; // Of the heat map, per side.
const LARGEST_LOG_RATIO = 0.6; // Of the colours of the heat map.
const HEAT_ALPHA = 0.75;
const MOST_POINTS = 3000;
const TRAIL = 14; // Steps.
const HOLD_MS = 700; // The points stay where they start for this long.
const TAU = 2 * Math.PI;

const uniform = uniforms(Date.now());
const normal = normals(uniform);
const between = (low, high) => low + (high - low) * uniform();
const repeat = (count, draw) => Array.from({ length: count }, draw);
const around = (centre, sigma) => centre.map((value) => value + sigma * normal());
const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name);
const isMotionReduced = matchMedia("(prefers-reduced-motion: reduce)").matches;

function element(name, attributes = {}, text = "") {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.textContent = text;
  return made;
}

function signed(value, digits = 3) {
  const text = value.toFixed(digits);
  return Number(text) === 0 ? text.replace("-", "") : text.replace("-", "−");
}

// A picture of points that flow, with its controls. Subclasses draw points and start them.
class Demo {
  constructor(section, { models, starts, fresh, sliders, stepsPerSecond }) {
    section.append(document.getElementById("demo").content.cloneNode(true));
    Object.assign(this, { section, starts, fresh, sliders, interval: 1000 / stepsPerSecond });
    this.find = (selector) => section.querySelector(selector);
    this.canvas = this.find("canvas");
    this.models = models.map((name) => {
      const { arrays, weights, sizes, ...model } = MODELS[name];
      const decoded = Object.entries(arrays).map(([key, text]) => [key, floats(text)]);
      return {
        ...model,
        name,
        layers: network(sizes, floats(weights)),
        ...Object.fromEntries(decoded),
      };
    });
    this.isPlaying = false;
    this.addControls();
    new ResizeObserver(() => this.draw()).observe(this.canvas);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw());
  }

  addControls() {
    const { section, models, starts } = this;
    const named = models.findIndex(({ name }) => `#${name}` === location.hash);
    const chosen = Math.max(0, named);
    this.find(".models").hidden = models.length === 1;
    const [titles, names] = [models.map(({ title }) => title), Object.keys(starts)];
    this.addChoices(".models", titles, chosen, (i) => this.useModel(models[i]));
    this.addChoices(".starts", names, 0, (i) => this.useStart(names[i]));
    this.find(".play").onclick = () => this.play(!this.isPlaying);
    this.find(".one").onclick = () => this.takeOneStep();
    this.find(".fresh").onclick = () => this.useStart(this.start);
    this.find(".defaults").onclick = () => this.useDefaults();
    for (const [name, { max, step }] of Object.entries(this.sliders)) {
      const slider = this.find(`[name=${name}]`);
      Object.assign(slider, { min: 0, max, step });
      slider.oninput = () => this.restart();
    }
    this.start = names[0];
    this.useModel(models[chosen]);
    const visible = new IntersectionObserver(
      ([{ isIntersecting }]) => {
        if (!isIntersecting) return;
        visible.disconnect();
        this.restart();
        this.play(true);
      },
      { threshold: 0.3 },
    );
    visible.observe(this.canvas);
  }

  addChoices(selector, labels, chosen, use) {
    labels.forEach((text, i) => {
      const label = document.createElement("label");
      const input = document.createElement("input");
      const span = document.createElement("span");
      span.textContent = text;
      Object.assign(input, {
        type: "radio",
        name: `${this.section.id}${selector}`,
        checked: i === chosen,
      });
      input.onchange = () => use(i);
      label.append(input, span);
      this.find(`${selector} .choices`).append(label);
    });
  }

  useModel(model) {
    const points = this.swarm?.points ?? [];
    this.model = model;
    this.swarm = new Swarm(model.layers, normal);
    points.forEach(({ start }) => this.swarm.add(start)); // The same points flow to the other data.
    this.useDefaults();
    if (!points.length) this.useStart(this.start);
  }

  useStart(start) {
    this.start = start;
    this.swarm.points = [];
    this.starts[start](this.model).forEach((x) => this.swarm.add(x));
    this.find(".fresh").textContent = this.swarm.points.length ? this.fresh : "Clear";
    this.restart();
  }

  useDefaults() {
    for (const name of Object.keys(this.sliders))
      this.find(`[name=${name}]`).value = this.model.flow[name];
    this.restart();
  }

  get settings() {
    const names = Object.keys(this.sliders);
    return Object.fromEntries(
      names.map((name) => [name, Number(this.find(`[name=${name}]`).value)]),
    );
  }

  // Moves the points back to where they started. They flow again, unless the reader has paused.
  restart() {
    const wasDone = this.isDone;
    this.swarm.restart();
    this.isDone = false;
    this.due = performance.now() + HOLD_MS;
    if (wasDone) this.play(true);
    this.describe();
    this.draw();
  }

  play(isPlaying) {
    if (isPlaying && this.isDone) return this.restart();
    this.isPlaying = isPlaying;
    this.due = Math.max(this.due, performance.now());
    if (isPlaying && !this.isScheduled) this.schedule();
    return this.describe();
  }

  // Readers who prefer no motion see only where the points end.
  schedule() {
    this.isScheduled = true;
    if (isMotionReduced) setTimeout(() => this.animate(Infinity));
    else requestAnimationFrame((now) => this.animate(now));
  }

  animate(now) {
    this.isScheduled = false;
    if (this.isPlaying && now >= this.due) {
      this.advance();
      this.due = Math.max(this.due + this.interval, now);
    }
    if (this.isPlaying) this.schedule();
    if (!(this.isPlaying && isMotionReduced)) this.draw();
  }

  takeOneStep() {
    this.play(false);
    this.due = 0;
    this.advance();
    this.draw();
  }

  advance() {
    this.isDone = this.swarm.step(this.settings);
    if (this.isDone) this.isPlaying = false;
    this.describe();
  }

  describe() {
    const { settings, swarm, model } = this;
    const isEmpty = !swarm.points.length;
    this.find(".play").textContent = this.isPlaying ? "Pause" : this.isDone ? "Replay" : "Play";
    this.find(".play").disabled = isEmpty;
    this.find(".one").disabled = isEmpty || this.isDone;
    for (const [name, value] of Object.entries(settings)) {
      const unit = name === "length" ? ` step${value === 1 ? "" : "s"}` : "";
      this.find(`[name=${name}]`).previousElementSibling.querySelector("output").textContent =
        `${value}${unit}`;
    }
    this.find(".defaults").disabled = Object.entries(settings).every(
      ([name, value]) => value === model.flow[name],
    );
    const means = swarm.meanLogRatios;
    const readout = this.readout(Math.max(0, means.length - 1), means.at(-1));
    this.find(".readout").replaceChildren(
      ...Object.entries(readout).map(([name, value]) => {
        const [entry, term, text] = ["div", "dt", "dd"].map((tag) => document.createElement(tag));
        term.textContent = name;
        text.textContent = value;
        entry.append(term, text);
        return entry;
      }),
    );
    plot(this.find("svg"), means, settings.length, model.real);
  }

  readout(steps, mean) {
    return { step: steps, "mean of log r": mean === undefined ? "–" : signed(mean) };
  }

  // Returns the context and the side of the canvas in pixels of the screen.
  prepareCanvas() {
    const { canvas } = this;
    const side = Math.round(canvas.clientWidth * devicePixelRatio);
    if (canvas.width !== side) canvas.width = canvas.height = side;
    const context = canvas.getContext("2d");
    context.clearRect(0, 0, side, side);
    return [context, side];
  }
}

class Plane extends Demo {
  addControls() {
    this.cross = [0, 0]; // Where the keyboard drops points.
    this.find(".picture").insertAdjacentHTML(
      "beforeend",
      `<p class="hint" hidden>Click or drag here</p>`,
    );
    this.find(".picture").insertAdjacentHTML(
      "afterend",
      `
      <div class="scale"><span>log r = −${LARGEST_LOG_RATIO}</span><i></i><span>+${LARGEST_LOG_RATIO}</span></div>
      <div class="shows">
        <label><input type="checkbox" name="heat" checked>Heat map of log r</label>
        <label><input type="checkbox" name="data" checked>Data<i></i></label>
        <label><input type="checkbox" name="trails" checked>Trails</label>
      </div>`,
    );
    for (const box of this.section.querySelectorAll(".shows input"))
      box.onchange = () => this.draw();
    this.listen();
    super.addControls();
  }

  listen() {
    const { canvas } = this;
    canvas.tabIndex = 0;
    canvas.setAttribute("role", "application");
    canvas.setAttribute(
      "aria-label",
      "Plane with points. Arrow keys move the cross, Space drops points.",
    );
    let last = null; // Where points were dropped last in this gesture; `null` between gestures.
    const dropAt = (x, count) => this.drop((last = x), count);
    canvas.onpointerdown = (event) => {
      last = this.place(event);
      this.hasDropped = false;
      canvas.setPointerCapture(event.pointerId);
    };
    canvas.onpointermove = (event) => {
      const x = this.place(event);
      if (!last || Math.hypot(x[0] - last[0], x[1] - last[1]) < 0.06) return;
      this.hasDropped = true;
      dropAt(x, 10);
    };
    canvas.onpointerup = (event) => {
      if (last && !this.hasDropped) dropAt(this.place(event), 60);
      last = null;
    };
    canvas.onpointercancel = () => (last = null); // The finger scrolls the page.
    const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };
    canvas.onkeydown = (event) => {
      if (event.key === " ") this.drop(this.cross, 60);
      else if (moves[event.key])
        this.cross = this.cross.map((v, d) =>
          Math.min(EXTENT, Math.max(-EXTENT, v + 0.1 * moves[event.key][d])),
        );
      else return;
      event.preventDefault();
      this.draw();
    };
    canvas.onfocus = canvas.onblur = () => this.draw();
  }

  place({ offsetX, offsetY }) {
    const side = this.canvas.clientWidth;
    return [((2 * offsetX) / side - 1) * EXTENT, (1 - (2 * offsetY) / side) * EXTENT];
  }

  drop(centre, count) {
    const { points } = this.swarm;
    repeat(count, () => this.swarm.add(around(centre, 0.07)));
    points.splice(0, points.length - MOST_POINTS);
    // Points flow as soon as they are dropped, unless the reader has paused the flow.
    if (this.isDone || points.length === count) {
      this.isDone = false;
      this.due = 0;
      this.play(true);
    }
    this.describe();
    this.draw();
  }

  restart() {
    for (const point of this.swarm.points) point.trail = [];
    super.restart();
  }

  advance() {
    super.advance();
    for (const point of this.swarm.points) {
      point.trail = [...(point.trail ?? []), point.before.slice()].slice(-TRAIL);
    }
  }

  drawHeat(context, side) {
    const { model } = this;
    model.heat ??= heatOf(model);
    const theme = colour("--high");
    if (model.painted?.theme !== theme) model.painted = { theme, canvas: paintHeat(model.heat) };
    context.drawImage(model.painted.canvas, 0, 0, side, side);
  }

  readout(steps, mean) {
    const points = this.swarm.points.map(({ x }) => x);
    const share = shareNear(points, this.model.centres, this.model.sigma);
    return {
      ...super.readout(steps, mean),
      "within 4 σ of the data": points.length ? `${(100 * share).toFixed(1)} %` : "–",
    };
  }

  draw() {
    const [context, side] = this.prepareCanvas();
    const scale = side / (2 * EXTENT);
    const right = (x) => (x[0] + EXTENT) * scale;
    const down = (x) => (EXTENT - x[1]) * scale;
    const dots = (points, radius, fill, alpha) => {
      Object.assign(context, { fillStyle: fill, globalAlpha: alpha });
      context.beginPath();
      for (const x of points) {
        context.moveTo(right(x) + radius, down(x));
        context.arc(right(x), down(x), radius, 0, TAU);
      }
      context.fill();
    };
    const { points } = this.swarm;
    const isShown = (name) => this.find(`[name=${name}]`).checked;
    if (isShown("heat")) this.drawHeat(context, side);
    if (isShown("data")) dots(dataOf(this.model), side / 400, colour("--data"), 0.55);
    const ink = colour("--ink");
    if (isShown("trails")) {
      Object.assign(context, { strokeStyle: ink, globalAlpha: 0.16, lineWidth: side / 640 });
      context.beginPath();
      for (const { trail = [], x } of points) {
        if (!trail.length) continue;
        context.moveTo(right(trail[0]), down(trail[0]));
        for (const past of [...trail.slice(1), x]) context.lineTo(right(past), down(past));
      }
      context.stroke();
    }
    const places = points.map(({ x }) => x);
    dots(places, side / 330, ink, 0.85);
    context.globalAlpha = 1;
    if (this.canvas.matches(":focus-visible")) {
      const [x, y, arm, width] = [right(this.cross), down(this.cross), side / 45, side / 320];
      context.fillStyle = colour("--accent");
      context.fillRect(x - arm, y - width / 2, 2 * arm, width);
      context.fillRect(x - width / 2, y - arm, width, 2 * arm);
    }
    this.find(".hint").hidden = points.length > 0;
  }
}

class Images extends Demo {
  draw() {
    const [context, side] = this.prepareCanvas();
    const [dark, light] = ["--ink", "--tile"].map((name) => rgb(colour(name)));
    const rows = Math.sqrt(this.swarm.points.length);
    const gap = Math.max(1, Math.round(side / 190));
    const size = (side - gap) / rows;
    // Between two steps, images move in a straight line.
    const wait = (this.due - performance.now()) / this.interval;
    const share = this.isPlaying ? Math.min(1, Math.max(0, 1 - wait)) : 1;
    this.tile ??= Object.assign(document.createElement("canvas"), { width: 8, height: 8 });
    Object.assign(context, { fillStyle: colour("--line"), imageSmoothingQuality: "high" });
    context.fillRect(0, 0, side, side);
    this.swarm.points.forEach(({ x, before }, i) => {
      const image = new ImageData(8, 8);
      x.forEach((value, k) => {
        const ink = Math.min(1, Math.max(0, (before[k] + share * (value - before[k]) + 1) / 2));
        image.data.set([...light.map((c, j) => c + ink * (dark[j] - c)), 255], 4 * k);
      });
      this.tile.getContext("2d").putImageData(image, 0, 0);
      const [left, top] = [i % rows, Math.floor(i / rows)].map((cell) =>
        Math.round(gap + cell * size),
      );
      context.drawImage(this.tile, left, top, Math.round(size - gap), Math.round(size - gap));
    });
  }
}

function rgb(hex) {
  return [1, 3, 5].map((i) => parseInt(hex.trim().slice(i, i + 2), 16));
}

// A sample of the data of a model in the plane, from its density.
function dataOf(model) {
  model.data ??= repeat(700, () => {
    const c = 2 * Math.floor(between(0, model.centres.length / 2));
    return around([...model.centres.slice(c, c + 2)], model.sigma);
  });
  return model.data;
}

// Returns log r at the cells of the heat map, by rows from the top.
function heatOf(model) {
  const place = (cell) => ((2 * (cell + 0.5)) / CELLS - 1) * EXTENT;
  const at = (i) => [place(i % CELLS), -place(Math.floor(i / CELLS))];
  return repeat(CELLS * CELLS, (_, i) => logRatio(model.layers, at(i)));
}

// Returns the heat map as a canvas. Where log r is 0, it is transparent.
function paintHeat(values) {
  const image = new ImageData(CELLS, CELLS);
  const [high, low] = ["--high", "--low"].map((name) => rgb(colour(name)));
  values.forEach((value, i) => {
    const strength = Math.min(1, Math.abs(value) / LARGEST_LOG_RATIO);
    image.data.set([...(value > 0 ? high : low), 255 * HEAT_ALPHA * strength], 4 * i);
  });
  const canvas = Object.assign(document.createElement("canvas"), { width: CELLS, height: CELLS });
  canvas.getContext("2d").putImageData(image, 0, 0);
  return canvas;
}

// Draws the mean log ratio by step, with that of real data.
function plot(svg, means, length, real) {
  const [width, height, left, top, bottom] = [340, 170, 42, 10, 24];
  const values = [...means, real, 0];
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const step =
    [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100].find(
      (s) => (high - low) / s <= 4,
    ) ?? 1000;
  const [first, last] = [Math.floor(low / step - 0.2), Math.ceil(high / step + 0.2)];
  const x = (k) => left + (k / Math.max(1, length)) * (width - left - 8);
  const y = (v) => top + ((last * step - v) / ((last - first) * step)) * (height - top - bottom);
  const horizontal = (v, kind) =>
    element("line", { class: kind, x1: left, x2: width - 8, y1: y(v), y2: y(v) });
  const parts = [];
  for (let i = first; i <= last; i++)
    parts.push(
      horizontal(i * step, i ? "axis" : "zero"),
      element(
        "text",
        { x: left - 6, y: y(i * step) + 4, "text-anchor": "end" },
        signed(i * step, step < 0.1 ? 2 : step < 1 ? 1 : 0),
      ),
    );
  for (const k of new Set([0, Math.round(length / 2), length]))
    parts.push(
      element(
        "text",
        { x: x(k), y: height - 6, "text-anchor": k === length ? "end" : k ? "middle" : "start" },
        k,
      ),
    );
  parts.push(
    horizontal(real, "real"),
    element("text", { class: "label", x: left + 6, y: y(real) + 14 }, `real data ${signed(real)}`),
  );
  if (means.length) {
    const points = means.map((v, k) => `${x(k).toFixed(1)},${y(v).toFixed(1)}`);
    const [cx, cy] = points.at(-1).split(",");
    parts.push(
      element("polyline", { class: "curve", points: points.join(" ") }),
      element("circle", { class: "now", cx, cy, r: 3.5 }),
    );
  }
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  svg.setAttribute("aria-label", `Mean of log r by step. Real data: ${signed(real)}.`);
  svg.replaceChildren(...parts);
}

new Plane(document.getElementById("plane"), {
  models: ["swissroll", "8gaussians"],
  starts: {
    Normal: () => repeat(600, () => around([0, 0], 1)),
    Square: () => repeat(600, () => [between(-2, 2), between(-2, 2)]),
    Ring: () =>
      repeat(600, () => {
        const angle = between(0, TAU);
        return around([2.2 * Math.cos(angle), 2.2 * Math.sin(angle)], 0.05);
      }),
    "By hand": () => [],
  },
  fresh: "New points",
  sliders: {
    stepSize: { max: 0.5, step: 0.01 },
    noiseScale: { max: 0.1, step: 0.005 },
    length: { max: 300, step: 1 },
  },
  stepsPerSecond: 30,
});

new Images(document.getElementById("digits"), {
  models: ["digits"],
  starts: {
    Gaussian: ({ mean, factor }) =>
      repeat(64, () => {
        const noise = repeat(64, normal);
        return mean.map((m, i) => noise.reduce((sum, z, k) => sum + factor[64 * i + k] * z, m));
      }),
    "Uniform noise": () => repeat(64, () => repeat(64, () => between(-1, 1))),
  },
  fresh: "New digits",
  sliders: {
    stepSize: { max: 6, step: 0.1 },
    noiseScale: { max: 0.1, step: 0.001 },
    length: { max: 96, step: 1 },
  },
  stepsPerSecond: 6,
});
