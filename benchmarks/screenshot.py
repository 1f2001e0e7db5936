"""The picture of the demo in the README, in a real browser with a drawing: `python benchmarks/screenshot.py [FILE]`."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT)]

from PIL import Image
from playwright.sync_api import sync_playwright
from space_server import PATIENCE, serving

MOST = 150_000  # bytes


def main() -> None:
    file = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs" / "assets" / "demo.png"
    file.parent.mkdir(parents=True, exist_ok=True)
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    with tempfile.TemporaryDirectory() as place, serving(Path(place)) as demo, sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 800})
        page.set_default_timeout(PATIENCE * 1000)
        page.goto(demo.url)
        page.get_by_role("button", name="Lobar pneumonia").click()
        page.wait_for_selector(".cx-image")
        said = page.inner_text("#cx-side [data-said]")
        page.mouse.move(0, 0)
        page.wait_for_timeout(500)
        page.screenshot(path=file)
        browser.close()
    shot = Image.open(file).convert("RGB")
    for colours in (256, 224, 192, 160, 128, 96, 64):
        shot.quantize(colours, Image.Quantize.MAXCOVERAGE, kmeans=5, dither=Image.Dither.NONE).save(file, optimize=True)
        if file.stat().st_size < MOST:
            break
    print(f"{file}: {file.stat().st_size:,} bytes; it says: {' '.join(said.split())}")


if __name__ == "__main__":
    main()
