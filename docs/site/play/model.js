// The network in the browser: pixels -> probabilities, features, and evidence for a class at each place.
import * as ort from "./vendor/ort.js";

const here = (name) => new URL(name, import.meta.url);

async function fetched(name) {
  const answer = await fetch(here(name)).catch(() => null);
  if (!answer?.ok) throw new Error(`the file play/${name} is not there (${answer?.status ?? "no answer"})`);
  return answer;
}

/** The bytes of a gzipped file; some servers unpack it on the way. */
async function bytes(name) {
  const packed = new Uint8Array(await (await fetched(name)).arrayBuffer());
  if (packed[0] !== 0x1f || packed[1] !== 0x8b) return packed;
  try {
    const unpacked = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Uint8Array(await new Response(unpacked).arrayBuffer());
  } catch {
    throw new Error(`the file play/${name} is damaged`);
  }
}

export async function load() {
  const card = await (await fetched("card.json")).json();
  const [runtime, network, table] = await Promise.all(
    ["vendor/ort.wasm.gz", "model.onnx.gz", "table.bin.gz"].map(bytes),
  );
  ort.env.wasm.numThreads = 1; // more of them need headers that few servers of files send
  ort.env.wasm.wasmBinary = runtime;
  const session = await ort.InferenceSession.create(network, { executionProviders: ["wasm"] }).catch((error) => {
    throw new Error(`the network does not load (${error.message})`);
  });
  return new Model(card, session, table);
}

class Model {
  constructor(card, session, table) {
    const count = card.channels;
    this.card = card;
    this.session = session;
    this.last = Promise.resolve();
    // Mean and deviation of each feature over the glyphs; then a row of int8 for each glyph.
    this.mean = new Float32Array(table.buffer, 0, count);
    this.deviation = new Float32Array(table.buffer, 4 * count, count);
    this.glyphs = card.pictured.map((_, row) => new Int8Array(table.buffer, (8 + row) * count, count));
    this.lengths = this.glyphs.map(norm);
  }

  /** RGBA pixels {data, width, height} -> {probabilities, features}. */
  async classify(image, size = this.card.resolution) {
    const { logits, features } = await this.run(image, size);
    return { probabilities: probabilities(logits.data, this.card.activation), features: features.data };
  }

  /** How much more each place of a picture speaks for a class than for the average one:
   *  {values, height, width}. The network sees twice the resolution, and a pixel more: so the places are
   *  evenly spaced from edge to edge, as it samples every 32nd pixel, from the first on. */
  async evidence(image, index, size = 2 * this.card.resolution + 1) {
    const { evidence } = await this.run(image, size);
    const [, height, width, classes] = evidence.dims;
    const values = Float32Array.from({ length: height * width }, (_, place) => {
      const all = evidence.data.subarray(place * classes, (place + 1) * classes);
      return all[index] - all.reduce((a, b) => a + b) / classes;
    });
    return { values, height, width };
  }

  /** The glyphs that a picture's features are most like: [{index, cosine}], best first. */
  nearest(features, count = 5) {
    const vector = this.standardized(features);
    const length = norm(vector);
    return this.glyphs
      .map((row, i) => ({ index: this.card.pictured[i], cosine: dot(row, vector) / this.lengths[i] / length }))
      .sort((a, b) => b.cosine - a.cosine)
      .slice(0, count);
  }

  /** Features with mean 0 and deviation 1 over the glyphs. */
  standardized(features) {
    return features.map((value, i) => (value - this.mean[i]) / this.deviation[i]);
  }

  run(image, size) {
    const inputs = prepare(image, size, this.card.antialias);
    const feeds = { inputs: new ort.Tensor("float32", inputs, [1, size, size, 3]) };
    this.last = this.last.catch(() => {}).then(() => this.session.run(feeds)); // one at a time
    return this.last;
  }
}

export const dot = (a, b) => a.reduce((sum, value, i) => sum + value * b[i], 0);
const norm = (vector) => Math.sqrt(dot(vector, vector));

export function probabilities(logits, activation = "softmax") {
  if (activation === "sigmoid") return Float32Array.from(logits, (logit) => 1 / (1 + Math.exp(-logit)));
  const most = logits.reduce((a, b) => Math.max(a, b));
  const powers = Float64Array.from(logits, (logit) => Math.exp(logit - most));
  const total = powers.reduce((a, b) => a + b);
  return powers.map((power) => power / total);
}

/** RGBA pixels as `bitlib.images.prepare` makes them: float32 [size, size, 3] in [-1, 1]. */
export function prepare({ data, width, height }, size, antialias) {
  let levels = resized(data, 1, height, 4 * width, size, antialias); // height, then width
  levels = resized(levels, size, width, 4, size, antialias);
  return Float32Array.from({ length: 3 * size * size }, (_, i) => levels[4 * Math.floor(i / 3) + (i % 3)] / 127.5 - 1);
}

/** [rows, from, step] -> [rows, to, step], linearly along the middle, as `bitlib.images.resize`. */
function resized(values, rows, from, step, to, antialias) {
  if (from === to) return values;
  const result = new Float32Array(rows * to * step);
  taps(from, to, antialias).forEach(({ first, weights }, place) => {
    for (let row = 0; row < rows; row++) {
      const target = (row * to + place) * step;
      weights.forEach((weight, k) => {
        const source = (row * from + first + k) * step;
        for (let i = 0; i < step; i++) result[target + i] += values[source + i] * weight;
      });
    }
  });
  return result;
}

/** Which of `size` pixels each of `length` new ones is made of, and how much. In float32, as Python's. */
function taps(size, length, antialias) {
  const f = Math.fround;
  const scale = antialias ? f(1 / f(length / size)) : f(size / length);
  const radius = antialias ? Math.max(scale, 1) : 1;
  return Array.from({ length }, (_, i) => {
    const centre = f(f((i + 0.5) * scale) - 0.5);
    const first = Math.max(Math.ceil(f(centre - radius)), 0);
    const last = Math.min(Math.floor(centre + radius), size - 1);
    const weights = [];
    for (let tap = first; tap <= last; tap++) weights.push(Math.max(1 - f(Math.abs(tap - centre) / radius), 0));
    const total = weights.reduce((a, b) => a + b);
    return { first, weights: weights.map((weight) => f(weight / total)) };
  });
}
