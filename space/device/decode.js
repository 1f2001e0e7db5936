// The bytes of a file -> a grey image by its declared bit depth -> the input of the network. Mirrors cxrlib.images.

import { decodePng } from "./vendor/formats.js";
import { decodeDicom } from "./dicom.js";
import { content, crop, luma, resize } from "./pixels.js";
import { recognise, undo } from "./colours.js";

const MAX_PIXELS = 30_000_000;
const MAX_ASPECT = 20; // longer strips are not pictures

/** What cannot be read as an image, in words for the user. */
export class ImageError extends Error {}

/**
 * @typedef {object} Radiograph
 * @property {import("./pixels.js").Picture} picture
 * @property {number} white the value that means 1.0
 * @property {string} name
 * @property {number} colour 0 for a grey source, else mean of max(R, G, B) - min(R, G, B), in [0, 1]
 * @property {string | null} view as the file declares it
 * @property {string | null} modality as the file declares it
 * @property {string[]} notes warnings in plain words
 */

/**
 * Decode an image.
 * @param {Uint8Array} bytes of a file
 * @param {string} name of the file
 * @returns {Promise<Radiograph>}
 */
export async function read(bytes, name) {
  try {
    const kind = kindOf(bytes);
    const plain = { name, colour: 0, view: null, modality: null, notes: [] };
    if (kind === "dicom") return { ...plain, ...(await decodeDicom(bytes, { checkSize, decodeJpeg: decoded })) };
    if (kind === "png" && bytes[24] === 16 && bytes[25] === 0) return { ...plain, ...deep(bytes) };
    checkComplete(kind, bytes);
    const { data, width, height } = await decoded(bytes);
    const { notes = [], ...image } = grey(data, width, height);
    return { ...plain, ...image, notes: [...several(kind, bytes), ...notes] };
  } catch (error) {
    const told = error instanceof ImageError ? error.message : `it is damaged or not complete (${error.message})`;
    throw new ImageError(`${name}: ${told}`);
  }
}

/**
 * Cut off empty bars and resize to the network's input.
 * @param {Radiograph} image
 * @param {number} size side in pixels
 * @returns {{pixels: Float32Array, box: number[] | null}} in [0, 1], and what lies within the bars
 */
export function fit({ picture, white }, size) {
  const box = content(picture, white);
  const { data } = resize(box ? crop(picture, box) : picture, size, size);
  return { pixels: Float32Array.from(data, (v) => Math.min(1, Math.max(0, Math.fround(v / white)))), box };
}

const starts = (bytes, text, at = 0) => [...text].every((letter, i) => bytes[at + i] === letter.charCodeAt(0));
const u16 = (bytes, at) => bytes[at] * 256 + bytes[at + 1];
const STRANGERS = [["PK\x03\x04", "a zip archive"], ["%PDF", "a PDF"], ["II*\0", "a TIFF"], ["MM\0*", "a TIFF"],
  ["\x1f\x8b", "a gzip archive"], ["<", "a web page or XML"]];

/** The kind of file by its content; its size is checked before anything is decoded. */
function kindOf(bytes) {
  if (!bytes.length) throw new ImageError("it is empty");
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  if (starts(bytes, "DICM", 128) || ((bytes[0] === 2 || bytes[0] === 8) && bytes[1] === 0)) return "dicom";
  if (starts(bytes, "\xff\xd8\xff")) {
    for (let at = 2; at + 9 < bytes.length && bytes[at] === 0xff; ) {
      const marker = bytes[at + 1];
      if (marker >= 0xc0 && marker <= 0xcf && ![0xc4, 0xc8, 0xcc].includes(marker)) {
        checkSize(u16(bytes, at + 5), u16(bytes, at + 7));
        return "jpeg";
      }
      at += marker === 0xff ? 1 : 2 + u16(bytes, at + 2);
    }
    throw new ImageError("it is cut short");
  }
  if (starts(bytes, "\x89PNG\r\n\x1a\n") && bytes.length > 33) {
    checkSize(view.getUint32(20), view.getUint32(16));
    return "png";
  }
  if ((starts(bytes, "GIF87a") || starts(bytes, "GIF89a")) && bytes.length > 10) {
    checkSize(view.getUint16(8, true), view.getUint16(6, true));
    return "gif";
  }
  if (starts(bytes, "BM") && bytes.length > 26) {
    checkSize(Math.abs(view.getInt32(22, true)), view.getInt32(18, true));
    return "bmp";
  }
  if (starts(bytes, "RIFF") && starts(bytes, "WEBP", 8) && bytes.length > 30) {
    if (starts(bytes, "VP8X", 12)) {
      checkSize(1 + (view.getUint32(26, true) >>> 8), 1 + (view.getUint32(24, true) & 0xffffff));
    } else if (starts(bytes, "VP8L", 12)) {
      const bits = view.getUint32(21, true);
      checkSize(1 + ((bits >>> 14) & 0x3fff), 1 + (bits & 0x3fff));
    } else {
      checkSize(view.getUint16(28, true) & 0x3fff, view.getUint16(26, true) & 0x3fff);
    }
    return "webp";
  }
  const found = starts(bytes, "ftyp", 4) ? "HEIC, AVIF or video" : STRANGERS.find(([text]) => starts(bytes, text))?.[1];
  throw new ImageError(`it is ${found ? `${found}, ` : ""}not a JPEG, PNG, WebP, GIF, BMP or DICOM file`);
}

