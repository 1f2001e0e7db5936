// The page: takes an image, hands it to the worker, and shows the answer.

const $ = (selector, within = document) => within.querySelector(selector);
const MAX_BYTES = 64 * 2 ** 20;
const RATIO = 99; // likelihood ratios beyond it and its inverse are not claimed
const HINT = matchMedia("(pointer: coarse)").matches ? "" : "or drop it on this page, or paste it";

let config = null; // of the bundle
let answer = null; // the last one
let point = null; // name of the chosen operating point, or "own"
let own = 0.5; // the visitor's own threshold

const say = (text, wrong = false) => {
  $(".said").textContent = text;
  $(".said").classList.toggle("wrong", wrong);
};

// --- words ---

const shown = (label) => (label === label.toUpperCase() ? label[0] + label.slice(1).toLowerCase() : label);
const spoken = (label) => (label === label.toUpperCase() ? label.toLowerCase() : label);
const capital = (text) => text.slice(0, 1).toUpperCase() + text.slice(1);
const finding = () => spoken(config.labels[1]);

function percent(p) {
  if ((p > 0 && p < 0.001) || (p > 0.999 && p < 1)) return p < 0.5 ? "under 0.1%" : "over 99.9%";
  return `${(100 * p).toFixed(p < 0.1 || p > 0.9 ? 1 : 0)}%`;
}

/** Where a probability stands relative to a threshold; near and far are meant in log-odds. */
function relation(p, threshold) {
  const [here, there] = [p, threshold].map((x) => Math.min(1 - 1e-6, Math.max(1e-6, x))).map((x) => Math.log(x / (1 - x)));
  const gap = Math.abs(here - there);
  return `${gap < 0.5 ? "just " : gap > 2 ? "well " : ""}${p >= threshold ? "above" : "below"}`;
}

const threshold = () => (point === "own" ? own : config.operating_points[point]?.threshold ?? 0.5);

/** Label, heading and sentence of an answer at the chosen threshold. */
function worded({ probabilities }) {
  const { labels } = config;
  const p = probabilities[1];
  if (labels.length > 2 && !config.default_point) {
    const label = labels[probabilities.indexOf(Math.max(...probabilities))];
    return { label, word: shown(label), sentence: "The most probable of the classes:" };
  }
  const least = threshold();
  const which = point === "own" ? "your threshold" : point ? `the ${point} threshold` : "the threshold";
  const sentence = `The model puts the probability of ${finding()} at ${percent(p)}. That is ${relation(p, least)} ${which} of ${percent(least)}.`;
  if (p >= least) {
    const word = point === "screening" ? `Possible ${finding()}: have it read` : `${shown(labels[1])} likely`;
    return { label: labels[1], word, sentence, strong: true };
  }
  const others = labels.map((label, i) => [i === 1 ? -1 : probabilities[i], label]).sort((a, b) => b[0] - a[0]);
  const word = labels.length === 2 ? `No sign of ${finding()}` : shown(others[0][1]);
  return { label: others[0][1], word, sentence };
}

// --- the answer ---

function list(reasons) {
  const items = reasons.map((reason) => Object.assign(document.createElement("li"), { textContent: capital(reason) }));
  const box = document.createElement("ul");
  box.append(...items);
  return box;
}

function decide() {
  const box = $(".answer");
  const ok = answer?.status === "ok";
  const views = answer?.view ? `${answer.view} view` : "view not stated";
  const size = answer?.width ? ` · ${answer.width.toLocaleString("en")} × ${answer.height.toLocaleString("en")} pixels · ${views}` : "";
  $(".lead", box).textContent = answer ? `${answer.name}${size}` : "The answer";
  const several = config.labels.length > 2 && !config.default_point; // the most probable of them is the answer
  for (const selector of [".axis", ".pretest"]) $(selector, box).hidden = !ok || several;
  $(".choice", box).hidden = !ok || !config.default_point;
  $("table", box).hidden = !ok || config.labels.length === 2;
  $(".reasons", box).replaceChildren();
  if (!answer) return;
  let said = { word: "Not read", sentence: capital(`${answer.reasons[0]}.`) };
  if (answer.status === "refused") {
    const sentence = "This does not look like a frontal chest radiograph, so the model gives no probability.";
    said = { word: "Refused", sentence };
    $(".reasons", box).append(list(answer.reasons));
  } else if (ok) {
    said = worded(answer);
    if (answer.reasons.length) {
      const care = Object.assign(document.createElement("h3"), { textContent: "Note" });
      $(".reasons", box).append(care, list(answer.reasons));
    }
    $(".axis", box).style.setProperty("--threshold", threshold());
    $(".axis", box).style.setProperty("--here", answer.probabilities[1]);
    $("table", box).replaceChildren(...config.labels.map((label, i) => {
      const row = document.createElement("tr");
      row.insertCell().textContent = shown(label);
      row.insertCell().textContent = percent(answer.probabilities[i]);
      return row;
    }));
    known();
  }
  $(".word", box).textContent = said.word;
  $(".word", box).classList.toggle("strong", Boolean(said.strong));
  $(".sentence", box).textContent = said.sentence;
  $("#live").textContent = `${said.word}. ${said.sentence}`;
  Object.assign(document.body.dataset, { status: answer.status, label: said.label ?? "" });
}

