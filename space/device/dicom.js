// DICOM: stored values -> modality LUT -> VOI LUT or window -> MONOCHROME1 inversion. Mirrors cxrlib.images.dicom.
// Runs in a classic worker: the codecs are scripts for `importScripts`.

import { JpegLossless, inflateSync, parseDicom } from "./vendor/formats.js";
import { luma } from "./pixels.js";

const TAGS = {
  syntax: "x00020010", modality: "x00080060", part: "x00180015", view: "x00185101", samples: "x00280002",
  photometric: "x00280004", planar: "x00280006", frames: "x00280008", rows: "x00280010", columns: "x00280011",
  allocated: "x00280100", stored: "x00280101", high: "x00280102", signed: "x00280103", centre: "x00281050",
  width: "x00281051", intercept: "x00281052", slope: "x00281053", voiFunction: "x00281056", modalityLut: "x00283000",
  descriptor: "x00283002", lut: "x00283006", voiLut: "x00283010", pixels: "x7fe00010",
};
const SYNTAX = "1.2.840.10008.1.2";
const DEFLATED = `${SYNTAX}.1.99`;
const PLAIN = new Set([SYNTAX, `${SYNTAX}.1`, `${SYNTAX}.2`, DEFLATED]);
const CODECS = new Map([
  [`${SYNTAX}.4.50`, "JPEG"], [`${SYNTAX}.4.57`, "lossless JPEG"], [`${SYNTAX}.4.70`, "lossless JPEG"],
  [`${SYNTAX}.4.80`, "JPEG-LS"], [`${SYNTAX}.4.81`, "JPEG-LS"], [`${SYNTAX}.4.90`, "JPEG 2000"],
  [`${SYNTAX}.4.91`, "JPEG 2000"], [`${SYNTAX}.5`, "run lengths"],
]);
const LOSSY = new Set([`${SYNTAX}.4.81`, `${SYNTAX}.4.91`]);
const GREY = ["MONOCHROME1", "MONOCHROME2"];
const COLOUR = ["RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT"];

/**
 * Decode the first frame of a radiograph, to grey.
 * @param {Uint8Array} bytes of the file
 * @returns {Promise<object>} picture, white, view, modality, notes and colour, as of a Radiograph
 */
export async function decodeDicom(bytes, { checkSize, decodeJpeg }) {
  const data = parse(bytes);
  const notes = [];
  const text = (tag) => strings(data, tag).join("");
  const number = (tag, otherwise = 0) => whole(data, tag) ?? otherwise;
  if (!data.elements[TAGS.pixels]) throw new Error("it holds no DICOM picture");
  const samples = number(TAGS.samples, 1);
  let photometric = text(TAGS.photometric);
  if (!photometric && samples === 1) {
    photometric = "MONOCHROME2";
    notes.push("it does not say whether black or white is zero; black is taken");
  }
  if (!(samples === 1 ? GREY : samples === 3 ? COLOUR : []).includes(photometric)) {
    throw new Error(`its photometric interpretation is ${photometric || "missing"}, with ${samples} samples per pixel`);
  }
  const [height, width, allocated] = [number(TAGS.rows), number(TAGS.columns), number(TAGS.allocated)];
  const bits = number(TAGS.stored) || allocated;
  checkSize(height, width);
  if (!(bits >= 1 && bits <= allocated) || !(samples === 1 ? [8, 16] : [8]).includes(allocated)) {
    throw new Error(`it stores ${bits} bits in ${allocated}; grey is read from 8 or 16, colour from 8`);
  }
  const frames = number(TAGS.frames, 1);
  if (frames > 1) notes.push(`it holds ${frames} frames; the first is used`);
  const part = text(TAGS.part).toUpperCase();
  if (part && !/CHEST|THORAX|LUNG|RIB|TORSO/.test(part)) {
    notes.push("its header names another body part than the chest");
  }
  const syntax = data.string(TAGS.syntax)?.trim() || SYNTAX;
  const stored = await firstFrame(data, { syntax, height, width, samples, allocated, photometric, decodeJpeg });
  const said = { view: strings(data, TAGS.view)[0]?.toUpperCase() ?? null,
    modality: strings(data, TAGS.modality)[0]?.toUpperCase() ?? null, notes };
  if (samples === 3) {
    return { picture: { data: luma(stored), width, height }, white: 255, colour: colourOf(stored), ...said };
  }
  const high = number(TAGS.high, bits - 1);
  const shift = bits <= high + 1 && high + 1 <= allocated ? high + 1 - bits : 0;
  const mask = 2 ** bits - 1;
  const signed = number(TAGS.signed) === 1;
  if (LOSSY.has(syntax) && !signed && high === bits - 1) for (let i = 0; i < stored.length; i++) {
    if (stored[i] > mask) stored[i] = mask; // a value that rounding led beyond the bits stored would turn over
  }
  const table = greys(data, { bits, signed, photometric, notes, stored, shift });
  const pixels = new table.constructor(width * height);
  for (let i = 0; i < pixels.length; i++) pixels[i] = table[(stored[i] >> shift) & mask];
  return { picture: { data: pixels, width, height }, white: bits <= 8 ? 255 : 65535, colour: 0, ...said };
}

