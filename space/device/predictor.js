// A bundle in the browser: an image in, a calibrated answer or a stated refusal out. Mirrors cxrlib.Predictor.

import { setTables } from "./colours.js";
import { fit, read } from "./decode.js";
import { Gate, inspect, unpackArray } from "./gate.js";
import { resize } from "./pixels.js";
import { Tensor, loadAndCompile, loadLiteRt } from "./vendor/litert.js";

const RUNTIME = "vendor/litert_wasm_compat_internal";
const TOLERANCE = 1e-3; // of the golden probe
const FULL = 8; // evidence, in units of the logit, that gets the strongest colour
const [SHOWN, HEAT] = [2048, 320]; // longest sides of what is shown, in pixels

async function fetched(path) {
  const response = await fetch(path);
  if (!response.ok) throw new Error(`${path} cannot be loaded (status ${response.status})`);
  return new Uint8Array(await response.arrayBuffer());
}

/** Unpack a gzip file, unless the server's headers have already had the browser do so. */
async function unzipped(bytes) {
  if (bytes[0] !== 0x1f || bytes[1] !== 0x8b) return bytes.buffer;
  return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).arrayBuffer();
}

async function sha256(bytes) {
  if (!globalThis.crypto?.subtle) throw new Error("this page needs HTTPS: without it, its model cannot be verified");
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
  return [...digest].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** The image whose probabilities every bundle states: smooth waves, the same on every machine. */
export function probeImage(size) {
  const axis = Float64Array.from({ length: size }, (_, i) => -1 + (2 * i) / (size - 1));
  return Float32Array.from({ length: size * size }, (_, i) => {
    const [x, y] = [axis[i % size], axis[Math.floor(i / size)]];
    const cloud = 0.2 * Math.exp(-8 * ((Math.abs(x) - 0.4) ** 2 + y ** 2 / 2));
    const wave = 0.5 + 0.25 * Math.cos(5 * x) * Math.cos(4 * y) - cloud;
    return Math.round(255 * Math.min(1, Math.max(0, wave))) / 255;
  });
}

export class Predictor {
  /**
   * Load the model, verify its hash and its golden probe.
   * @param {"wasm" | "webgpu"} accelerator where to compute
   */
  static async load(accelerator = "wasm") {
    const [config, tables, network, runtime] = await Promise.all(
      ["model/config.json", "model/tables.json", "model/model.tflite", `${RUNTIME}.wasm.gz`].map(fetched),
    );
    const predictor = new Predictor();
    predictor.config = JSON.parse(new TextDecoder().decode(config));
    predictor.tables = JSON.parse(new TextDecoder().decode(tables));
    setTables(predictor.tables);
    if ((await sha256(network)) !== predictor.config.files["model.tflite"]) {
      throw new Error("the model was altered or damaged: its SHA-256 is not the one that config.json lists");
    }
    self.Module = { wasmBinary: await unzipped(runtime), print() {}, printErr() {} };
    await loadLiteRt(`${RUNTIME}.js`);
    predictor.network = await loadAndCompile(network, { accelerator, gpuOptions: { precision: "fp32" } });
    const { gate, normal_evidence: normal, image_size: size, probe } = predictor.config;
    predictor.gate = gate && new Gate(gate, predictor.tables.hints);
    predictor.normal = normal && unpackArray(normal).values;
    const { probabilities } = await predictor.run(probeImage(size));
    if (!probe.every((wanted, i) => Math.abs(wanted - probabilities[i]) <= TOLERANCE)) {
      throw new Error("the model fails its golden probe: it gives other answers here than where it was made");
    }
    return predictor;
  }

  /** Run the network on pixels in [0, 1]. */
  async run(pixels) {
    const { image_size: size } = this.config;
    const input = new Tensor(pixels, [1, size, size, 1]);
    const [{ name }] = this.network.getInputDetails();
    const output = await this.network.run({ [name]: input });
    input.delete();
    const shapes = Object.fromEntries(this.network.getOutputDetails().map((one) => [one.name, one.shape]));
    const found = { grid: shapes.evidence.slice(1, 3) };
    for (const [key, tensor] of Object.entries(output)) {
      const here = await tensor.moveTo("wasm");
      found[key] = here.toTypedArray().slice();
      here.delete();
    }
    return found;
  }

  /**
   * Answer one image.
   * @param {Uint8Array} bytes of a file
   * @param {string} name of the file
   * @returns {Promise<object>} status, reasons, name, size, view; the picture to show; and where it got an answer,
   *     probabilities and heat
   */
  async predict(bytes, name) {
    const times = [performance.now()];
    const image = await read(bytes, name);
    times.push(performance.now());
    const { pixels, box } = fit(image, this.config.image_size);
    times.push(performance.now());
    const { width, height } = image.picture;
    const answer = { name, width, height, view: image.view, picture: shown(image), times };
    const seen = inspect(image, pixels, this.tables);
    if (this.gate && seen.refusals.length) {
      return { ...answer, status: "refused", reasons: [...seen.refusals, ...image.notes] };
    }
    const output = await this.run(pixels);
    times.push(performance.now());
    const unchecked = { accepted: true, reasons: ["the gate is off: nothing checked that this is a radiograph"] };
    const { accepted, reasons } = this.gate ? this.gate.check(seen, output.embedding) : unchecked;
    const said = { ...answer, reasons: [...reasons, ...image.notes] };
    times.push(performance.now());
    if (!accepted) return { ...said, status: "refused" };
    const probabilities = calibrate(output.probabilities, this.config.temperature);
    return { ...said, status: "ok", probabilities, heat: this.heat(output, answer, box) };
  }

  /** Evidence for the second label beyond that in normal images, in [0, 1]; null where there is none. */
  heat({ evidence, grid: [h, w] }, { width, height }, box) {
    const k = this.config.labels.length;
    const beyond = Float32Array.from({ length: h * w }, (_, i) =>
      Math.max(0, evidence[i * k + 1] - (this.normal ? this.normal[i * k + 1] : 0)));
    const most = Math.max(FULL, ...beyond);
    if (!beyond.some((v) => v > 0)) return null;
    const scale = Math.min(1, HEAT / Math.max(width, height));
    const [left, top, right, bottom] = (box ?? [0, 0, width, height]).map((v) => Math.round(v * scale));
    const size = [Math.max(1, Math.round(width * scale)), Math.max(1, Math.round(height * scale))];
    const part = resize({ data: beyond.map((v) => v / most), width: w, height: h }, right - left, bottom - top);
    const data = new Float32Array(size[0] * size[1]);
    for (let y = top; y < bottom; y++) {
      for (let x = left; x < right; x++) {
        data[y * size[0] + x] = Math.min(1, Math.max(0, part.data[(y - top) * part.width + x - left]));
      }
    }
    return { data, width: size[0], height: size[1] };
  }
}

/** Divide logits by a temperature. */
export function calibrate(probabilities, temperature) {
  const logits = [...probabilities].map((p) => Math.log(Math.max(p, 1e-12)) / temperature);
  const most = Math.max(...logits);
  const powers = logits.map((v) => Math.exp(v - most));
  const sum = powers.reduce((a, b) => a + b, 0);
  return powers.map((v) => v / sum);
}

/** The image as a screen shows it: in 8 bits, and no larger than needed. */
function shown({ picture, white }) {
  const { data } = picture;
  const bytes = data instanceof Uint8Array ? data : Uint8Array.from(data, (v) => Math.min(255, (v * 255) / white + 0.5));
  const scale = Math.min(1, SHOWN / Math.max(picture.width, picture.height));
  const [width, height] = [picture.width, picture.height].map((side) => Math.max(1, Math.round(side * scale)));
  return resize({ ...picture, data: bytes }, width, height, { filter: "bilinear", gap: 2 });
}
