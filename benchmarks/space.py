"""How fast the demo starts and answers, and how it serves fifty visitors: `python benchmarks/space.py [FOLDER]`.

Times are medians, of processor time and by the clock; on a busy machine only the former mean much. The folder holds
radiographs; without it, drawings are used.
"""

from __future__ import annotations

import os
import shutil
import statistics
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "space"), str(ROOT)]

import prelude  # before Gradio
from backend import Backend, Upload
from pages import Pages
from space_server import ask, serving

from cxrlib.images import phantom, sources

VISITORS, SECONDS = 50, 60.0
PAGE = (
    "() => window.cxr && ['#cx-drop input[type=file]', '#cx-examples button'].every((e) => document.querySelector(e))"
)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        images = (
            sources.find(sys.argv[1])[:40]
            if len(sys.argv) > 1
            else [phantom.save(place / f"image{i}.png", i, size=1400) for i in range(8)]
        )
        answer(images)
        start(place / "start")
        visitors(place / "visitors", images)


def answer(images: list[Path]) -> None:
    """What one image costs the server: reading the upload, prediction, heatmap, and the page that shows them."""
    backend = Backend(None, None, prelude.FOLDER)
    pages = Pages(backend.predictor)
    wall, processor = [], []
    for image in images * 3:
        data = image.read_bytes()
        began, used = time.perf_counter(), time.process_time()
        found = backend.explain(Upload(data, image.name))
        pages.viewer(found), pages.answer(found)
        wall.append(time.perf_counter() - began)
        processor.append(time.process_time() - used)
    slowest = sorted(processor)[int(0.95 * len(processor))]
    said = f"{1000 * statistics.median(processor):.0f} ms of processor time (95th percentile {1000 * slowest:.0f})"
    print(f"one image with heatmap and page: {said}, {1000 * statistics.median(wall):.0f} ms by the clock; {_load()}")


def start(place: Path) -> None:
    """From the start of the process to a page that can be used, in a browser that is open already."""
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        print("start: there is no chromium here")
        return
    from playwright.sync_api import Error, sync_playwright

    seconds, used = [], []
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for i in range(5):
            page = browser.new_page()
            began = time.perf_counter()
            with serving(place / str(i)) as demo:
                while True:
                    try:
                        page.goto(demo.url)
                        break
                    except Error:
                        time.sleep(0.05)
                page.wait_for_function(PAGE)
                seconds.append(time.perf_counter() - began)
                used.append(
                    sum(
                        map(float, Path(f"/proc/{demo.process.pid}/stat").read_text().rpartition(")")[2].split()[11:13])
                    )
                    / os.sysconf("SC_CLK_TCK")
                )
            page.close()
        browser.close()
    said = f"{statistics.median(seconds):.2f} s by the clock (best {min(seconds):.2f})"
    print(f"from the start to a usable page: {said}, {statistics.median(used):.2f} s of the server's time; {_load()}")


def _load() -> str:
    return f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"


def visitors(place: Path, images: list[Path]) -> None:
    """Fifty at once for a minute: each gets an answer, and the memory does not grow."""
    with serving(place) as demo, ThreadPoolExecutor(VISITORS) as pool:
        until = time.monotonic() + SECONDS
        memory, answers, waits = [], 0, []

        def come_again(i: int) -> int:
            served = 0
            while time.monotonic() < until:
                began = time.monotonic()
                said = ask(demo.url, images[(i + served) % len(images)])
                if said["source"] != images[(i + served) % len(images)].name:
                    raise RuntimeError(f"another visitor's answer: {said['source']}")
                waits.append(time.monotonic() - began)
                served += 1
            return served

        running = [pool.submit(come_again, i) for i in range(VISITORS)]
        while not all(future.done() for future in running):
            memory.append(demo.memory() / 2**20)
            time.sleep(1)
        answers = sum(future.result() for future in running)
        left = len(demo.uploads())
    third = len(memory) // 3
    grown = statistics.median(memory[-third:]) - statistics.median(memory[third : 2 * third])
    print(f"{VISITORS} visitors for {SECONDS:.0f} s: {answers} answers, {answers / SECONDS:.1f} a second")
    print(
        f"median wait {statistics.median(waits):.2f} s; memory at most {max(memory):.0f} MB, {grown:+.0f} MB from the"
    )
    print(f"second to the last third; {left} uploads left on disk")


if __name__ == "__main__":
    main()
