// Is this a frontal chest radiograph, and if not, why not? Mirrors cxrlib.runtime.gate; its numbers come with the model.

const GRID = 16;
const GENERAL = "it does not look like a frontal chest radiograph";

/** The numbers of an array as a bundle's config holds it: base64 of float16 or float32, little-endian. */
export function unpackArray({ shape, dtype, data }) {
  const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
  if (dtype === "float32") return { shape, values: new Float32Array(bytes.buffer) };
  const halves = new Uint16Array(bytes.buffer);
  return { shape, values: Float32Array.from(halves, half) };
}

function half(bits) {
  const [exponent, fraction] = [(bits >> 10) & 31, bits & 1023];
  const size = exponent ? 2 ** (exponent - 15) * (1 + fraction / 1024) : 2 ** -14 * (fraction / 1024);
  return bits & 0x8000 ? -size : size;
}

const percent = (part) => `${Math.round(100 * part)}%`;

/**
 * Check an image's header and pixels, without any network.
 * @param {import("./decode.js").Radiograph} image
 * @param {Float32Array} fitted the network's input, in [0, 1]
 * @param {object} words which views and modalities are known
 * @returns {{refusals: string[], warnings: string[], layout: Float32Array}}
 */
export function inspect(image, fitted, { views, laterals, modalities }) {
  const [refusals, warnings] = [[], []];
  const { width, height } = image.picture;
  const side = Math.sqrt(fitted.length);
  if (image.modality && !modalities.includes(image.modality)) {
    refusals.push(`its header says that it is not a plain radiograph (modality ${image.modality.slice(0, 16)})`);
  }
  if (laterals.includes(image.view)) {
    refusals.push(`its header says that it is a lateral or oblique view (${image.view})`);
  } else if (image.view && !views.includes(image.view)) {
    warnings.push(`its header names a view that is neither PA nor AP (${image.view.slice(0, 16)})`);
  }
  const small = Math.min(width, height);
  const aspect = Math.max(width, height) / small;
  if (small < 64) refusals.push(`it is too small: ${width} x ${height} pixels, at least 64 x 64 are needed`);
  else if (small < side) {
    warnings.push(`it is small: ${width} x ${height} pixels, the network uses ${side} x ${side}`);
  }
  if (aspect > 4) refusals.push(`it is too long and narrow: ${width} x ${height} pixels`);
  else if (aspect > 2.5) warnings.push(`it is unusually long and narrow: ${width} x ${height} pixels`);
  if (image.colour > 0.03) warnings.push("it is a colour image; only its brightness was used");
  const below = new Float64Array(256); // pixels of each level or darker
  let n = 0;
  for (let y = 0; y < side; y += 4) {
    for (let x = 0; x < side; x += 4, n++) below[Math.trunc(Math.fround(fitted[y * side + x] * 255))]++;
  }
  for (let level = 1; level < 256; level++) below[level] += below[level - 1];
  const [darkest, brightest] = [0.01, 0.99].map((part) => below.findIndex((count) => count >= part * n));
  const spread = (brightest - darkest) / 255;
  if (spread < 0.1) {
    refusals.push("it is almost blank");
  } else {
    if (spread < 0.3) warnings.push("it has very little contrast");
    for (const [name, part] of [["black", below[1] / n], ["white", 1 - below[253] / n]]) {
      if (part > 0.85) refusals.push(`${percent(part)} of it is pure ${name}`);
      else if (part > 0.6 || (part > 0.2 && name === "white")) {
        warnings.push(`${percent(part)} of it is pure ${name}: it may be badly exposed or cut off`);
      }
    }
  }
  return { refusals, warnings, layout: layoutOf(fitted, side) };
}

/** Ranks of the brightness of 16 x 16 cells, with mean 0 and standard deviation 1. */
function layoutOf(fitted, side) {
  const cell = Math.floor(side / GRID);
  const cells = new Float32Array(GRID ** 2);
  for (let row = 0; row < GRID; row++) {
    for (let column = 0; column < GRID; column++) {
      let sum = 0;
      for (let x = column * cell; x < (column + 1) * cell; x++) {
        let down = 0;
        for (let y = row * cell; y < (row + 1) * cell; y++) down = Math.fround(down + fitted[y * side + x]);
        sum = Math.fround(sum + down);
      }
      cells[row * GRID + column] = sum;
    }
  }
  const order = [...cells.keys()].sort((a, b) => cells[a] - cells[b] || a - b);
  const ranks = new Float32Array(cells.length);
  order.forEach((at, rank) => (ranks[at] = ((rank - (cells.length - 1) / 2) * Math.sqrt(12)) / cells.length));
  return ranks;
}

/** Tells frontal chest radiographs from all other images. */
export class Gate {
  constructor(config, hints) {
    this.config = config;
    this.hints = hints;
    for (const name of ["weights", "bias", "centre", "scale", "directions", "spread"]) {
      this[name] = unpackArray(config[name]);
    }
  }

  /**
   * @param {ReturnType<typeof inspect>} seen
   * @param {Float32Array} embedding of the network
   * @returns {{accepted: boolean, reasons: string[]}}
   */
  check({ refusals, warnings, layout }, embedding) {
    if (refusals.length) return { accepted: false, reasons: refusals };
    const [unusual, logits] = this.measure(embedding, layout);
    if (!(unusual <= this.config.refuse)) return { accepted: false, reasons: [GENERAL + this.hint(logits)] };
    const care = "it differs from most radiographs that the model was trained on: use its probability with care";
    return { accepted: true, reasons: unusual > this.config.warn ? [...warnings, care] : warnings };
  }

  /** How unusual an image is, 1 for one chest radiograph in a hundred; and the logits of the other kinds. */
  measure(embedding, layout) {
    const { config, weights, bias, centre, scale, directions, spread } = this;
    const k = bias.values.length;
    const roots = embedding.map((v) => Math.sqrt(Math.max(v, 0)));
    const values = [...roots, ...layout];
    const logits = Float64Array.from(bias.values);
    values.forEach((v, i) => {
      for (let j = 0; j < k; j++) logits[j] += v * weights.values[i * k + j];
    });
    const most = Math.max(...logits);
    const score = most + Math.log(logits.reduce((sum, v) => sum + Math.exp(v - most), 0));
    const [p, q] = directions.shape;
    const along = new Float64Array(q);
    let length = 0;
    for (let i = 0; i < p; i++) {
      const z = (roots[i] - centre.values[i]) * scale.values[i];
      length += z * z;
      for (let j = 0; j < q; j++) along[j] += z * directions.values[i * q + j];
    }
    let far = length / config.rest;
    along.forEach((v, j) => (far += v * v * (1 / (q * spread.values[j] ** 2) - 1 / config.rest)));
    far = Math.log(Math.max(far, 1e-12));
    const scaled = [[score, config.score], [far, config.distance]].map(([x, [usual, reach]]) =>
      Math.max((x - usual) / reach, 0));
    return [Math.hypot(...scaled), logits];
  }

  /** What it looks like, where the classifier is sure of one kind. */
  hint(logits) {
    const best = logits.indexOf(Math.max(...logits));
    const sure = logits[best] > 0 && logits.reduce((sum, v) => sum + Math.exp(v - logits[best]), 0) < 2;
    const hint = sure ? this.hints[this.config.kinds[best]] : "";
    return hint ? `: ${hint}` : "";
  }
}
