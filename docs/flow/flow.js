"use strict";
// The numbers of the page: the trained networks, the gradient of their output, and the flow (eq. 9).
// A plain script and no module, because browsers load modules only from a server. Node can load it.

const SLOPE = 0.2; // Of LeakyReLU below zero, as in fdrl_jax/networks/layers.py.

function floats(base64) {
  return new Float32Array(Uint8Array.from(atob(base64), (c) => c.charCodeAt(0)).buffer);
}

// A network of `sizes` [D, hidden ..., 1] from its weights: per layer the kernel [in, out] by rows,
// then the bias [out]. `outputs` and `deltas` are what one evaluation stores.
function network(sizes, weights) {
  let first = 0;
  const take = (count) => weights.subarray(first, (first += count));
  const layers = sizes.slice(1).map((size, l) => ({
    kernel: take(sizes[l] * size),
    bias: take(size),
    outputs: new Float64Array(size),
    deltas: new Float64Array(sizes[l]),
  }));
  if (first !== weights.length)
    throw new Error(`sizes ${sizes} need ${first} weights, got ${weights.length}`);
  return layers;
}

// Returns log r(x) of one point. With `gradient` [D], also writes the gradient with respect to x.
function logRatio(layers, x, gradient = null) {
  const last = layers.length - 1;
  let inputs = x;
  for (let l = 0; l <= last; l++) {
    const { kernel, bias, outputs } = layers[l];
    const size = outputs.length;
    outputs.set(bias);
    for (let i = 0, k = 0; i < inputs.length; i++) {
      const value = inputs[i];
      for (let j = 0; j < size; j++) outputs[j] += value * kernel[k++];
    }
    if (l < last) for (let j = 0; j < size; j++) if (outputs[j] < 0) outputs[j] *= SLOPE;
    inputs = outputs;
  }
  // Backpropagation. LeakyReLU keeps the sign, so the outputs show which side of zero an input was.
  for (let l = last, above = Float64Array.of(1); gradient && l >= 0; l--) {
    const { kernel } = layers[l];
    const below = l ? layers[l].deltas : gradient;
    const size = above.length;
    for (let i = 0, k = 0; i < below.length; i++) {
      let sum = 0;
      for (let j = 0; j < size; j++) sum += kernel[k++] * above[j];
      below[i] = l && layers[l - 1].outputs[i] < 0 ? SLOPE * sum : sum;
    }
    above = below;
  }
  return inputs[0];
}

// Returns a function that draws from U(0, 1): mulberry32, whose state is 32 bits.
function uniforms(seed) {
  return () => {
    seed = (seed + 0x6d2b79f5) | 0;
    let t = Math.imul(seed ^ (seed >>> 15), 1 | seed);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
}

// Returns a function that draws from N(0, 1), by Box and Muller.
function normals(uniform) {
  return () => Math.sqrt(-2 * Math.log(1 - uniform())) * Math.cos(2 * Math.PI * uniform());
}

// Points that flow, each with its own number of steps, so that points can join at any time.
class Swarm {
  constructor(layers, normal) {
    Object.assign(this, { layers, normal, points: [] });
    this.gradient = new Float64Array(layers[0].deltas.length);
  }

  // Adds a point that starts at `x` [D]. `values` are log r where it was after 0, 1, ... steps.
  add(x) {
    const start = Float64Array.from(x);
    this.points.push({ start, x: start.slice(), before: start.slice(), values: [], isDone: false });
  }

  // Moves all points back to where they started.
  restart() {
    for (const point of this.points) {
      point.x.set(point.start);
      point.before.set(point.start);
      Object.assign(point, { values: [], isDone: false });
    }
  }

  // Takes one step (eq. 9) of every point that has not taken `length` steps, and evaluates the
  // others at their end. Returns whether all points are there.
  step({ stepSize, noiseScale, length }) {
    for (const point of this.points) {
      if (point.isDone) continue;
      const { x, before, values } = point;
      point.isDone = values.length >= length;
      values.push(logRatio(this.layers, x, point.isDone ? null : this.gradient));
      before.set(x);
      if (point.isDone) continue;
      for (let d = 0; d < x.length; d++) {
        x[d] -= stepSize * this.gradient[d];
        if (noiseScale) x[d] += noiseScale * this.normal();
      }
    }
    return this.points.every(({ isDone }) => isDone);
  }

  // The mean of log r over the points after 0, 1, ... steps, as far as all points have come.
  get meanLogRatios() {
    const { points } = this;
    const count = points.length ? Math.min(...points.map(({ values }) => values.length)) : 0;
    const mean = (k) => points.reduce((sum, { values }) => sum + values[k], 0) / points.length;
    return Array.from({ length: count }, (_, k) => mean(k));
  }
}

// The share of points within `numSigmas` standard deviations of one of the centres [C, D].
function shareNear(points, centres, sigma, numSigmas = 4) {
  const isNear = (x) => {
    for (let c = 0; c < centres.length; c += x.length) {
      let square = 0;
      for (let d = 0; d < x.length; d++) square += (x[d] - centres[c + d]) ** 2;
      if (square <= (numSigmas * sigma) ** 2) return true;
    }
    return false;
  };
  return points.filter(isNear).length / points.length;
}

if (typeof module === "object")
  module.exports = { floats, network, logRatio, uniforms, normals, Swarm, shareNear };
