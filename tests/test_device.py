"""The page on the device in a real browser: it answers as Python does, offline, and nothing leaves it."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
import threading
from collections.abc import Iterator
from functools import partial
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import drawn_dicom
import imagecodecs
import numpy as np
import pytest
import tiny_network
from browser_page import CHROMIUM, CONTRAST, reached_by_tab, unnamed
from PIL import Image

from cxrlib import ImageError, Predictor, phantom, web

playwright = pytest.importorskip("playwright.sync_api", reason="a browser is driven through playwright")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium here: name it in CHROMIUM"),
]
SIZES = {"phone": (360, 740), "tablet": (820, 1180), "laptop": (1440, 900)}
POINTS = {
    name: {"threshold": t, "sensitivity": 0.9, "specificity": 0.8, "by_source": {}}
    for name, t in (("screening", 0.001), ("balanced", 0.999))
}
ASK = """async ([name, text]) => {
  const { ask } = await import("./app.js");
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const { picture, heat, times, ...answer } = await ask(new File([bytes], name));
  return { ...answer, heat: heat && Math.max(...heat.data) };
}"""


class Recording(web.PageHandler):
    asked: list[str] = []  # noqa: RUF012 - by all visits

    def do_GET(self) -> None:
        self.asked.append(self.path)
        super().do_GET()


class Site:
    """A folder that is served until it is taken off the network."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.asked: list[str] = []
        handler = type("Handler", (Recording,), {"asked": self.asked})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(folder)))
        self.url = f"http://localhost:{self.server.server_port}/"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture(scope="module")
def bundle_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    content = tiny_network.files(gate=tiny_network.tolerant_gate(), operating_points=POINTS, default_point="screening")
    return tiny_network.write(tmp_path_factory.mktemp("model"), content)


@pytest.fixture(scope="module")
def predictor(bundle_folder: Path) -> Predictor:
    return Predictor(bundle_folder)


