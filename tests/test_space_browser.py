"""The demo in a real browser: on a phone and on large screens, light and dark, by keyboard and for screen readers."""

from __future__ import annotations

import csv
import io
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_network
from browser_page import CHROMIUM, CONTRAST, reached_by_tab, unnamed
from PIL import Image
from space_server import PATIENCE, Demo, serving, write_files

pytest.importorskip("gradio", reason="the demo needs gradio")
pytest.importorskip("pydicom", reason="the demo reads DICOM")
playwright = pytest.importorskip("playwright.sync_api", reason="a browser is driven through playwright")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium here: name it in CHROMIUM"),
]

POINTS = {
    name: {"threshold": t, "sensitivity": 0.9, "specificity": 0.8, "by_source": {}}
    for name, t in (("screening", 0.001), ("balanced", 0.999))
}
SIZES = {"phone": (360, 740), "tablet": (820, 1180), "laptop": (1280, 800), "large": (2560, 1440)}
TABS = ("One image", "Batch", "Model", "About")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_files(tmp_path_factory.mktemp("files"))


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    content = tiny_network.files(gate=tiny_network.tolerant_gate(), operating_points=POINTS, default_point="screening")
    model = tiny_network.write(tmp_path_factory.mktemp("model"), content)
    with serving(
        tmp_path_factory.mktemp("demo") / "place",
        sys.executable,
        "-m",
        "cxrlib",
        "demo",
        "--port",
        "{port}",
        "--model",
        str(model),
    ) as running:
        yield running


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    flags = ["--no-sandbox", "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield started
        started.close()


class Visit:
    """A page of the demo that has loaded; what went wrong in it is in `faults`."""

    def __init__(self, browser: Any, url: str, *, size: str = "laptop", theme: str = "light") -> None:
        width, height = SIZES[size]
        touch = size in ("phone", "tablet")
        self.context = browser.new_context(
            viewport={"width": width, "height": height}, color_scheme=theme, has_touch=touch, is_mobile=touch
        )
        self.context.set_default_timeout(PATIENCE * 1000)
        self.context.grant_permissions(["clipboard-read", "clipboard-write"] if not touch else [])
        self.page = self.context.new_page()
        self.faults: list[str] = []
        self.page.on("pageerror", lambda error: self.faults.append(str(error)))
        self.page.on("console", lambda message: self.faults.append(message.text) if message.type == "error" else None)
        self.page.on(
            "request",
            lambda request: (
                None if request.url.startswith((url, "data:", "blob:")) else self.faults.append(request.url)
            ),
        )
        self.page.add_init_script(
            "window.shifts = []; new PerformanceObserver((list) => {"
            " for (const e of list.getEntries()) if (!e.hadRecentInput) window.shifts.push(e.value); })"
            ".observe({ type: 'layout-shift', buffered: true });"
        )
        self.page.goto(url)
        self.page.wait_for_selector("#cx-drop input[type=file]", state="attached")

    def send(self, *files: Path, to: str = "#cx-drop") -> None:
        self.page.set_input_files(f"{to} input[type=file]", [str(file) for file in files])

    def put(self, event: str, *files: Path) -> None:
        """Paste or drop."""
        self.page.evaluate(PUT, [event, [[file.name, list(file.read_bytes())] for file in files]])

    def said(self) -> str:
        """What stands beside the button."""
        return str(self.page.inner_text("#cx-drop .cx-said"))

    def answer(self) -> str:
        """The verdict, once there is one."""
        self.page.wait_for_function(
            "() => document.querySelector('#cx-side[aria-busy=false]') && [...document.querySelectorAll('.cx-word')]"
            ".some((e) => e.innerText !== '–' && e.checkVisibility())"
        )
        return str(self.page.inner_text("#cx-side [data-said]"))

    def open(self, tab: str) -> None:
        self.page.get_by_role("tab", name=tab, exact=True).click()


@pytest.fixture
def visit(browser: Any, demo: Demo) -> Iterator[Visit]:
    made = Visit(browser, demo.url)
    yield made
    assert made.faults == []
    made.context.close()


# --- what a visitor sends ---


@pytest.mark.parametrize("name", ["image.png", "image.dcm", "study"])
def test_an_image_gets_a_verdict_a_probability_and_a_heatmap(visit: Visit, files: Path, demo: Demo, name: str) -> None:
    visit.send(files / name)
    said = visit.answer()
    assert "Possible pneumonia: have it read" in said
    assert "The model puts the probability of pneumonia at " in said
    assert f"{name} · 256 × 200 pixels · " in said
    shape = visit.page.evaluate(
        "() => { const { width, height } = document.querySelector('.cx-image').getBoundingClientRect();"
        " return width / height; }"
    )
    assert shape == pytest.approx(256 / 200, rel=0.01), "the image keeps its aspect ratio"
    assert visit.page.locator(".cx-image img").count() == 2
    assert demo.uploads() == []


def test_another_operating_point_needs_no_other_pass(visit: Visit, files: Path) -> None:
    visit.send(files / "image.png")
    assert "Possible pneumonia" in visit.answer()
    asked: list[str] = []
    visit.page.on("request", lambda request: asked.append(request.url))
    visit.page.get_by_label("Balanced").check()
    assert "No sign of pneumonia" in visit.answer()
    assert asked == []
    visit.send(files / "image.dcm")
    visit.page.wait_for_function("() => document.querySelectorAll('#cx-side input:checked').length === 1")
    visit.page.wait_for_timeout(500)
    assert "No sign of pneumonia" in visit.answer(), "the next image is decided at the visitor's choice, too"


def test_a_cat_is_refused(visit: Visit, files: Path) -> None:
    visit.send(files / "cat.png")
    said = visit.answer()
    assert "Refused" in said
    assert "almost blank" in said
    assert "probability of" not in said
    assert visit.page.locator(".cx-image img").count() == 1


def test_an_image_in_colours_is_answered_with_a_warning(visit: Visit, files: Path) -> None:
    visit.send(files / "colour.png")
    said = visit.answer()
    assert "Possible pneumonia" in said
    assert "Note" in said
    assert "colour" in said


def test_a_broken_file_is_named_and_the_next_image_answered(visit: Visit, files: Path) -> None:
    visit.send(files / "broken.png")
    said = visit.answer()
    assert "Not read" in said
    assert "broken.png: it is cut short" in said
    assert "Traceback" not in visit.page.content()
    visit.send(files / "image.png")
    visit.page.wait_for_selector(".cx-heat")
    assert "Possible pneumonia" in visit.answer()


def test_a_file_that_is_too_large_is_not_even_sent(visit: Visit, tmp_path: Path) -> None:
    with (tmp_path / "large.png").open("wb") as file:
        file.truncate(64 * 2**20 + 1)
    visit.send(tmp_path / "large.png")
    visit.page.wait_for_selector(".cx-said.cx-wrong")
    assert visit.said() == "large.png is larger than 64 MB."


def test_an_example_is_one_click(visit: Visit) -> None:
    visit.page.get_by_role("button", name="Lobar pneumonia").click()
    assert "Possible pneumonia" in visit.answer()


PUT = """([event, files]) => {
    const data = new DataTransfer();
    for (const [name, bytes] of files) data.items.add(new File([new Uint8Array(bytes)], name, { type: "image/png" }));
    const kind = { bubbles: true, cancelable: true };
    const made = event === "paste"
        ? new ClipboardEvent(event, { ...kind, clipboardData: data })
        : new DragEvent(event, { ...kind, dataTransfer: data });
    document.body.dispatchEvent(made);
}"""


@pytest.mark.parametrize("event", ["paste", "drop"])
def test_an_image_is_pasted_or_dropped_anywhere(visit: Visit, files: Path, event: str) -> None:
    visit.put(event, files / "image.png")
    assert "Possible pneumonia" in visit.answer()


def test_of_several_images_one_is_taken_and_says_so(visit: Visit, files: Path) -> None:
    visit.put("drop", files / "image.png", files / "cat.png")
    assert "Possible pneumonia" in visit.answer()
    assert visit.said() == "Only image.png was taken, the first of 2. The page “Batch” takes many."
    visit.put("drop", files / "image.png")
    visit.page.wait_for_function("() => document.querySelector('#cx-drop .cx-said').innerText.startsWith('or ')")
    assert visit.said() == "or drop it on this page, or paste it"


def test_a_zip_is_pointed_to_the_batch(visit: Visit, files: Path) -> None:
    visit.put("drop", files / "images.zip")
    assert "images.zip: this is a zip archive. The page “Batch” takes those." in visit.answer()


def test_the_camera_takes_a_picture(visit: Visit) -> None:
    visit.page.get_by_role("button", name="Camera").click()
    visit.page.wait_for_function("() => document.querySelector('video').videoWidth > 0")
    visit.page.get_by_role("button", name="Take the picture").click()
    assert visit.answer()
    assert not visit.page.evaluate(
        "() => document.querySelector('dialog').open || document.querySelector('video').srcObject"
    )


def test_what_was_said_of_the_camera_goes_with_the_next_example(visit: Visit) -> None:
    visit.page.evaluate("() => { navigator.mediaDevices.getUserMedia = () => Promise.reject(new Error('none')); }")
    visit.page.get_by_role("button", name="Camera").click()
    visit.page.wait_for_selector("#cx-drop .cx-said.cx-wrong")
    assert visit.said() == "There is no camera here, or this page may not use it."
    visit.page.get_by_role("button", name="Lobar pneumonia").click()
    assert "Possible pneumonia" in visit.answer()
    assert visit.said() == "or drop it on this page, or paste it"


# --- what a visitor can change ---


def test_a_threshold_of_the_visitors_own(visit: Visit, files: Path) -> None:
    visit.send(files / "image.png")
    visit.answer()
    p = float(visit.page.locator(".cx-axis").get_attribute("data-p"))
    own = visit.page.locator("#cx-side").get_by_label("Your threshold, in per cent")
    for percent, word in ((100 * p + 5, "No sign of pneumonia"), (100 * p - 5, "Pneumonia likely")):
        own.fill(f"{percent:.1f}")
        assert visit.page.get_by_label("Your own").is_checked()
        said = visit.answer()
        assert word in said
        assert f"your threshold of {percent:.1f}%".replace(".0%", "%") in said
    visit.open("Batch")
    visit.send(files / "image.png", to="#cx-many")
    visit.page.wait_for_selector("#cx-batch table")
    assert "1 image: 1 pneumonia" in visit.page.inner_text("#cx-batch [data-said]")
    visit.page.locator("#cx-batch").get_by_label("Your threshold, in per cent").fill("100")
    assert "1 image: 1 normal" in visit.page.inner_text("#cx-batch [data-said]")


def test_a_pretest_probability(visit: Visit, files: Path) -> None:
    visit.send(files / "image.png")
    visit.answer()
    p = float(visit.page.locator(".cx-axis").get_attribute("data-p"))
    visit.page.get_by_text("Combine with what was known before").click()
    for percent in (5, 50):
        visit.page.get_by_label("Probability before the image").fill(str(percent))
        odds = p / (1 - p) * percent / (100 - percent)
        after = visit.page.inner_text("[data-after]")
        assert float(after.rstrip("%")) == pytest.approx(100 * odds / (1 + odds), abs=0.11)


STYLE = """(selector) => {
    const style = getComputedStyle(document.querySelector(selector));
    return [style.opacity, style.filter];
}"""


def test_the_look_of_an_image(visit: Visit, files: Path) -> None:
    visit.page.get_by_role("button", name="Lobar pneumonia").click()
    visit.page.wait_for_selector(".cx-heat")
    before = visit.answer()
    assert visit.page.evaluate(STYLE, ".cx-heat")[0] == "0.5"
    visit.page.get_by_label("Heatmap").fill("100")
    assert visit.page.evaluate(STYLE, ".cx-heat")[0] == "1"
    visit.page.get_by_text("Adjust").click()
    visit.page.get_by_label("Brightness").fill("150")
    visit.page.get_by_label("Contrast").fill("200")
    assert visit.page.evaluate(STYLE, ".cx-base")[1] == "brightness(1.5) contrast(2)"
    width = visit.page.locator(".cx-image").bounding_box()["width"]
    visit.page.get_by_role("button", name="Larger").click()
    assert visit.page.locator(".cx-image").bounding_box()["width"] == pytest.approx(1.5 * width, rel=0.01)
    visit.page.locator(".cx-frame").dblclick()
    assert visit.page.locator(".cx-image").bounding_box()["width"] == pytest.approx(width, rel=0.01)
    visit.page.locator(".cx-frame").dblclick()
    assert visit.page.locator(".cx-image").bounding_box()["width"] == pytest.approx(2.5 * width, rel=0.01)
    assert visit.answer() == before


def test_the_overlay_can_be_saved(visit: Visit) -> None:
    visit.page.get_by_role("button", name="Lobar pneumonia").click()
    visit.page.wait_for_selector(".cx-heat")
    tints = []
    for opacity in ("0", "100"):
        visit.page.get_by_label("Heatmap").fill(opacity)
        with visit.page.expect_download() as download:
            visit.page.get_by_role("button", name="Save").click()
        with Image.open(download.value.path()) as saved:
            assert saved.width == 640
            assert saved.height > 640, "with the verdict below"
            colours = np.asarray(saved.convert("RGB").crop((0, 0, 640, 640)), np.int16)
        tints.append(np.ptp(colours, axis=2).max())
    assert tints[0] <= 1 < tints[1], "with the heatmap as it is shown"


def test_a_print_is_one_page(visit: Visit) -> None:
    visit.page.get_by_role("button", name="Lobar pneumonia").click()
    visit.answer()
    assert visit.page.get_by_role("button", name="Print").is_visible()
    assert len(re.findall(rb"/Type\s*/Page[^s]", visit.page.pdf(format="A4"))) == 1


def test_a_row_of_a_batch_opens_its_image(visit: Visit, files: Path) -> None:
    visit.open("Batch")
    visit.send(files / "image.dcm", files / "images.zip", to="#cx-many")
    visit.page.wait_for_selector("#cx-batch table")
    assert visit.page.locator("[data-open]:enabled").all_inner_texts() == ["image.dcm"], "not those of an archive"
    visit.page.get_by_role("button", name="image.dcm").click()
    assert "image.dcm · 256 × 200 pixels · PA view" in visit.answer()


# --- a batch ---


def test_a_batch_becomes_a_table_that_sorts_and_a_csv(visit: Visit, files: Path, demo: Demo) -> None:
    visit.open("Batch")
    visit.send(files / "image.png", files / "broken.png", files / "images.zip", files / "image.dcm", to="#cx-many")
    visit.page.wait_for_selector("#cx-batch table")
    rows = visit.page.locator("#cx-batch tbody tr")
    assert rows.count() == 6
    assert visit.page.locator("#cx-batch tbody img").count() == 4
    assert "6 images: 3 pneumonia, 2 not read, 1 refused" in visit.page.inner_text("#cx-batch [data-said]")

    def column(i: int) -> list[str]:
        return [str(rows.nth(k).locator("td").nth(i).inner_text()) for k in range(6)]

    sent = column(1)
    visit.page.get_by_role("button", name="File").click()
    assert column(1) == sorted(sent)
    visit.page.get_by_role("button", name="File").click()
    assert column(1) == sorted(sent, reverse=True)
    assert visit.page.locator("#cx-batch th[aria-sort=descending]").inner_text().strip() == "File"
    visit.page.get_by_role("button", name="Probability").click()
    assert column(2)[:3] == ["Not read", "Not read", "Refused"]
    assert set(column(2)[3:]) == {"Pneumonia"}
    visit.page.locator("#cx-batch").get_by_label("Balanced").check()
    assert set(column(2)[3:]) == {"Normal"}
    with visit.page.expect_download() as download:
        visit.page.get_by_role("button", name="Download as CSV").click()
    table = list(csv.DictReader(io.StringIO(Path(download.value.path()).read_text("utf-8-sig"))))
    assert sorted(row["source"] for row in table) == sorted(sent)
    assert [row["label"] for row in table].count("NORMAL") == 3
    assert demo.uploads() == []


def test_a_long_name_breaks_and_no_answer_does(visit: Visit, files: Path, tmp_path: Path) -> None:
    names = [shutil.copy(files / name, tmp_path / f"{'x' * 80}{name}") for name in ("image.png", "broken.png")]
    visit.open("Batch")
    visit.send(*names, to="#cx-many")
    visit.page.wait_for_selector("#cx-batch table")
    for width in (1280, 768):
        visit.page.set_viewport_size({"width": width, "height": 800})
        lines = visit.page.locator("#cx-batch tbody td:nth-child(3)").evaluate_all(
            "(all) => all.map((e) => { const text = document.createRange(); text.selectNodeContents(e);"
            " return text.getClientRects().length; })"
        )
        assert lines == [1, 1], width
        assert visit.page.evaluate(
            "() => { const box = document.querySelector('.cx-scroll'); return box.scrollWidth <= box.clientWidth; }"
        ), width


# --- how it looks, and how it is used without a mouse ---


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
def test_every_page_fits_reads_well_and_says_what_it_is_not(
    browser: Any, demo: Demo, files: Path, size: str, theme: str
) -> None:
    visit = Visit(browser, demo.url, size=size, theme=theme)
    visit.send(files / "colour.png")
    visit.answer()
    for tab in TABS:
        visit.open(tab)
        if tab == "Batch":
            visit.send(files / "images.zip", to="#cx-many")
            visit.page.wait_for_selector("#cx-batch table")
        elif tab == "Model":
            visit.page.get_by_role("button", name="The whole model card").click()
            visit.page.wait_for_selector("#cx-card h1")
        visit.page.wait_for_timeout(300)
        assert visit.page.evaluate(CONTRAST) == [], tab
        assert visit.page.evaluate("() => document.documentElement.scrollWidth <= innerWidth"), (
            f"{tab} is wider than the screen"
        )
        note = visit.page.locator("#cx-note").bounding_box()
        assert note["y"] + note["height"] <= SIZES[size][1] + 1, "the disclaimer is in sight"
        assert note["height"] < 0.1 * SIZES[size][1], "and not in the way"
        assert "not a medical device" in visit.page.inner_text("#cx-note")
    assert visit.faults == []
    visit.context.close()


def test_nothing_moves_while_it_works(visit: Visit, files: Path) -> None:
    visit.page.wait_for_timeout(1000)
    visit.page.evaluate("() => { window.shifts = []; }")
    for name in ("image.png", "cat.png", "broken.png"):
        visit.send(files / name)
        visit.page.wait_for_timeout(700)
        visit.answer()
    assert sum(visit.page.evaluate("() => window.shifts")) < 0.02


@pytest.mark.parametrize("size", ["phone", "tablet"])
def test_on_small_screens_the_verdict_and_its_bar_are_in_sight_above_the_image(
    browser: Any, demo: Demo, files: Path, size: str
) -> None:
    visit = Visit(browser, demo.url, size=size)
    visit.send(files / "image.png")
    visit.answer()
    visit.page.wait_for_timeout(300)
    word, bar, frame, note = (
        visit.page.locator(f"{place}:visible").first.bounding_box()
        for place in (".cx-word", ".cx-axis", ".cx-frame", "#cx-note")
    )
    assert 0 <= word["y"] < bar["y"]
    assert bar["y"] + bar["height"] <= min(note["y"], frame["y"])
    visit.page.mouse.move(150, 500)
    visit.page.mouse.wheel(0, 3000)
    visit.page.wait_for_timeout(300)
    last, note = (visit.page.locator(place).bounding_box() for place in ("#cx-examples", "#cx-note"))
    assert last["y"] + last["height"] <= note["y"], "the page scrolls to its end"
    visit.context.close()


def test_the_keyboard_reaches_everything(visit: Visit, files: Path) -> None:
    visit.send(files / "image.png")
    visit.answer()
    said = reached_by_tab(visit.page, 26)
    for name in ("One image", "Choose an image", "Camera", "Normal adult", "Larger", "Save", "Screening"):
        assert name in said, said
    visit.page.get_by_label("Screening").focus()
    visit.page.keyboard.press("ArrowDown")
    assert "No sign of pneumonia" in visit.answer()


def test_screen_readers_get_the_answer_and_names(visit: Visit, files: Path) -> None:
    visit.send(files / "image.png")
    visit.answer()
    visit.page.wait_for_function("() => document.getElementById('cx-live').textContent.includes('Possible pneumonia')")
    visit.page.get_by_label("Balanced").check()
    assert "No sign of pneumonia" in visit.page.locator("#cx-live").text_content()
    tree = visit.page.locator("body").aria_snapshot()
    for part in (
        'heading "Chest radiographs"',
        'tab "One image" [selected]',
        'group "Operating point"',
        'img "The image, 256 by 200 pixels"',
    ):
        assert part in tree, tree
    assert unnamed(visit.page, "#cx-tabs") == []


def test_another_model_answers_the_same_image(browser: Any, files: Path, tmp_path: Path) -> None:
    with serving(tmp_path / "place", sys.executable, "-m", "cxrlib", "demo", "--port", "{port}") as running:
        visit = Visit(browser, running.url)
        visit.page.get_by_text("Interstitial pneumonia").click()
        visit.answer()
        assert "Normal or pneumonia?" in visit.page.inner_text("#cx-head")
        visit.page.get_by_label("Cause of a pneumonia, in children").check()
        visit.page.wait_for_function("() => document.querySelector('#cx-side').innerText.includes('Bacterial')")
        assert "Normal or bacterial or viral?" in visit.page.inner_text("#cx-head")
        assert "Viral" in visit.answer()
        visit.page.get_by_label("Normal or pneumonia").check()
        visit.page.wait_for_function("() => document.querySelector('#cx-side').innerText.includes('threshold of')")
        assert visit.faults == []
        visit.context.close()


def test_the_server_is_gone(browser: Any, files: Path, tmp_path: Path) -> None:
    model = tiny_network.write(tmp_path / "model", tiny_network.files())
    with serving(
        tmp_path / "place", sys.executable, "-m", "cxrlib", "demo", "--port", "{port}", "--model", str(model)
    ) as demo:
        visit = Visit(browser, demo.url)
    visit.send(files / "image.png")
    visit.page.wait_for_selector(".cx-said.cx-wrong")
    assert "That could not be sent" in visit.said()
    assert visit.page.locator("#cx-viewer[aria-busy=true]").count() == 0
    visit.context.close()