/** Bayes' rule: the probability before the image, and what the image adds. */
function known() {
  const box = $(".pretest");
  const p = Math.min(1 - 1e-9, Math.max(1e-9, answer.probabilities[1]));
  const ratio = Math.min(RATIO, Math.max(1 / RATIO, (p / (1 - p)) * (config.labels.length - 1)));
  const before = $("input", box).value / 100;
  const odds = (ratio * before) / (1 - before);
  $("output", box).textContent = percent(before);
  $("strong", box).textContent = percent(odds / (1 + odds));
  $("span", box).textContent = ratio.toPrecision(2);
}

// --- the picture ---

const STOPS = [[0, 0, 4], [31, 12, 72], [85, 15, 109], [136, 34, 106], [186, 54, 85], [227, 89, 51], [249, 140, 10],
  [249, 201, 50], [252, 255, 164]]; // inferno, as in cxrlib.runtime.explain

function paint(canvas, { data, width, height }, colour) {
  Object.assign(canvas, { width, height });
  const pixels = new ImageData(width, height);
  for (let i = 0; i < data.length; i++) pixels.data.set(colour(data[i]), 4 * i);
  canvas.getContext("2d").putImageData(pixels, 0, 0);
}

function inferno(heat) {
  const at = heat * (STOPS.length - 1);
  const [low, high] = [STOPS[Math.floor(at)], STOPS[Math.ceil(at)]];
  return [...low.map((v, c) => v + (high[c] - v) * (at % 1)), 255 * heat];
}

function picture() {
  const frame = $(".frame");
  const some = Boolean(answer?.picture);
  frame.classList.toggle("empty", !some);
  $("p", frame).hidden = some;
  $(".image", frame).hidden = !some;
  $(".tools").hidden = !some;
  frame.style.setProperty("--zoom", 1);
  $(".caption").textContent = "";
  if (!some) {
    $("p", frame).textContent = answer ? "Nothing to show. The file could not be read as an image." : "";
    return;
  }
  const { width, height } = answer.picture;
  $(".image", frame).style.setProperty("--ratio", width / height);
  paint($(".base"), answer.picture, (v) => [v, v, v, 255]);
  $(".base").setAttribute("aria-label", `The image, ${answer.width} by ${answer.height} pixels`);
  const heat = answer.status === "ok" && answer.heat;
  $(".heat").hidden = $("[data-for=heat]").hidden = !heat;
  if (heat) {
    paint($(".heat"), heat, inferno);
    $(".caption").textContent = `Evidence for ${finding()}, beyond that in normal images: dark is weak, yellow is strong.`;
  } else if (answer.status === "ok") {
    $(".caption").textContent = `No heatmap: nowhere does the evidence for ${finding()} exceed that of normal images.`;
  } else {
    $(".caption").textContent = "The image as it was read.";
  }
}

/** The image and its heatmap, with the verdict and the disclaimer below. */
function save() {
  const [base, heat] = [$(".base"), $(".heat")];
  const lines = [$(".lead"), $(".word"), $(".sentence"), $("[data-disclaimer]")].map((part) => part.textContent);
  const line = Math.max(12, base.width / 45);
  const canvas = Object.assign(document.createElement("canvas"), { width: base.width, height: base.height + line * 6.2 });
  const pen = canvas.getContext("2d");
  pen.fillRect(0, 0, canvas.width, canvas.height);
  pen.filter = getComputedStyle(base).filter;
  pen.drawImage(base, 0, 0);
  pen.filter = "none";
  if (!heat.hidden) {
    pen.globalAlpha = getComputedStyle(heat).opacity;
    pen.drawImage(heat, 0, 0, base.width, base.height);
  }
  Object.assign(pen, { globalAlpha: 1, fillStyle: "#fff", font: `${line}px system-ui, sans-serif` });
  lines.forEach((words, i) => pen.fillText(words, line / 2, base.height + line * (1.4 * i + 1.3), base.width - line));
  canvas.toBlob((blob) => {
    const link = Object.assign(document.createElement("a"), { href: URL.createObjectURL(blob), download: "cxrlib.png" });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
  });
}

