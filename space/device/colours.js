// Images saved in false colour -> grey. Mirrors cxrlib.images.colormaps; its tables come with the model.

const [FAR, BEND] = [16, 1.25]; // of 255: mean distance from a map's line; how many times farther a tint must lie
const [CHROMA, PART] = [10, 0.3]; // from which a pixel is coloured, and the part that must be
let maps = new Map(); // name -> 256 colours
let chest = []; // mean of frontal chest radiographs, 8 x 8: tells a map from its reverse

/** Take the tables that the export wrote. */
export function setTables({ colormaps, chest: mean }) {
  maps = new Map(Object.entries(colormaps));
  chest = mean;
}

const distance = (a, b) => (a[0] - b[0]) ** 2 + (a[1] - b[1]) ** 2 + (a[2] - b[2]) ** 2;

/** The map along which colours lie; null for grey, tinted, annotated and other colour images. */
export function recognise(sample) {
  const colours = [];
  let coloured = 0;
  for (let i = 0; i < sample.length; i += 3) {
    const pixel = sample.subarray(i, i + 3);
    const [low, high] = [Math.min(...pixel), Math.max(...pixel)];
    if (high <= 5 || low >= 250) continue; // margins and letters are black or white
    colours.push(pixel);
    coloured += high - low >= CHROMA;
  }
  if (colours.length < 64 || coloured / colours.length < PART) return null;
  let [best, far] = [null, Math.min(FAR, fromLine(colours) / BEND)];
  for (const [name, table] of maps) {
    let sum = 0;
    for (const colour of colours) {
      let nearest = Infinity;
      for (const entry of table) nearest = Math.min(nearest, distance(colour, entry));
      sum += Math.sqrt(nearest);
    }
    if (sum / colours.length < far) [best, far] = [name, sum / colours.length];
  }
  return best;
}

/** Mean distance of colours from the straight line that fits best. */
function fromLine(colours) {
  const n = colours.length;
  const mean = [0, 1, 2].map((c) => colours.reduce((sum, colour) => sum + colour[c], 0) / n);
  const centred = colours.map((colour) => mean.map((m, c) => colour[c] - m));
  const square = mean.map((_, a) => mean.map((_, b) => centred.reduce((sum, x) => sum + x[a] * x[b], 0)));
  let axis = [1, 0.9, 0.8];
  for (let i = 0; i < 200; i++) {
    const next = square.map((row) => row.reduce((sum, v, c) => sum + v * axis[c], 0));
    const length = Math.hypot(...next) || 1;
    axis = next.map((v) => v / length);
  }
  const off = centred.map((x) => {
    const along = x.reduce((sum, v, c) => sum + v * axis[c], 0);
    return Math.hypot(...x.map((v, c) => v - along * axis[c]));
  });
  return off.reduce((a, b) => a + b, 0) / n;
}

/** Grey levels of RGBA pixels in a map's colours, and its name, with "_r" where it is reversed. */
export function undo(rgba, { data, width, height }, name) {
  const table = maps.get(name);
  const brightness = table.map(([r, g, b]) => 0.299 * r + 0.587 * g + 0.114 * b);
  const result = new Uint8Array(data.length);
  if (brightness[255] - brightness[0] > 128) {
    const rising = brightness.map((_, i) => Math.max(...brightness.slice(0, i + 1)) + i * 1e-4);
    const levels = Uint8Array.from({ length: 256 }, (_, value) => {
      if (value <= rising[0]) return 0;
      const above = rising.findIndex((v) => v >= value);
      if (above < 0) return 255;
      return Math.round(above - (rising[above] - value) / (rising[above] - rising[above - 1]));
    });
    data.forEach((value, i) => (result[i] = levels[value]));
  } else {
    const known = new Map();
    for (let i = 0, at = 0; i < result.length; i++, at += 4) {
      const key = (rgba[at] << 16) | (rgba[at + 1] << 8) | rgba[at + 2];
      let level = known.get(key);
      if (level === undefined) {
        let nearest = Infinity;
        table.forEach((entry, k) => {
          const d = distance(rgba.subarray(at, at + 3), entry);
          if (d < nearest) [nearest, level] = [d, k];
        });
        known.set(key, level);
      }
      result[i] = level;
    }
  }
  const means = new Float64Array(64);
  const counts = new Float64Array(64);
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      const cell = 8 * Math.floor((8 * y) / height) + Math.floor((8 * x) / width);
      means[cell] += result[y * width + x];
      counts[cell]++;
    }
  }
  const small = [...means].map((sum, i) => sum / (counts[i] || 1));
  const mean = small.reduce((a, b) => a + b, 0) / 64;
  if (small.reduce((sum, v, i) => sum + (v - mean) * chest[i], 0) >= 0) return [result, name];
  return [result.map((v) => 255 - v), `${name}_r`];
}