function checkSize(height, width) {
  if (!(height >= 1 && width >= 1)) throw new ImageError(`it has no pixels (${height} x ${width})`);
  if (height * width > MAX_PIXELS) {
    const most = MAX_PIXELS.toLocaleString("en");
    throw new ImageError(`it has ${height} x ${width} pixels, more than the ${most} that are read`);
  }
  if (Math.max(height, width) > MAX_ASPECT * Math.min(height, width)) {
    throw new ImageError(`it is a strip of ${height} x ${width} pixels, not a radiograph`);
  }
}

/** Browsers fill up what is missing of a picture; here it is an error. */
function checkComplete(kind, bytes) {
  if (kind === "jpeg") {
    let at = bytes.length - 2;
    while (at > 0 && !(bytes[at] === 0xff && (bytes[at + 1] === 0xd9 || bytes[at + 1] === 0xda))) at--;
    if (bytes[at + 1] !== 0xd9) throw new ImageError("it is cut short");
  } else if (kind === "png") {
    const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
    for (let at = 8; ; at += 12 + view.getUint32(at)) {
      if (at + 12 > bytes.length) throw new ImageError("it is cut short");
      if (starts(bytes, "IEND", at + 4)) return;
    }
  } else if (kind === "webp" && new DataView(bytes.buffer, bytes.byteOffset).getUint32(4, true) + 8 > bytes.length) {
    throw new ImageError("it is cut short");
  }
}

/** RGBA pixels as the browser decodes them: upright, without colour management, transparent parts black. */
async function decoded(bytes) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(new Blob([bytes]), { colorSpaceConversion: "none", imageOrientation: "from-image" });
  } catch {
    throw new ImageError("it is damaged or not complete");
  }
  const { width, height } = bitmap;
  const pen = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true, alpha: false });
  pen.drawImage(bitmap, 0, 0);
  bitmap.close();
  const pixels = pen.getImageData(0, 0, width, height);
  pen.canvas.width = 0; // its memory goes now, not when it is collected
  return pixels;
}

/** Grey levels of RGBA pixels; false colour is undone. */
function grey(rgba, width, height) {
  const sample = new Uint8Array(64 * 64 * 3);
  let colour = 0;
  for (let j = 0; j < 64; j++) {
    for (let i = 0; i < 64; i++) {
      const at = 4 * (Math.trunc(((j + 0.5) * height) / 64) * width + Math.trunc(((i + 0.5) * width) / 64));
      const pixel = rgba.subarray(at, at + 3);
      sample.set(pixel, 3 * (64 * j + i));
      colour += (Math.max(...pixel) - Math.min(...pixel)) / 255 / 64 ** 2;
    }
  }
  const picture = { data: luma(rgba), width, height };
  const map = colour && recognise(sample);
  if (!map) return { picture, white: 255, colour };
  const [data, found] = undo(rgba, picture, map);
  const notes = [`it was in false colour (${found}), which was undone`];
  return { picture: { data, width, height }, white: 255, colour: 0, notes };
}

/** A grey PNG of 16 bits, which browsers would show in 8. */
function deep(bytes) {
  const { data, width, height } = decodePng(bytes);
  let most = 0;
  for (const value of data) if (value > most) most = value;
  const { white, notes } = used(most, 65535);
  return { picture: { data, width, height }, white, notes };
}

/** White, and a note: the fewest bits that hold the values where they use less than a sixteenth of its range. */
function used(most, white) {
  if (!(most > 0 && most <= white / 16)) return { white, notes: [] };
  const few = 2 ** (Math.floor(Math.log2(most)) + 1) - 1;
  return { white: few, notes: [`no value is above ${most} where white is ${white}: it was scaled by ${few} instead`] };
}

function several(kind, bytes) {
  const names = { png: "acTL", webp: "ANIM" };
  let found = false;
  if (kind === "gif") {
    for (let i = 13, n = 0; i + 8 < bytes.length && !found; i++) {
      if (bytes[i] === 0x21 && bytes[i + 1] === 0xf9 && bytes[i + 2] === 4 && bytes[i + 7] === 0) found = ++n > 1;
    }
  } else if (names[kind]) {
    for (let i = 12; i < Math.min(bytes.length, 4096) && !found; i++) found = starts(bytes, names[kind], i);
  }
  return found ? ["the file holds several pictures; the first is used"] : [];
}