function zoom(factor) {
  const frame = $(".frame");
  const before = Number(frame.style.getPropertyValue("--zoom") || 1);
  const after = Math.min(8, Math.max(1, before * factor));
  const [x, y] = [frame.scrollLeft + frame.clientWidth / 2, frame.scrollTop + frame.clientHeight / 2];
  frame.style.setProperty("--zoom", after);
  frame.scrollTo((x * after) / before - frame.clientWidth / 2, (y * after) / before - frame.clientHeight / 2);
}

// --- images in ---

let worker = null;
let asked = 0;
const waiting = new Map(); // number of a question -> what takes its answer

/** Answer a file; the worker answers one after the other. */
function ask(file) {
  return new Promise((resolve) => {
    waiting.set(++asked, resolve);
    worker.postMessage({ id: asked, file });
  });
}

async function take(file) {
  if (!file || !config) return;
  if (file.size > MAX_BYTES) return say(`${file.name} is larger than ${MAX_BYTES >> 20} MB.`, true);
  $("main").setAttribute("aria-busy", "true");
  say("Reading");
  const mine = asked + 1;
  const found = await ask(file);
  if (mine !== asked) return; // another image came meanwhile
  answer = found;
  $("main").setAttribute("aria-busy", "false");
  say(HINT);
  picture();
  decide();
  if (matchMedia("(max-width: 899px)").matches) $("#side").scrollIntoView({ block: "start" });
}

function listen() {
  const input = $("input[type=file]");
  input.addEventListener("change", () => {
    take(input.files[0]);
    input.value = "";
  });
  const target = (on) => document.body.toggleAttribute("data-dropping", on);
  document.addEventListener("dragover", (e) => {
    e.preventDefault(); // a dropped file never replaces the page
    target(e.dataTransfer?.types.includes("Files") ?? false);
  });
  document.addEventListener("dragleave", (e) => e.relatedTarget || target(false));
  document.addEventListener("drop", (e) => {
    e.preventDefault();
    target(false);
    take(e.dataTransfer?.files[0]);
  });
  document.addEventListener("paste", (e) => take(e.clipboardData?.files[0]));
  document.addEventListener("click", async ({ target: clicked }) => {
    const button = clicked.closest?.("button");
    if (!button) return;
    if (button.dataset.example) {
      const response = await fetch(`examples/${button.dataset.example}`);
      take(new File([await response.blob()], `${button.innerText.trim()} (a drawing)`));
    } else if (button.dataset.zoom) zoom(Number(button.dataset.zoom));
    else if (button.matches("[data-save]")) save();
    else if (button.matches("[data-print]")) print();
  });
  document.addEventListener("input", ({ target: input }) => {
    if (input.dataset.variable) return $("#viewer").style.setProperty(input.dataset.variable, input.value / 100);
    if (input.closest(".pretest")) return known();
    if (input.type === "number") {
      own = Math.min(100, Math.max(0, Number(input.value))) / 100;
      input.closest("label").querySelector("[type=radio]").checked = true;
    }
    if (input.closest(".choice")) {
      point = $(".choice input:checked").value;
      decide();
    }
  });
  camera();
}

function camera() {
  const dialog = $("dialog");
  const video = $("video");
  const stop = () => {
    for (const track of video.srcObject?.getTracks() ?? []) track.stop();
    video.srcObject = null;
  };
  $("[data-camera]").addEventListener("click", async () => {
    try {
      video.srcObject = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment", width: 1920 } });
      dialog.showModal();
      await video.play();
    } catch {
      stop();
      say("There is no camera here, or this page may not use it.", true);
    }
  });
  $("[data-take]").addEventListener("click", () => {
    const canvas = Object.assign(document.createElement("canvas"), { width: video.videoWidth, height: video.videoHeight });
    canvas.getContext("2d").drawImage(video, 0, 0);
    canvas.toBlob((blob) => take(new File([blob], "camera.jpg", { type: blob.type })), "image/jpeg", 0.95);
    dialog.close();
  });
  $("[data-close]").addEventListener("click", () => dialog.close());
  dialog.addEventListener("close", stop);
}

