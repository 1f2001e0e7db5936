"""The page on the device against Python: the same answers, and how fast.

    python benchmarks/device.py SHARED [--model BUNDLE] [--number 100] [--browser /usr/bin/chromium]

Answers the images of SHARED/data/native, SHARED/cases and `--number` images of every source with `Predictor` and with
the page in a headless browser. Prints, by group, how many get the same label and status and a probability within 0.01;
then how long the page takes to be ready, the parts of an answer, its ratio to Python, and what a first and a later
visit load.
"""

from __future__ import annotations

import argparse
import base64
import json
import statistics
import threading
import time
from pathlib import Path

import numpy as np
from playwright.sync_api import Page, sync_playwright

from cxrlib import ImageError, Predictor, web

ASK = """async ([name, text]) => {
  const { ask } = await import("./app.js");
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const { status, probabilities, reasons, times } = await ask(new File([bytes], name));
  return { status, probabilities, reasons, times };
}"""
PARTS = ("decode", "fit", "network", "gate")


def ask(page: Page, file: Path) -> dict:
    return page.evaluate(ASK, [file.name, base64.b64encode(file.read_bytes()).decode()])


def groups(shared: Path, number: int) -> dict[str, list[Path]]:
    def images(folder: Path) -> list[Path]:
        return sorted(
            path for path in folder.rglob("*") if path.is_file() and path.suffix not in (".csv", ".md", ".txt")
        )

    found = {"native": images(shared / "data" / "native"), "cases": images(shared / "cases")}
    for folder in sorted((shared / "data").iterdir()):
        if folder.is_dir() and folder.name != "native":
            every = images(folder)
            found[folder.name] = [every[i] for i in np.linspace(0, len(every) - 1, min(number, len(every))).astype(int)]
    return found


def python_answer(predictor: Predictor, file: Path) -> tuple[str, float | None]:
    try:
        p = predictor(file)
    except ImageError:
        return "unreadable", None
    return p.status, p.probabilities[predictor.labels[1]] if p.status == "ok" else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shared", type=Path)
    parser.add_argument("--model")
    parser.add_argument("--number", type=int, default=100)
    parser.add_argument("--browser", default="/usr/bin/chromium")
    options = parser.parse_args()
    predictor = Predictor(options.model)
    with web.serving(options.model) as server, sync_playwright() as play:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        browser = play.chromium.launch(executable_path=options.browser, args=["--no-sandbox"])
        address, result = f"http://localhost:{server.server_port}/", {}
        ready, loaded = [], []
        for _ in range(5):
            context = browser.new_context()
            page = context.new_page()
            sizes: list[int] = []
            context.on(
                "response",
                lambda r, sizes=sizes: sizes.append(
                    int(r.headers.get("content-length", 0)) if not r.from_service_worker else 0
                ),
            )
            for _ in range(2):  # a first visit, and a later one
                sizes.clear()
                begin = time.perf_counter()
                page.goto(address)
                page.wait_for_selector("body[data-ready]")
                ready.append(time.perf_counter() - begin)
                loaded.append(sum(sizes))
        result["ready in s"] = {"first": statistics.median(ready[::2]), "later": statistics.median(ready[1::2])}
        result["loaded in MB"] = {"first": loaded[-2] / 1e6, "later": loaded[-1] / 1e6}
        all_same = all_near = all_n = 0
        for name, files in groups(options.shared, options.number).items():
            same = near = 0
            other = []
            for file in files:
                status, p = python_answer(predictor, file)
                found = ask(page, file)
                q = found["probabilities"][1] if found["status"] == "ok" else None
                alike = found["status"] == status and (
                    p is None or (p >= predictor.threshold) == (q >= predictor.threshold)
                )
                close = alike and (p is None or abs(p - q) <= 0.01)
                same, near = same + alike, near + close
                if not close:
                    other.append(
                        f"{file.parent.name}/{file.name}: {status} {p} / {found['status']} {q} {found['reasons']}"
                    )
            result[name] = {"images": len(files), "same": same, "within 0.01": near, "other": other}
            all_same, all_near, all_n = all_same + same, all_near + near, all_n + len(files)
        result["all"] = {"images": all_n, "same": all_same / all_n, "within 0.01": all_near / all_n}
        large = [f for f in groups(options.shared, 0)["native"] if 0.7e6 < np.prod(size_of(f)) < 1.4e6][:40]
        times, python = [], []
        for file in [*large[:5], *large]:
            at = ask(page, file)["times"]
            times.append([*np.diff(at), at[-1] - at[0]])
            begin = time.perf_counter()
            predictor(file)
            python.append(1000 * (time.perf_counter() - begin))
        medians = np.median(times[5:], axis=0)
        result["ms an image of 1 megapixel"] = dict(zip((*PARTS, "all"), medians.round(1).tolist(), strict=True))
        result["ratio to Python"] = round(medians[-1] / statistics.median(python[5:]), 2)
        browser.close()
        server.shutdown()
    print(json.dumps(result, indent=1))


def size_of(file: Path) -> tuple[int, int]:
    from PIL import Image

    return Image.open(file).size


if __name__ == "__main__":
    main()