@pytest.fixture(scope="module")
def site(bundle_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    running = Site(web.write_page(bundle_folder, tmp_path_factory.mktemp("site") / "page"))
    yield running
    running.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    flags = ["--no-sandbox", "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield started
        started.close()


class Visit:
    """A page that has loaded; what went wrong in it is in `faults`."""

    def __init__(
        self, browser: Any, url: str, *, size: str = "laptop", theme: str = "light", wait: bool = True
    ) -> None:
        width, height = SIZES[size]
        touch = size != "laptop"
        self.context = browser.new_context(
            viewport={"width": width, "height": height}, color_scheme=theme, has_touch=touch, is_mobile=touch
        )
        self.page = self.context.new_page()
        self.faults: list[str] = []
        self.page.on("pageerror", lambda error: self.faults.append(str(error)))
        self.page.on("console", lambda message: self.faults.append(message.text) if message.type == "error" else None)
        here = (url, "data:", f"blob:{url}")
        self.context.on("request", lambda r: None if r.url.startswith(here) else self.faults.append(r.url))
        self.page.goto(url)
        if wait:
            self.page.wait_for_selector("body[data-ready]")

    def ask(self, name: str, content: bytes) -> dict[str, Any]:
        found: dict[str, Any] = self.page.evaluate(ASK, [name, base64.b64encode(content).decode()])
        return found

    def send(self, name: str, content: bytes) -> str:
        """Choose a file, and wait for the heading of its answer."""
        self.page.set_input_files("input[type=file]", [{"name": name, "mimeType": "", "buffer": content}])
        self.page.wait_for_function("(name) => document.querySelector('.lead').textContent.startsWith(name)", arg=name)
        return str(self.page.inner_text(".word"))


@pytest.fixture
def visit(browser: Any, site: Site) -> Iterator[Visit]:
    page = Visit(browser, site.url)
    yield page
    assert page.faults == []
    page.context.close()


def png(pixels: np.ndarray, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


GREY = phantom.draw(5, opacity=True, size=300)[:, 20:260]  # not square
IMAGE = png(GREY)
DEEP = GREY.astype(np.uint16) * 16 + 7  # of 12 bits


def viridis() -> np.ndarray:
    from cxrlib.images import colormaps

    return np.array(colormaps.tables()["viridis"], np.uint8)[GREY]


def turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return png(GREY, "JPEG", quality=95, exif=exif)


def dicom(pixels: np.ndarray = DEEP, **tags: Any) -> bytes:
    stored = {"BitsStored": 12} if pixels.dtype == np.uint16 else {}
    return drawn_dicom.saved(drawn_dicom.dataset(pixels, **{**stored, **tags}))


def coloured(photometric: str) -> bytes:
    data = drawn_dicom.dataset(GREY)
    data.SamplesPerPixel, data.PhotometricInterpretation, data.PlanarConfiguration = 3, photometric, 0
    rest = np.full_like(GREY, 128) if photometric == "YBR_FULL" else GREY
    data.PixelData = np.stack([GREY, rest, rest], 2).tobytes()
    return drawn_dicom.saved(data)


def run_lengths() -> bytes:
    data = drawn_dicom.dataset(DEEP, BitsStored=12)
    data.compress("1.2.840.10008.1.2.5")
    return drawn_dicom.saved(data)


SYNTAX = "1.2.840.10008.1.2.4"
FILES = {
    "grey.png": lambda: IMAGE,
    "padded.png": lambda: png(np.pad(GREY, ((0, 0), (60, 60)))),
    "large.png": lambda: png(np.kron(GREY, np.ones((5, 5), np.uint8))),
    "deep.png": lambda: png(DEEP * 16),
    "twelve_bits_in_sixteen.png": lambda: png(DEEP),
    "colour.png": lambda: png(np.stack([GREY, GREY // 2, GREY // 3], 2)),
    "transparent.png": lambda: png(np.stack([GREY, GREY, GREY, np.full_like(GREY, 200)], 2)),
    "false_colour.png": lambda: png(viridis()),
    "image.jpg": lambda: png(GREY, "JPEG", quality=92),
    "turned.jpg": turned,
    "image.webp": lambda: png(GREY, "WEBP", lossless=True),
    "image.gif": lambda: png(GREY, "GIF"),
    "image.bmp": lambda: png(GREY, "BMP"),
    "plain.dcm": dicom,
    "monochrome1.dcm": lambda: dicom(PhotometricInterpretation="MONOCHROME1"),
    "window.dcm": lambda: dicom(WindowCenter=1800, WindowWidth=2500),
    "rescaled.dcm": lambda: dicom(
        RescaleSlope=2, RescaleIntercept=-1024, WindowCenter="2000\\100", WindowWidth="4000\\9"
    ),
    "sixteen_bits_declared.dcm": lambda: dicom(DEEP // 4, BitsStored=16),
    "signed.dcm": lambda: dicom((DEEP.astype(np.int16) - 2048), BitsStored=16),
    "big_endian.dcm": lambda: dicom(syntax="1.2.840.10008.1.2.2"),
    "empty.dcm": lambda: dicom(WindowCenter=None, WindowWidth=None, RescaleSlope=None, VOILUTSequence=[]),
    "rgb.dcm": lambda: coloured("RGB"),
    "ybr.dcm": lambda: coloured("YBR_FULL"),
    "jpeg.dcm": lambda: dicom(GREY, syntax=f"{SYNTAX}.50", coded=png(GREY, "JPEG", quality=95)),
    "lossless.dcm": lambda: dicom(syntax=f"{SYNTAX}.70", coded=imagecodecs.ljpeg_encode(DEEP, bitspersample=12)),
    "jpeg_ls.dcm": lambda: dicom(syntax=f"{SYNTAX}.80", coded=imagecodecs.jpegls_encode(DEEP)),
    "jpeg_2000.dcm": lambda: dicom(
        syntax=f"{SYNTAX}.90", coded=imagecodecs.jpeg2k_encode(DEEP, level=0, codecformat="j2k")
    ),
    "run_lengths.dcm": run_lengths,
    "lateral.dcm": lambda: dicom(ViewPosition="LL"),
    "ct.dcm": lambda: dicom(Modality="CT"),
    "blank.png": lambda: png(np.full((200, 200), 90, np.uint8)),
    "small.png": lambda: png(GREY[::6, ::6]),
    "narrow.png": lambda: png(np.repeat(GREY[:70], 5, axis=1)),
}


@pytest.mark.parametrize("name", FILES)
def test_the_page_answers_as_python_does(visit: Visit, predictor: Predictor, name: str) -> None:
    content = FILES[name]()
    expected, found = predictor(content), visit.ask(name, content)
    assert (found["status"], found["reasons"]) == (expected.status, list(expected.reasons))
    if expected.status == "ok":
        assert found["probabilities"] == pytest.approx(list(expected.probabilities.values()), abs=1e-3)


BAD = {
    "nothing.png": b"",
    "page.html": b"<html></html>",
    "archive.zip": b"PK\3\4" + bytes(200),
    "half.png": IMAGE[: len(IMAGE) // 2],
    "half.jpg": FILES["image.jpg"]()[:3000],
    "half.dcm": dicom()[:20_000],
    "noise.jpg": b"\xff\xd8\xff" + bytes(range(256)),
    "bomb.png": IMAGE[:16] + (30_000).to_bytes(4, "big") * 2 + IMAGE[24:],
    "garbage.dcm": bytes(128) + b"DICM" + bytes(range(256)) * 4,
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_read_is_named_and_the_next_image_answered(
    visit: Visit, predictor: Predictor, name: str
) -> None:
    with pytest.raises(ImageError):
        predictor(BAD[name])
    found = visit.ask(name, BAD[name])
    assert found["status"] == "unreadable"
    assert found["reasons"][0].startswith(f"{name}: it ")
    assert visit.send(name, BAD[name]) == "Not read"
    assert visit.ask("image.png", IMAGE)["status"] == "ok"


def test_a_verdict_a_heatmap_and_another_operating_point(visit: Visit, predictor: Predictor) -> None:
    assert visit.send("image.png", IMAGE) == "Possible pneumonia: have it read"
    p = predictor(IMAGE).probability
    assert f"{100 * p:.0f}%" in visit.page.inner_text(".sentence")
    heat = visit.ask("image.png", IMAGE)["heat"]
    assert heat == pytest.approx(float(predictor.explain(IMAGE).heatmap.max()), abs=0.02)
    visit.page.get_by_label("Balanced").check()
    assert visit.page.inner_text(".word") == "No sign of pneumonia"
    visit.page.get_by_label("Your threshold").fill("0")
    assert visit.page.inner_text(".word") == "Pneumonia likely"
    visit.page.locator(".pretest summary").click()
    visit.page.locator(".pretest input").fill("50")
    after = predictor(IMAGE).given(0.5)
    assert f"{100 * after.probability:.0f}" in visit.page.inner_text(".pretest strong")
    with visit.page.expect_download() as saved:
        visit.page.get_by_role("button", name="Save").click()
    with Image.open(saved.value.path()) as picture:
        assert picture.width == GREY.shape[1]
        assert picture.height > GREY.shape[0]


def test_a_print_is_one_page(visit: Visit) -> None:
    visit.send("image.png", IMAGE)
    assert len(re.findall(rb"/Type\s*/Page[^s]", visit.page.pdf(format="A4"))) == 1


def test_the_real_model_answers_as_python_does(browser: Any, shared: Path, tmp_path: Path) -> None:
    site, predictor = Site(web.write_page(None, tmp_path / "page")), Predictor()
    visit = Visit(browser, site.url)
    wrong = []
    folders = ("data/native", "data/cohen", "data/rsna", "data/nih", "data/not_chest", "cases/lateral", "cases/dicom")
    for folder in folders:
        for path in sorted(p for p in (shared / folder).rglob("*") if p.suffix in (".jpeg", ".jpg", ".png", ".dcm"))[
            ::40
        ]:
            expected, found = predictor(path), visit.ask(path.name, path.read_bytes())
            close = expected.status != "ok" or abs(found["probabilities"][1] - expected.probability) <= 0.01
            if found["status"] != expected.status or not close:
                wrong.append((path.name, expected, found))
    assert wrong == []
    site.close()
    visit.context.close()


def test_three_labels(browser: Any, tmp_path: Path) -> None:
    content = tiny_network.files(labels=("NORMAL", "BACTERIAL", "VIRAL"), gate=tiny_network.tolerant_gate())
    folder = tiny_network.write(tmp_path / "model", content)
    site, expected = Site(web.write_page(folder, tmp_path / "page")), Predictor(folder)(IMAGE)
    visit = Visit(browser, site.url)
    assert visit.send("image.png", IMAGE) == expected.label.capitalize()
    assert visit.ask("image.png", IMAGE)["probabilities"] == pytest.approx([*expected.probabilities.values()], abs=1e-3)
    assert visit.page.locator(".answer td").all_inner_texts()[::2] == ["Normal", "Bacterial", "Viral"]
    assert not visit.page.locator(".choice").is_visible()
    site.close()
    visit.context.close()


# --- files that come once, are verified, and stay ---


def test_offline_after_the_first_visit_and_nothing_loads_twice(browser: Any, site: Site) -> None:
    site.asked.clear()
    visit = Visit(browser, site.url)
    large = [path for path in site.asked if path.endswith((".tflite", ".gz", ".json", ".wasm"))]
    assert sorted(large) == sorted(set(large)), "each is loaded once"
    site.asked.clear()
    visit.page.reload()
    visit.page.wait_for_selector("body[data-ready]")
    assert set(site.asked) <= {"/sw.js"}, "a later visit loads nothing"
    visit.context.set_offline(True)
    visit.page.reload()
    visit.page.wait_for_selector("body[data-ready]")
    assert visit.send("image.png", IMAGE) == "Possible pneumonia: have it read"
    assert visit.ask("j2k.dcm", FILES["jpeg_2000.dcm"]())["status"] == "ok"
    assert visit.faults == []
    visit.context.close()


@pytest.mark.parametrize("what", ["network", "golden probe"])
def test_a_model_that_was_changed_is_not_used(browser: Any, bundle_folder: Path, tmp_path: Path, what: str) -> None:
    page = web.write_page(bundle_folder, tmp_path / "page")
    if what == "network":
        network = bytearray((page / "model" / "model.tflite").read_bytes())
        network[-40] ^= 1
        (page / "model" / "model.tflite").write_bytes(network)
    else:
        config = json.loads((page / "model" / "config.json").read_text())
        (page / "model" / "config.json").write_text(json.dumps({**config, "probe": config["probe"][::-1]}))
    site = Site(page)
    visit = Visit(browser, site.url, wait=False)
    visit.page.wait_for_selector(".said.wrong")
    said = visit.page.inner_text(".said")
    assert ("SHA-256" if what == "network" else "golden probe") in said, said
    site.close()
    visit.context.close()


def test_a_new_version_is_offered_and_taken_as_a_whole(browser: Any, bundle_folder: Path, tmp_path: Path) -> None:
    site = Site(web.write_page(bundle_folder, tmp_path / "page"))
    visit = Visit(browser, site.url)
    assert not visit.page.locator("[data-update]").is_visible()
    other = tiny_network.write(tmp_path / "other", tiny_network.files(seed=4))
    shutil.rmtree(site.folder)
    web.write_page(other, site.folder)
    before = visit.ask("image.png", IMAGE)["probabilities"]
    visit.page.reload()
    visit.page.wait_for_selector("body[data-ready]")
    assert visit.ask("image.png", IMAGE)["probabilities"] == before, "the version in use stays whole"
    visit.page.locator("[data-update]").click()
    visit.page.wait_for_function(
        "async () => (await caches.keys()).length === 1 && 'ready' in document.body.dataset", timeout=20_000
    )
    visit.page.wait_for_timeout(500)
    visit.page.wait_for_selector("body[data-ready]")
    expected = list(Predictor(other)(IMAGE).probabilities.values())
    assert visit.ask("image.png", IMAGE)["probabilities"] == pytest.approx(expected, abs=1e-3)
    site.close()
    visit.context.close()


def test_nothing_may_connect_to_another_address(visit: Visit, site: Site) -> None:
    tried = "async () => { try { await fetch('http://127.0.0.1:9/'); return 'sent'; } catch (e) { return String(e); } }"
    assert "TypeError" in visit.page.evaluate(tried)
    assert any(
        "Content Security Policy" in fault or "content security policy" in fault.lower() for fault in visit.faults
    )
    [worker] = [w for w in visit.page.workers if "worker.js" in w.url]
    assert "TypeError" in worker.evaluate(tried)
    headers = visit.page.evaluate("async () => (await fetch('worker.js')).headers.get('Content-Security-Policy')")
    assert "connect-src 'self'" in headers, "a worker gets its policy from the service worker"
    visit.faults.clear()


# --- how it looks, and how it is used without a mouse ---


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
def test_it_fits_and_reads_well(browser: Any, site: Site, size: str, theme: str) -> None:
    visit = Visit(browser, site.url, size=size, theme=theme)
    for name, content in (("colour.png", FILES["colour.png"]()), ("blank.png", FILES["blank.png"]()), ("a.png", b"")):
        visit.send(name, content)
        visit.page.wait_for_timeout(200)
        assert visit.page.evaluate(CONTRAST) == [], name
        assert visit.page.evaluate("() => document.documentElement.scrollWidth <= innerWidth"), "wider than the screen"
        note = visit.page.locator("footer").bounding_box()
        assert note["y"] + note["height"] <= SIZES[size][1] + 1
        assert "not a medical device" in visit.page.inner_text("footer")
    if size != "laptop":
        visit.page.get_by_role("button", name="An opacity").tap()
        visit.page.wait_for_function("() => document.querySelector('.lead').textContent.includes('drawing')")
        visit.page.wait_for_timeout(300)
        word, frame = (visit.page.locator(place).bounding_box() for place in (".word", ".frame"))
        assert 0 <= word["y"] < frame["y"], "the verdict is in sight, above the image"
        small = visit.page.evaluate(
            "() => [...document.querySelectorAll('button, .button')].filter((e) => e.checkVisibility())"
            ".map((e) => e.getBoundingClientRect()).filter((box) => Math.min(box.width, box.height) < 44).length"
        )
        assert small == 0, "all buttons are large enough for a finger"
    assert visit.faults == []
    visit.context.close()


def test_keyboard_and_screen_readers(visit: Visit) -> None:
    visit.send("image.png", IMAGE)
    said = reached_by_tab(visit.page, 18)
    for name in (
        "Choose an image",
        "Camera",
        "Clear lungs",
        "Heatmap",
        "Larger",
        "Save",
        "Screening",
        "About this model",
    ):
        assert name in said, said
    visit.page.get_by_label("Screening").focus()
    visit.page.keyboard.press("ArrowDown")
    assert "No sign of pneumonia" in visit.page.locator("#live").text_content()
    tree = visit.page.locator("body").aria_snapshot()
    for part in ('heading "Chest radiographs"', 'group "Operating point"', 'img "The image, 240 by 300 pixels"'):
        assert part in tree, tree
    assert unnamed(visit.page, "body") == []


def test_drop_paste_and_camera(visit: Visit) -> None:
    put = """([event, bytes]) => {
      const data = new DataTransfer();
      data.items.add(new File([new Uint8Array(bytes)], `${event}.png`));
      const made = event === "paste" ? new ClipboardEvent(event, { clipboardData: data, bubbles: true })
        : new DragEvent(event, { dataTransfer: data, bubbles: true, cancelable: true });
      document.body.dispatchEvent(made);
    }"""
    for event in ("drop", "paste"):
        visit.page.evaluate(put, [event, list(IMAGE)])
        visit.page.wait_for_function("(e) => document.querySelector('.lead').textContent.startsWith(e)", arg=event)
    visit.page.get_by_role("button", name="Camera").click()
    visit.page.wait_for_function("() => document.querySelector('video').videoWidth > 0")
    visit.page.get_by_role("button", name="Take the picture").click()
    visit.page.wait_for_function("() => document.querySelector('.lead').textContent.startsWith('camera.jpg')")


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc")
def test_memory_over_many_images(browser: Any, site: Site) -> None:
    visit = Visit(browser, site.url)
    content, sizes = FILES["large.png"](), []
    session = browser.new_browser_cdp_session()
    for i in range(200):
        assert visit.ask(f"{i}.png", content)["status"] == "ok"
        if i in (60, 199):
            processes = session.send("SystemInfo.getProcessInfo")["processInfo"]
            pages = [process["id"] for process in processes if process["type"] == "renderer"]
            sizes.append(sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in pages) * 4096 / 2**20)
    # the collector is lazy; keeping only the grey levels of each image would take 240 MiB
    assert sizes[1] - sizes[0] < 140, f"MiB after 60 and 200 images: {sizes}"
    visit.context.close()