// --- the model ---

function points() {
  const box = $(".choice");
  const options = Object.entries(config.operating_points).map(([name, { threshold: least, sensitivity, specificity }]) => {
    const label = document.createElement("label");
    const radio = Object.assign(document.createElement("input"), { type: "radio", name: "point", value: name, checked: name === config.default_point });
    const parts = [sensitivity, specificity].map((p) => (p >= 0 ? `${Math.round(100 * p)}%` : "an unknown part"));
    const words = document.createElement("span");
    words.append(Object.assign(document.createElement("b"), { textContent: capital(name) }), `: positive from ${percent(least)}. `,
      Object.assign(document.createElement("span"), { className: "achieved", textContent: `In validation it flagged ${parts[0]} of ${finding()} images and cleared ${parts[1]} of the others.` }));
    label.append(radio, words);
    return label;
  });
  const label = document.createElement("label");
  const number = Object.assign(document.createElement("input"), { type: "number", min: 0, max: 100, value: 50 });
  number.setAttribute("aria-label", "Your threshold, in per cent");
  const words = document.createElement("span");
  words.append(Object.assign(document.createElement("b"), { textContent: "Your own" }), ": positive from ", number, "%");
  label.append(Object.assign(document.createElement("input"), { type: "radio", name: "point", value: "own" }), words);
  box.append(...options, label);
}

function about() {
  const { sources, population, license, versions } = config;
  const images = (source) => Object.values(source.train).reduce((a, b) => a + b, 0).toLocaleString("en");
  const lines = [
    sources.length ? `Trained on images of ${sources.map((s) => `${s.name} (${images(s)})`).join(", ")}.` : "",
    population ? `Patients: ${population}.` : "",
    license ? `Licence of the weights: ${license}.` : "",
    `Made with cxrlib ${versions.cxrlib ?? ""}. Its card, README.md of the bundle, has its figures and limits.`,
    "Everything runs in this browser, from files of this address alone. Nothing is sent, and nothing is kept.",
  ];
  $("#about div").replaceChildren(...lines.filter(Boolean).map((text) => Object.assign(document.createElement("p"), { textContent: text })));
}

/** Files come from the service worker's cache, so that they are loaded once; without one, from the server. */
async function install() {
  if (!navigator.serviceWorker) return;
  try {
    const registration = await navigator.serviceWorker.register("sw.js");
    const ready = (next) => next && navigator.serviceWorker.controller && next !== navigator.serviceWorker.controller;
    const offer = (next) => {
      const button = $("[data-update]");
      button.hidden = false;
      button.onclick = () => next.postMessage("take over");
    };
    if (ready(registration.waiting)) offer(registration.waiting);
    registration.addEventListener("updatefound", () => {
      const next = registration.installing;
      next.addEventListener("statechange", () => next.state === "installed" && ready(next) && offer(next));
    });
    if (navigator.serviceWorker.controller) {
      navigator.serviceWorker.addEventListener("controllerchange", () => location.reload());
      return;
    }
    await Promise.race([
      new Promise((resolve) => navigator.serviceWorker.addEventListener("controllerchange", resolve, { once: true })),
      new Promise((resolve, reject) => registration.installing?.addEventListener("statechange", ({ target: { state } }) =>
        state === "redundant" && reject(new Error("the files could not be stored")))),
    ]);
    navigator.serviceWorker.addEventListener("controllerchange", () => location.reload());
  } catch {
    // private windows and full disks: the page works all the same, online
  }
}

async function start() {
  listen();
  await install();
  worker = new Worker(`worker.js${location.search}`);
  worker.addEventListener("message", ({ data }) => {
    if (data.failed) return say(`This page cannot be used: ${data.failed}.`, true);
    if (data.ready) {
      config = data.ready;
      point = config.default_point;
      $("[data-question]").textContent = `${capital(config.labels.map(spoken).join(" or "))}?`;
      points();
      about();
      say(HINT);
      document.body.dataset.ready = "";
      return;
    }
    waiting.get(data.id)(data.answer);
    waiting.delete(data.id);
  });
  worker.addEventListener("error", (e) => say(`This page cannot be used: ${e.message || "its worker did not start"}.`, true));
}

start();

export { ask }; // for tests and for pages that embed this one