function parse(bytes) {
  try {
    if (bytes[128] !== 68 && (bytes[0] === 2 || bytes[0] === 8)) { // no preamble
      if (bytes[0] === 8) return parseDicom(bytes, { TransferSyntaxUID: bytes[4] >= 65 ? `${SYNTAX}.1` : SYNTAX });
      const whole = new Uint8Array(bytes.length + 132);
      whole.set([68, 73, 67, 77], 128);
      whole.set(bytes, 132);
      bytes = whole;
    }
    const inflater = (file, start) => {
      const plain = inflateSync(file.subarray(start));
      const joined = new Uint8Array(start + plain.length);
      joined.set(file.subarray(0, start));
      joined.set(plain, start);
      return joined;
    };
    return parseDicom(bytes, { inflater });
  } catch (error) {
    throw new Error(`it is a damaged DICOM file (${error?.exception ?? error?.message ?? error})`);
  }
}

/** The values of an element; one that is empty says nothing. */
function strings(data, tag) {
  const text = data.elements[tag]?.length ? data.string(tag) : "";
  return (text ?? "").split("\\").map((value) => value.replace(/[ \0]+$/, "").trim()).filter(Boolean);
}

function number(data, tag) {
  const [text] = strings(data, tag);
  if (text === undefined) return null;
  if (!Number.isFinite(Number(text))) throw new Error("one of its numbers is not usable");
  return Number(text);
}

function whole(data, tag) {
  const element = data.elements[tag];
  if (!element?.length) return null;
  if (tag === TAGS.frames) return parseInt(data.string(tag), 10) || null;
  return data.uint16(tag) ?? null;
}

/** The grey level of every code, uint8 or uint16. */
function greys(data, { bits, signed, photometric, notes, stored, shift }) {
  const n = 2 ** bits;
  const half = signed ? n / 2 : 0;
  let values = Float64Array.from({ length: n }, (_, code) => (code >= n - half ? code - n : code));
  values = modality(values, data, signed);
  let grey = null;
  try {
    grey = voi(values, data, signed);
  } catch {
    notes.push("its window or VOI LUT is unusable; the full range of values is shown");
  }
  if (!grey) {
    let [low, high] = extremes(values);
    if (!(high - low > 0 && high - low < Infinity)) {
      throw new Error("its modality LUT or rescale slope gives no range of values");
    }
    if (bits > 8) {
      let [least, most] = [n, -1]; // of the codes, ordered by value
      for (const value of stored) {
        const order = ((value >> shift) + half) & (n - 1);
        if (order < least) least = order;
        if (order > most) most = order;
      }
      const used = [least, most].map((order) => values[(order - half) & (n - 1)]).sort((a, b) => a - b);
      if (used[1] > used[0] && used[1] - used[0] <= (high - low) / 16) {
        const plain = !signed && used[0] >= 0 && values[0] === 0 && values[n - 1] === n - 1;
        [low, high] = plain ? [0, 2 ** (Math.floor(Math.log2(used[1])) + 1) - 1] : used;
        notes.push(`its values use a small part of their range: ${low} to ${high} is shown`);
      }
    }
    grey = values.map((v) => (v - low) / (high - low));
  }
  const white = bits <= 8 ? 255 : 65535;
  const table = bits <= 8 ? new Uint8Array(n) : new Uint16Array(n);
  grey.forEach((level, i) => {
    const seen = Math.min(1, Math.max(0, level));
    table[i] = Math.round((photometric === "MONOCHROME1" ? 1 - seen : seen) * white);
  });
  return table;
}

function extremes(values) {
  let [low, high] = [Infinity, -Infinity];
  for (const value of values) {
    if (value < low) low = value;
    if (value > high) high = value;
  }
  return [low, high];
}

