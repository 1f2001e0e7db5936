"""LiteRT.js against onnxruntime-web on the bundled network, side by side in one headless browser, in WebAssembly.

    npm pack onnxruntime-web && tar xzf onnxruntime-web-*.tgz
    python benchmarks/browser_runtimes.py package/dist [--browser /usr/bin/chromium]

Prints, for each, seconds until the first answer, the median milliseconds of 60 images, and the size of its runtime.
"""

from __future__ import annotations

import argparse
import functools
import http.server
import json
import shutil
import tempfile
import threading
from pathlib import Path

from playwright.sync_api import sync_playwright

from cxrlib import bundle, web
from cxrlib.export import export

WORKER = """
const pixels = Float32Array.from({ length: 224 * 224 }, (_, i) => ((i * 7919) % 256) / 255);
const fetched = async (path) => new Uint8Array(await (await fetch(path)).arrayBuffer());
async function litert() {
  const { Tensor, loadAndCompile, loadLiteRt } = await import("./vendor/litert.js");
  const zipped = await fetched("vendor/litert_wasm_compat_internal.wasm.gz");
  const plain = new Blob([zipped]).stream().pipeThrough(new DecompressionStream("gzip"));
  self.Module = { wasmBinary: await new Response(plain).arrayBuffer(), print() {}, printErr() {} };
  await loadLiteRt("vendor/litert_wasm_compat_internal.js");
  const model = await loadAndCompile(await fetched("model.tflite"), { accelerator: "wasm" });
  const [{ name }] = model.getInputDetails();
  return async () => {
    const input = new Tensor(pixels, [1, 224, 224, 1]);
    const output = await model.run({ [name]: input });
    input.delete();
    const found = [...output.probabilities.toTypedArray()];
    for (const tensor of Object.values(output)) tensor.delete();
    return found;
  };
}
async function onnx() {
  const ort = await import("./onnx/ort.wasm.min.mjs");
  ort.env.wasm.numThreads = 1;
  ort.env.wasm.wasmPaths = new URL("./onnx/", location.href).href;
  const session = await ort.InferenceSession.create(await fetched("model.onnx"), { executionProviders: ["wasm"] });
  const [name] = session.inputNames;
  return async () => {
    const { probabilities } = await session.run({ [name]: new ort.Tensor("float32", pixels, [1, 224, 224, 1]) });
    return [...probabilities.data];
  };
}
onmessage = async ({ data }) => {
  const begin = performance.now();
  const run = await { litert, onnx }[data]();
  const probabilities = await run();
  const first = (performance.now() - begin) / 1000;
  const times = [];
  for (let i = 0; i < 60; i++) {
    const at = performance.now();
    await run();
    times.push(performance.now() - at);
  }
  postMessage({ first, median: times.sort((a, b) => a - b)[30], probabilities });
};
"""
ASK = """(kind) => new Promise((resolve, reject) => {
  const worker = new Worker("worker.js");
  worker.onmessage = ({ data }) => resolve(data);
  worker.onerror = reject;
  worker.postMessage(kind);
})"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("onnxruntime", type=Path, help="the folder dist of the npm package onnxruntime-web")
    parser.add_argument("--browser", default="/usr/bin/chromium")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place, sync_playwright() as play:
        site = Path(place)
        shutil.copytree(web.space_folder() / "device" / "vendor", site / "vendor")
        shutil.copytree(options.onnxruntime, site / "onnx", ignore=lambda _, names: {n for n in names if ".map" in n})
        shutil.copy(bundle.DEFAULT / bundle.RUNTIME, site)
        export(None, site / "model.onnx", format="onnx")
        (site / "worker.js").write_text(WORKER, "utf-8")
        (site / "index.html").write_text("<!doctype html><title>runtimes</title>", "utf-8")
        handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=place)
        http.server.SimpleHTTPRequestHandler.log_message = lambda *_: None
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        browser = play.chromium.launch(executable_path=options.browser, args=["--no-sandbox"])
        page = browser.new_page()
        page.goto(f"http://localhost:{server.server_port}/")
        for _ in range(2):
            for kind in ("litert", "onnx"):
                print(kind, json.dumps(page.evaluate(ASK, kind)), flush=True)
        for path in (
            site / "vendor" / "litert_wasm_compat_internal.wasm.gz",
            site / "onnx" / "ort-wasm-simd-threaded.wasm",
        ):
            print(f"{path.name}: {path.stat().st_size / 1e6:.1f} MB")
        browser.close()
        server.shutdown()


if __name__ == "__main__":
    main()
