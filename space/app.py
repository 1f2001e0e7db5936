"""The demo: one image, a batch, the model, and how to read its answers. Uses only public parts of cxrlib."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from html import escape
from pathlib import Path
from string import Template
from types import SimpleNamespace
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))  # also when `cxrlib demo` runs this file
if (HERE.parent / "cxrlib" / "__init__.py").is_file():
    sys.path.insert(1, str(HERE.parent))  # a checkout; a published Space has cxrlib beside this file

# ruff: noqa: E402
from prelude import FOLDER

# isort: split
import gradio as gr
import numpy as np
from backend import CORES, MAX_BYTES, Backend, Limits, UploadError, Uploads, fetch
from gradio import processing_utils, queueing, route_utils, routes
from pages import Pages, Row, data_url, resized, shrink, thumbnail
from PIL import Image
from starlette.middleware import Middleware
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.routing import Route

from cxrlib import Prediction, __version__
from cxrlib.config import DISCLAIMER

ACCEPT = "image/jpeg,image/png,image/tiff,image/bmp,image/webp,.dcm,.dicom,application/dicom,*/*"
MODELS = {"default": "Normal or pneumonia", "causes": "Cause of a pneumonia, in children"}
WAITING = 200  # requests in the queue before it is closed
RATE = 600  # requests a minute and visitor on a public Space; an image takes two
FORGET = 60  # seconds without a request after which a visitor's session is forgotten
ORPHAN = 900  # seconds after which an upload that nobody asked about is removed


def build(backend: Backend) -> gr.Blocks:
    """Lay out the pages and the endpoints.

    Args:
        backend: What answers.

    Returns:
        The app, not yet launched.
    """
    pages = {name: Pages(predictor) for name, predictor in backend.predictors.items()}
    first = pages["default"]
    one_by_one = {"concurrency_id": "image", "concurrency_limit": CORES}
    private = {"api_visibility": "private", "show_progress": "hidden"}
    page = functools.partial(gr.HTML, apply_default_css=False)

    def one(files: list[dict[str, Any]], model: str) -> tuple[str, str]:
        shown = pages[model]
        try:
            upload = backend.take(files[0])
            if upload.zipped:
                raise UploadError(f"{upload.name}: this is a zip archive. The page “Batch” takes those.")
            found = backend.explain(upload, model=model)
        except UploadError as error:
            return shown.viewer(unread=True), shown.answer(error=str(error))
        return shown.viewer(found), shown.answer(found)

    def example(model: str, event: gr.EventData) -> tuple[str, str]:
        found = backend.example(event.index, model=model)
        return pages[model].viewer(found), pages[model].answer(found)

    def switch(model: str) -> tuple[str, str, str, str, str]:
        shown = pages[model]
        return shown.head(), shown.viewer(), shown.answer(), shown.glance(), shown.table()

    def many(files: list[dict[str, Any]], model: str) -> Iterator[tuple[Any, Any]]:
        rows: list[Row] = []
        total = None if any(file["orig_name"].lower().endswith(".zip") for file in files) else len(files)
        shown = 0.0
        for name, found in backend.batch(files, model=model):
            unread = isinstance(found, UploadError)
            rows.append((name, "", str(found)) if unread else (name, thumbnail(found.image), found.prediction))
            if time.monotonic() - shown > 0.25:
                shown = time.monotonic()
                yield first.progress(len(rows), total), gr.skip()
        yield "", pages[model].table(rows)

    with gr.Blocks(title="Chest radiographs: cxrlib", analytics_enabled=False) as app:
        head = page(first.head(), elem_id="cx-head")
        names = [(MODELS.get(name, name), name) for name in pages]
        which = gr.Radio(
            names, value="default", label="Model", visible=len(names) > 1, elem_id="cx-model", container=False
        )
        form = functools.partial(page, html_template=_read("drop.html"), js_on_load=_js("drop"), limit=MAX_BYTES)
        with gr.Tabs(elem_id="cx-tabs"):
            with gr.Tab("One image", render_children=True), gr.Row(elem_id="cx-one"):
                drop = form(many=False, accept=ACCEPT, elem_id="cx-drop")
                examples = page(first.examples(backend.examples), js_on_load=_js("examples"), elem_id="cx-examples")
                viewer = page(first.viewer(), js_on_load=_js("settle"), elem_id="cx-viewer")
                answer = page(first.answer(), js_on_load=_js("settle"), elem_id="cx-side")
            with gr.Tab("Batch", render_children=True), gr.Column(elem_id="cx-batch"):
                batch = form(many=True, accept=f"{ACCEPT},.zip", elem_id="cx-many")
                progress = page("", min_height=28)
                table = page(first.table(), js_on_load=_js("settle"))
            with gr.Tab("Model") as about:
                glance = page(first.glance())
                with gr.Accordion("The whole model card", open=False, elem_id="cx-more"):
                    card = gr.Markdown(elem_id="cx-card")
            with gr.Tab("About"):
                gr.Markdown(_about(), elem_id="cx-about")
        page(f'<p role="note">{escape(DISCLAIMER)}</p>', elem_id="cx-note")

        once = {"trigger_mode": "once", "concurrency_id": "batch", "concurrency_limit": 1}
        for event in (
            drop.upload(one, [drop, which], [viewer, answer], trigger_mode="always_last", **one_by_one, **private),
            examples.select(example, which, [viewer, answer], trigger_mode="always_last", **one_by_one, **private),
            batch.upload(many, [batch, which], [progress, table], **once, **private),
        ):
            event.then(None, js="() => cxr.done()")
            event.failure(None, js="() => cxr.failed()")
        about.select(lambda model: pages[model].card(), which, card, queue=False, **private)
        changed = which.change(switch, which, [head, viewer, answer, glance, table], queue=False, **private)
        changed.then(lambda model: pages[model].card(), which, card, queue=False, **private)
        changed.then(None, js="() => cxr.again()")
        _endpoints(backend, one_by_one)
    app.queue(max_size=WAITING, default_concurrency_limit=CORES, api_open=False)
    return app


def _endpoints(backend: Backend, one_by_one: dict[str, Any]) -> None:
    def predict(image: gr.FileData, operating_point: str | None = None, model: str | None = None) -> dict[str, Any]:
        """Classify one chest radiograph.

        Args:
            image: JPEG, PNG, TIFF, BMP, WebP or DICOM file.
            operating_point: Name of the threshold to decide at; the model's default when not given.
            model: Name of the model, where the demo has several; the first when not given.

        Returns:
            source, status, label, probability, threshold, probabilities and reasons, as of `Prediction.to_dict()`.
        """
        with _plainly():
            found = backend.explain(backend.take(dict(image)), operating_point=operating_point, model=model)
            return found.prediction.to_dict()

    def explain(
        image: gr.FileData, label: str | None = None, operating_point: str | None = None, model: str | None = None
    ) -> dict[str, Any]:
        """Classify one chest radiograph and show where the evidence lies.

        Args:
            image: As for predict.
            label: The class whose evidence is shown; pneumonia when not given.
            operating_point: As for predict.
            model: As for predict.

        Returns:
            The fields of predict, and evidence_for, the class; heatmap, a data URL of a grey PNG, white where evidence
            is strong; overlay, a data URL of a JPEG, the heatmap over the image. Both pictures have the image's shape
            and at most 1024 pixels a side, and are null when there is no answer.
        """
        with _plainly():
            options = {"label": label, "operating_point": operating_point, "model": model}
            found = backend.explain(backend.take(dict(image)), **options)
            heat = overlay = None
            if found.prediction.status == "ok":
                small = resized(found, shrink(found.image))
                grey = Image.fromarray((255 * small.heatmap + 0.5).astype(np.uint8))
                heat, overlay = data_url(grey, "PNG"), data_url(small.overlay())
            return {**found.prediction.to_dict(), "evidence_for": found.label, "heatmap": heat, "overlay": overlay}

    def batch(
        images: list[gr.FileData], operating_point: str | None = None, model: str | None = None
    ) -> list[dict[str, Any]]:
        """Classify many chest radiographs.

        Args:
            images: Files as for predict, and zip archives of them; at most 200 images.
            operating_point: As for predict.
            model: As for predict.

        Returns:
            For each image the fields of predict; its status is "unreadable" where it could not be read.
        """
        with _plainly():
            labels = backend.named(model).labels
            answers = backend.batch([dict(image) for image in images], operating_point=operating_point, model=model)
            return [
                Prediction.unreadable(name, str(found), labels, None).to_dict()
                if isinstance(found, UploadError)
                else found.prediction.to_dict()
                for name, found in answers
            ]

    gr.api(predict, **one_by_one)
    gr.api(explain, **one_by_one)
    gr.api(batch, concurrency_id="batch", concurrency_limit=1)


@contextlib.contextmanager
def _plainly() -> Iterator[None]:
    try:
        yield
    except UploadError as error:
        raise gr.Error(str(error), print_exception=False) from None


def _read(name: str) -> str:
    return (HERE / name).read_text("utf-8")


def _about() -> str:
    return Template(_read("about.md")).substitute(disclaimer=DISCLAIMER, minutes=ORPHAN // 60, version=__version__)


def _js(function: str) -> str:
    return f"cxr.{function}(element, trigger, props, upload, watch)  // 'upload' 'select'"


def _theme() -> gr.themes.Base:
    system = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica Neue", "Arial", "sans-serif")
    return gr.themes.Base(
        primary_hue="cyan",
        neutral_hue="slate",
        font=system,
        font_mono=("ui-monospace", "Menlo", "Consolas", "monospace"),
    )


def _log_fault() -> None:
    logging.getLogger("cxrlib.demo").error(
        "%s outside the demo's own code", getattr(sys.exc_info()[0], "__name__", "a fault")
    )


def _keep_clean(app: gr.Blocks, uploads: Uploads, stop: threading.Event) -> None:
    """Every few seconds: orphaned uploads go, and so do the values that Gradio keeps for each session."""
    while not stop.wait(10):
        uploads.sweep(ORPHAN)
        with contextlib.suppress(RuntimeError):  # a visitor came while we looked: next time
            forget(app, FORGET)


def forget(app: gr.Blocks, age: float) -> None:
    """Drop the sessions without a request for `age` seconds, and with them the answers that Gradio keeps for them."""
    sessions, seen = app.state_holder.session_data, app.state_holder.time_last_used
    for name in list(sessions):
        if (datetime.now() - seen.get(name, datetime.min)).total_seconds() >= age:
            sessions.pop(name, None)
            seen.pop(name, None)


def start(
    model: str | os.PathLike[str] | None = None,
    *,
    port: int | None = None,
    examples: str | os.PathLike[str] | None = None,
    public: bool = False,
) -> tuple[gr.Blocks, Callable[[], None]]:
    """Serve the demo from a thread.

    Args:
        model: As for `Predictor`.
        port: Where to listen; `None` for the first free one from 7860.
        examples: Folder of images to offer instead of drawings.
        public: Whether to listen on all addresses, and to limit how much one visitor may send.

    Returns:
        The running app, whose `local_url` is its address, and what stops it.
    """
    backend = Backend(model, examples, FOLDER)
    app = build(backend)
    gone = ("/gradio_api/deep_link", "/gradio_api/process_recording")  # they would write a session, or a video, to disk
    own = [
        Route("/gradio_api/upload", backend.uploads.receive, methods=["POST"]),
        *(
            Route(path, lambda _: PlainTextResponse("This demo does not have it.", 404), methods=["GET", "POST"])
            for path in gone
        ),
        Route("/healthz", lambda _: JSONResponse({"status": "ok", "version": __version__})),
    ]
    processing_utils.async_ssrf_protected_download = fetch  # Gradio's own has no limit
    for module in (queueing, route_utils, routes):
        module.traceback = SimpleNamespace(print_exc=_log_fault)  # a traceback would quote what a visitor sent
    try:
        app.launch(
            server_name="0.0.0.0" if public else "127.0.0.1",
            server_port=port,
            prevent_thread_lock=True,
            quiet=True,
            show_error=False,
            max_file_size=MAX_BYTES,
            enable_monitoring=False,
            mcp_server=importlib.util.find_spec("mcp") is not None,
            run_history=False,
            state_session_capacity=64,
            footer_links=["api", "gradio"],
            ssr_mode=False,
            pwa=False,
            theme=_theme(),
            css_paths=HERE / "style.css",
            head=f"<script>{_read('page.js')}</script>",
            app_kwargs={"routes": own, "middleware": [Middleware(Limits, a_minute=RATE if public else None)]},
        )
    except OSError as error:
        backend.uploads.close()
        raise OSError(f"port {port or 'from 7860 on'} is taken: choose another with --port") from error
    stop = threading.Event()
    threading.Thread(target=_keep_clean, args=(app, backend.uploads, stop), daemon=True).start()

    def close() -> None:
        stop.set()
        app.close(verbose=False)
        backend.uploads.close()

    return app, close


def main(
    model: str | os.PathLike[str] | None = None, port: int | None = None, examples: str | os.PathLike[str] | None = None
) -> None:
    """Serve the demo until Ctrl-C.

    Args:
        model: As for `Predictor`.
        port: Where to listen; `None` for the first free one from 7860.
        examples: Folder of images to offer instead of drawings.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # so that the uploads go, too
    app, close = start(model, port=port, examples=examples, public="SPACE_ID" in os.environ)
    sys.stdout.write(f"cxrlib's demo is ready at {app.local_url} (Ctrl-C stops it)\n")
    sys.stdout.flush()
    try:
        app.block_thread()
    finally:
        close()


if __name__ == "__main__":
    main(_read("model.txt").strip() if (HERE / "model.txt").is_file() else None)  # what `cxrlib publish --space` writes