function modality(values, data, signed) {
  const item = lutOf(data, TAGS.modalityLut);
  if (item) return look(item, values, signed)[0];
  const [slope, intercept] = [number(data, TAGS.slope), number(data, TAGS.intercept)];
  return slope === null || intercept === null ? values : values.map((v) => v * slope + intercept);
}

/** Grey levels by the first VOI LUT, else the first window; null without either. */
function voi(values, data, signed) {
  const item = lutOf(data, TAGS.voiLut);
  if (item) {
    const [entries, white] = look(item, values, signed);
    return entries.map((v) => v / white);
  }
  let [centre, width] = [number(data, TAGS.centre), number(data, TAGS.width)];
  const linear = (strings(data, TAGS.voiFunction).join("") || "LINEAR") === "LINEAR";
  if (centre === null || width === null) return null;
  if (linear) [centre, width] = [centre - 0.5, width - 1]; // a window of 256 about 128 shows 0 to 255
  if (width < 0 || (width === 0 && !linear)) throw new Error("its window is not usable");
  return values.map((v) => (width ? (v - centre) / width + 0.5 : Number(v > centre)));
}

function lutOf(data, tag) {
  const items = data.elements[tag]?.items ?? [];
  const full = (set, name) => set.elements[name]?.length > 0;
  return items.find(({ dataSet }) => full(dataSet, TAGS.descriptor) && full(dataSet, TAGS.lut))?.dataSet;
}

function look(item, values, signed) {
  const count = item.uint16(TAGS.descriptor, 0) || 2 ** 16;
  let first = item.uint16(TAGS.descriptor, 1);
  const depth = item.uint16(TAGS.descriptor, 2);
  if (first > 2 ** 15 && signed) first -= 2 ** 16; // written signed, read unsigned
  const { length, dataOffset } = item.elements[TAGS.lut];
  const narrow = length < 2 * count;
  if (length < count || !(depth >= 8 && depth <= 16)) throw new Error("its LUT is not complete");
  const entry = (i) => (narrow ? item.byteArray[dataOffset + i] : item.uint16(TAGS.lut, i));
  const table = Float64Array.from({ length: count }, (_, i) => entry(i));
  return [values.map((v) => table[Math.min(count - 1, Math.max(0, Math.round(v) - first))]), 2 ** depth - 1];
}

/** The first frame as it is stored: Uint8Array or Uint16Array; of colour RGBA. */
async function firstFrame(data, { syntax, height, width, samples, allocated, photometric, decodeJpeg }) {
  const element = data.elements[TAGS.pixels];
  const count = width * height;
  if (PLAIN.has(syntax)) {
    const halved = photometric === "YBR_FULL_422";
    const length = (count * (halved ? 2 : samples) * allocated) / 8;
    if (element.length < length || element.dataOffset + length > data.byteArray.length) {
      throw new Error(`it is not complete: ${element.length} of ${length} bytes of pixels are there`);
    }
    const raw = data.byteArray.slice(element.dataOffset, element.dataOffset + length);
    if (samples === 3) return rgba(raw, count, whole(data, TAGS.planar) === 1, photometric, halved);
    if (allocated === 8) return raw;
    if (syntax === `${SYNTAX}.2`) for (let i = 0; i < raw.length; i += 2) [raw[i], raw[i + 1]] = [raw[i + 1], raw[i]];
    return new Uint16Array(raw.buffer);
  }
  const codec = CODECS.get(syntax);
  if (!codec) throw new Error(`its transfer syntax (${syntax}) is not read on the device; cxrlib on a computer reads more`);
  const frame = encapsulated(data, element, whole(data, TAGS.frames) ?? 1);
  let found;
  if (codec === "JPEG") {
    const { data: pixels, width: w, height: h } = await decodeJpeg(frame);
    found = { data: samples === 1 ? Uint8Array.from({ length: w * h }, (_, i) => pixels[4 * i]) : pixels, width: w, height: h };
  } else if (samples !== 1) {
    throw new Error(`colour as ${codec} is not read on the device`);
  } else if (codec === "lossless JPEG") {
    const decoder = new JpegLossless();
    const out = decoder.decompress(frame.buffer, frame.byteOffset, frame.length);
    const Kind = decoder.frame.precision > 8 ? Uint16Array : Uint8Array;
    found = { data: new Kind(out), width: decoder.frame.dimX, height: decoder.frame.dimY };
  } else if (codec === "run lengths") {
    found = { data: unpack(frame, count, allocated / 8), width, height };
  } else {
    found = await decodeBy(codec, frame);
  }
  if (found.width !== width || found.height !== height) {
    const coded = `${found.height} x ${found.width}`;
    throw new Error(`the header says ${height} x ${width} pixels, the compressed picture ${coded}`);
  }
  return found.data;
}

