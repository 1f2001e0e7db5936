// Grey pictures: resizing as Pillow does it, to the last bit of 8-bit images, so that a page answers as Python does.

const BITS = 22; // of the fixed-point weights of an 8-bit picture
const GAP = 1.25; // a picture is averaged in whole blocks until it is this many times larger than wanted

/**
 * @typedef {object} Picture
 * @property {Uint8Array | Uint16Array | Float32Array} data grey levels, row by row
 * @property {number} width in pixels
 * @property {number} height in pixels
 */

const bicubic = {
  support: 2,
  at(x) {
    x = Math.abs(x);
    if (x < 1) return (1.5 * x - 2.5) * x * x + 1;
    return x < 2 ? (((x - 5) * x + 8) * x - 4) * -0.5 : 0;
  },
};
const bilinear = { support: 1, at: (x) => Math.max(0, 1 - Math.abs(x)) };

/** Weights of the input pixels for each output pixel: where they begin, how many there are, and the weights. */
function weigh(size, end, out, filter, fixed) {
  const scale = end / out;
  const stretch = Math.max(scale, 1);
  const support = filter.support * stretch;
  const most = 2 * Math.ceil(support) + 1;
  const starts = new Int32Array(out);
  const counts = new Int32Array(out);
  const weights = fixed ? new Int32Array(out * most) : new Float64Array(out * most);
  const row = new Float64Array(most);
  for (let i = 0; i < out; i++) {
    const centre = (i + 0.5) * scale;
    const start = Math.max(0, Math.trunc(centre - support + 0.5));
    const count = Math.min(size, Math.trunc(centre + support + 0.5)) - start;
    let sum = 0;
    for (let k = 0; k < count; k++) sum += row[k] = filter.at((k + start - centre + 0.5) / stretch);
    for (let k = 0; k < count; k++) {
      const weight = row[k] / sum;
      weights[i * most + k] = fixed ? Math.trunc(weight * 2 ** BITS + (weight < 0 ? -0.5 : 0.5)) : weight;
    }
    starts[i] = start;
    counts[i] = count;
  }
  return { starts, counts, weights, most };
}

/** Resize one axis; `step` lies between pixels along it, `stride` between its lines. */
function pass(data, lines, stride, step, result, outStride, outStep, { starts, counts, weights, most }) {
  const fixed = data instanceof Uint8Array;
  for (let line = 0; line < lines; line++) {
    for (let i = 0; i < starts.length; i++) {
      let at = line * stride + starts[i] * step;
      let sum = fixed ? 1 << (BITS - 1) : 0;
      for (let k = i * most, end = k + counts[i]; k < end; k++, at += step) sum += data[at] * weights[k];
      if (fixed) sum = Math.min(255, Math.max(0, sum >> BITS));
      result[line * outStride + i * outStep] = sum;
    }
  }
}

/** Average whole blocks of a picture. */
function reduce({ data, width, height }, across, down) {
  const [w, h] = [Math.ceil(width / across), Math.ceil(height / down)];
  const result = new data.constructor(w * h);
  const bytes = data instanceof Uint8Array;
  for (let j = 0; j < h; j++) {
    const bottom = Math.min(height, (j + 1) * down);
    for (let i = 0; i < w; i++) {
      const right = Math.min(width, (i + 1) * across);
      let sum = 0;
      for (let y = j * down; y < bottom; y++) {
        for (let at = y * width + i * across, end = y * width + right; at < end; at++) sum += data[at];
      }
      const n = (bottom - j * down) * (right - i * across);
      result[j * w + i] = bytes
        ? Math.floor(((sum + (n >> 1)) * Math.floor(2 ** 24 / n)) / 2 ** 24)
        : sum / n;
    }
  }
  return { data: result, width: w, height: h };
}

/**
 * Resize a picture with an antialiased bicubic or bilinear filter.
 * @param {Picture} picture 8-bit, else it is computed in floating point
 * @param {number} width wanted
 * @param {number} height wanted
 * @returns {Picture} Uint8Array from Uint8Array, else Float32Array
 */
export function resize(picture, width, height, { filter = "bicubic", gap = GAP } = {}) {
  if (picture.width === width && picture.height === height) return picture;
  const kernel = filter === "bicubic" ? bicubic : bilinear;
  const Kind = picture.data instanceof Uint8Array ? Uint8Array : Float32Array;
  if (!(picture.data instanceof Kind)) picture = { ...picture, data: Float32Array.from(picture.data) };
  let [right, bottom] = [picture.width, picture.height];
  const across = Math.max(1, Math.floor(right / width / gap));
  const down = Math.max(1, Math.floor(bottom / height / gap));
  if (across > 1 || down > 1) {
    picture = reduce(picture, across, down);
    right /= across;
    bottom /= down;
  }
  const fixed = Kind === Uint8Array;
  const { data } = picture;
  const wide = new Kind(width * picture.height);
  pass(data, picture.height, picture.width, 1, wide, width, 1, weigh(picture.width, right, width, kernel, fixed));
  const result = new Kind(width * height);
  pass(wide, width, 1, width, result, 1, width, weigh(picture.height, bottom, height, kernel, fixed));
  return { data: result, width, height };
}

/** Cut out a part: left, top, right and bottom in pixels. */
export function crop({ data, width }, [left, top, right, bottom]) {
  const w = right - left;
  const result = new data.constructor(w * (bottom - top));
  for (let y = top; y < bottom; y++) result.set(data.subarray(y * width + left, y * width + right), (y - top) * w);
  return { data: result, width: w, height: bottom - top };
}

/** Luma of RGBA pixels, as a Uint8Array. */
export function luma(rgba) {
  const grey = new Uint8Array(rgba.length / 4);
  for (let i = 0, at = 0; i < grey.length; i++, at += 4) {
    grey[i] = (rgba[at] * 19595 + rgba[at + 1] * 38470 + rgba[at + 2] * 7471 + 0x8000) >> 16;
  }
  return grey;
}

const EMPTY = 2.5 / 255; // of white: how far the grey of a bar may vary
const [BARS, PICTURE] = [1 / 7, 0.25]; // bars that take less of an image stay; so do those that leave less of it

/**
 * Find what lies within empty bars at the edges, as padding leaves them.
 * @returns {number[] | null} left, top, right and bottom; null where there are no bars worth cutting
 */
export function content({ data, width, height }, white) {
  const limit = white * EMPTY;
  /** How many lines from an edge are, all together, of one grey. */
  const bar = (line, most, length) => {
    let [low, high] = [Infinity, -Infinity];
    for (let i = 0; i < most; i++) {
      const [start, step] = line(i);
      for (let k = 0, at = start; k < length; k++, at += step) {
        if (data[at] < low) low = data[at];
        if (data[at] > high) high = data[at];
        if (high - low > limit) return i;
      }
    }
    return most;
  };
  const left = bar((i) => [i, width], width, height);
  if (left === width) return null; // blank
  const right = width - bar((i) => [width - 1 - i, width], width, height);
  const top = bar((i) => [i * width, 1], height, width);
  const bottom = height - bar((i) => [(height - 1 - i) * width, 1], height, width);
  const part = ((right - left) * (bottom - top)) / (width * height);
  return left < right && top < bottom && part >= PICTURE && part <= 1 - BARS ? [left, top, right, bottom] : null;
}