function encapsulated(data, element, frames) {
  const { fragments = [] } = element;
  if (!fragments.length) throw new Error("it is not complete: no compressed picture is there");
  const offsets = element.basicOffsetTable ?? [];
  const end = frames > 1 ? (offsets[1] ?? fragments[1]?.offset ?? Infinity) : Infinity;
  const parts = fragments.filter(({ offset }) => offset < end);
  const total = parts.reduce((sum, { length }) => sum + length, 0);
  const frame = new Uint8Array(total);
  let at = 0;
  for (const { position, length } of parts) {
    frame.set(data.byteArray.subarray(position, position + length), at);
    at += length;
  }
  return frame;
}

function rgba(raw, count, planar, photometric, halved) {
  const result = new Uint8ClampedArray(4 * count).fill(255);
  for (let i = 0; i < count; i++) {
    let pixel;
    if (halved) {
      const pair = 4 * (i >> 1); // two values of Y, then one each of Cb and Cr
      pixel = [raw[pair + (i & 1)], raw[pair + 2], raw[pair + 3]];
    } else {
      pixel = planar ? [raw[i], raw[count + i], raw[2 * count + i]] : [raw[3 * i], raw[3 * i + 1], raw[3 * i + 2]];
    }
    if (photometric !== "RGB") {
      const [y, b, r] = [pixel[0], pixel[1] - 128, pixel[2] - 128];
      pixel = [y + 1.402 * r, y - 0.344136 * b - 0.714136 * r, y + 1.772 * b];
    }
    result.set(pixel, 4 * i);
  }
  return result;
}

function colourOf(pixels) {
  let sum = 0;
  const step = 4 * Math.max(1, Math.floor(pixels.length / 4 / 4096));
  for (let at = 0; at < pixels.length; at += step) {
    const pixel = pixels.subarray(at, at + 3);
    sum += Math.max(...pixel) - Math.min(...pixel);
  }
  return sum / 255 / Math.ceil(pixels.length / step);
}

/** Bytes of one significance after the other, the highest first, each run-length encoded (DICOM PS3.5, annex G). */
function unpack(frame, count, width) {
  const view = new DataView(frame.buffer, frame.byteOffset, frame.length);
  if (frame.length < 64 || view.getUint32(0, true) !== width) throw new Error("its run lengths are damaged");
  const bytes = new Uint8Array(count * width);
  for (let k = 0; k < width; k++) {
    let at = view.getUint32(4 + 4 * k, true);
    const end = k + 1 < width ? view.getUint32(8 + 4 * k, true) : frame.length;
    let i = 0;
    while (i < count && at < end) {
      const control = frame[at++];
      const copies = control > 128 ? 257 - control : 1;
      const values = control < 128 ? control + 1 : 1;
      if (control === 128) continue;
      for (let n = 0; n < values * copies && i < count; n++) {
        bytes[width - 1 - k + width * i++] = frame[at + (copies > 1 ? 0 : n)];
      }
      at += values;
    }
    if (i < count) throw new Error(`it is not complete: ${i} of ${count} values are there`);
  }
  return width === 1 ? bytes : new Uint16Array(bytes.buffer);
}

const codecs = {
  "JPEG 2000": ["openjpegwasm_decode", "OpenJPEGWASM", "J2KDecoder"],
  "JPEG-LS": ["charlswasm_decode", "CharLSWASM", "JpegLSDecoder"],
};
const loaded = new Map();

async function decodeBy(name, frame) {
  const [file, factory, kind] = codecs[name];
  if (!loaded.has(name)) {
    importScripts(`vendor/${file}.js`);
    loaded.set(name, self[factory]({ locateFile: () => new URL(`vendor/${file}.wasm`, self.location).href }));
  }
  const codec = await loaded.get(name);
  const decoder = new codec[kind]();
  try {
    decoder.getEncodedBuffer(frame.length).set(frame);
    decoder.decode();
    const { width, height, bitsPerSample, componentCount } = decoder.getFrameInfo();
    if (componentCount !== 1) throw new Error(`colour as ${name} is not read on the device`);
    const raw = decoder.getDecodedBuffer().slice();
    return { data: bitsPerSample > 8 ? new Uint16Array(raw.buffer, 0, raw.length >> 1) : raw, width, height };
  } finally {
    decoder.delete();
  }
}
