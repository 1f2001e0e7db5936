"""What answers: uploads are read and removed, the predictor runs, and errors become sentences."""

from __future__ import annotations

import asyncio
import dataclasses
import io
import itertools
import logging
import os
import re
import secrets
import shutil
import time
import zipfile
import zlib
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import gradio as gr
import httpx
from drawings import PREFIX, drawings
from gradio.route_utils import MultiPartException, upload_fn
from safehttpx import AsyncSecureTransport, async_validate_url
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from cxrlib import Explanation, ImageError, Predictor, hub, phantom
from cxrlib.bundle import BUNDLED
from cxrlib.images import sources
from cxrlib.images.decode import Radiograph, read

MAX_BYTES = 64 * 2**20  # of a file; a detector of 43 x 43 cm with 0.1 mm pixels of 16 bits gives 37 MB
MAX_IMAGES = 200  # of a batch
MAX_UNPACKED = 512 * 2**20  # of a zip
MAX_EXAMPLES = 12  # from a folder
FETCH = 30  # seconds for an address that a program sends
CORES = 2  # images computed at once
_TOO_LARGE = f"it is larger than {MAX_BYTES // 2**20} MB"
_log = logging.getLogger("cxrlib.demo")


class UploadError(ValueError):
    """There is no answer to an upload; the message is a sentence for the visitor."""


# --- what visitors send ---


class Upload(io.BytesIO):
    """The bytes of a file, and its name."""

    def __init__(self, data: bytes, name: str) -> None:
        super().__init__(data)
        self.name = name

    @property
    def zipped(self) -> bool:
        return self.getbuffer()[:4] == b"PK\3\4"


class Uploads:
    """Uploads until they are read: each in a folder of its own whose name nobody can guess, removed by reading it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(mode=0o700, exist_ok=True)

    async def receive(self, request: Request) -> Response:
        """Replace Gradio's upload route, where equal files of two visitors share a path and a broken upload stays."""
        place = self.folder / secrets.token_hex(16)
        try:
            files, _, _ = await upload_fn(request, place, MAX_BYTES, None)
        except BaseException as error:
            shutil.rmtree(place, ignore_errors=True)
            if isinstance(error, MultiPartException):
                return PlainTextResponse("The upload is not complete.", 400)
            raise
        return JSONResponse([str(file) for file in files])

    def take(self, path: str, name: str) -> Upload:
        """Read an upload, and remove it."""
        file = Path(os.path.realpath(path))
        if self.folder not in file.parent.parents:
            raise UploadError(f"{name}: only files that were uploaded here are read.")
        try:
            return Upload(file.read_bytes(), name)
        except OSError as error:
            raise UploadError(
                f"{name}: the file is no longer here, because an upload is read once. Please send it again."
            ) from error
        finally:
            file.unlink(missing_ok=True)
            for place in (file.parent, file.parent.parent):
                if place != self.folder:
                    try:
                        place.rmdir()
                    except OSError:  # another file of the same upload
                        break

    def sweep(self, age: float) -> None:
        """Remove what has lain here for `age` seconds."""
        for place in self.folder.iterdir():
            try:
                if time.time() - place.stat().st_mtime >= age:
                    shutil.rmtree(place) if place.is_dir() else place.unlink()
            except OSError:  # an answer was faster
                continue

    def close(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


async def fetch(url: str, cache_dir: str) -> str:
    """Replace Gradio's download of an address: public hosts only, as there, but with limits and a folder of its own."""
    shown = re.sub(r"[^A-Za-z0-9._-]|^\.+", "_", _name(url.partition("?")[0]))
    try:
        data = await asyncio.wait_for(_download(url), FETCH)
    except (httpx.HTTPError, httpx.InvalidURL, asyncio.TimeoutError, ValueError, OSError) as error:
        _log.info("%s while an address was fetched", type(error).__name__)
        raise gr.Error(
            f"{shown}: {error if isinstance(error, UploadError) else 'nothing can be fetched from there'}.",
            print_exception=False,
        ) from None
    place = Path(cache_dir, secrets.token_hex(16), "fetched")
    place.mkdir(parents=True)
    (place / shown).write_bytes(data)
    return str(place / shown)


async def _download(url: str) -> bytes:
    for _ in range(5):  # redirections
        transport = AsyncSecureTransport(await async_validate_url(httpx.URL(url).host))
        async with httpx.AsyncClient(transport=transport) as client, client.stream("GET", url) as response:
            if response.has_redirect_location:
                url = str(response.url.join(response.headers["location"]))
                continue
            response.raise_for_status()
            data = bytearray()
            async for chunk in response.aiter_bytes():
                data += chunk
                if len(data) > MAX_BYTES:
                    raise UploadError(_TOO_LARGE)
            return bytes(data)
    raise UploadError("there are too many redirects")


class Limits:
    """Middleware: limits the size of a request, and the requests of a visitor per minute.

    Args:
        app: What to protect.
        a_minute: Most requests of a visitor; `None` for any number.
    """

    def __init__(self, app: Any, a_minute: int | None) -> None:
        self.app, self.a_minute = app, a_minute
        self.visitors = OrderedDict[str, tuple[float, float]]()  # address -> requests left, and when that was so

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        answer = self._refusal(scope) if scope["type"] == "http" and scope["method"] == "POST" else None
        await (answer or self.app)(scope, receive, send)

    def _refusal(self, scope: Any) -> Response | None:
        size = dict(scope["headers"]).get(b"content-length", b"")
        path = scope["path"]
        limit = 2**20
        if path == "/gradio_api/upload":
            limit = MAX_BYTES + 2**16
        elif path.startswith("/gradio_api/mcp"):  # base64
            limit = MAX_BYTES * 4 // 3 + 2**16
        if not size.isdigit():
            return PlainTextResponse("The size of the upload must be given.", 411)
        if int(size) > limit:
            return PlainTextResponse(f"{_TOO_LARGE.capitalize()}.", 413)
        if self.a_minute and not self.admit(_address(scope), time.monotonic()):
            return PlainTextResponse("Too many requests: please wait a minute.", 429, {"retry-after": "60"})
        return None

    def admit(self, address: str, now: float) -> bool:
        """Whether a visitor may send another request now."""
        rate = float(self.a_minute or 0)
        left, since = self.visitors.pop(address, (rate, now))
        left = min(rate, left + (now - since) * rate / 60)
        self.visitors[address] = (left - 1 if left >= 1 else left, now)
        if len(self.visitors) > 10_000:
            self.visitors.popitem(last=False)
        return left >= 1


def _address(scope: Any) -> str:
    forwarded = dict(scope["headers"]).get(b"x-forwarded-for", b"").decode("latin-1").partition(",")[0].strip()
    return forwarded or (scope["client"] or ("",))[0]


def _name(text: str) -> str:
    """A file's own name, short enough to show."""
    return re.split(r"[\\/]", text)[-1][-100:] or "image"


def _unzip(upload: Upload) -> Iterator[tuple[str, Upload | UploadError]]:
    """The files of an archive, one at a time in memory, whatever sizes it declares."""
    left = MAX_UNPACKED
    try:
        with zipfile.ZipFile(upload) as archive:
            for member in archive.infolist():
                name = _name(member.filename)
                if member.is_dir() or name.startswith(".") or "__MACOSX" in member.filename:
                    continue
                with archive.open(member) as file:
                    data = file.read(min(MAX_BYTES, left) + 1)
                if len(data) > left:
                    most = f"{upload.name} unpacks to more than {MAX_UNPACKED // 2**20} MB"
                    yield name, UploadError(f"{most}: this image and those after it were not read.")
                    return
                left -= len(data)
                yield name, Upload(data, name) if len(data) <= MAX_BYTES else UploadError(f"{name}: {_TOO_LARGE}.")
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, OSError, ValueError):
        reason = "the archive is damaged, encrypted or of an unknown kind; what follows in it was not read."
        yield upload.name, UploadError(f"{upload.name}: {reason}")


def _published_examples(predictor: Predictor, model: str) -> list[Path]:
    """Images in `examples/` beside the bundle, in its folder or its repository; whatever goes wrong, there are none."""
    folder = predictor.folder / "examples"
    if predictor.revision is None:
        return sources.find(folder) if folder.is_dir() else []
    place = {"repo_id": hub.parse_address(model)[0], "revision": predictor.revision}
    try:
        api = hub.connect(None)
        files = api.model_info(**place, files_metadata=True, timeout=10).siblings or ()
        small = (file.rfilename for file in files if (file.size or MAX_BYTES) < MAX_BYTES)
        names = [name for name in small if re.fullmatch(r"examples/[^/]+", name)]
        images = sorted(name for name in names if Path(name).suffix.lower() in sources.EXTENSIONS)
        return [Path(api.hf_hub_download(**place, filename=name)) for name in images[:MAX_EXAMPLES]]
    except Exception as error:  # noqa: BLE001 - of any of the libraries that connect to the Hub
        _log.warning("no examples: %s", type(error).__name__)
        return []


def _readable(paths: Iterable[Path]) -> Iterator[tuple[str, Radiograph, Path]]:
    for path in paths:
        try:
            yield path.stem.replace("_", " "), read(path), path
        except (ImageError, ImportError) as error:
            _log.warning("no example: %s", error)


# --- answers ---


def _threshold(predictor: Predictor, operating_point: str | None) -> float | None:
    points = predictor.config.operating_points
    if operating_point is None:
        return None
    if operating_point not in points:
        raise UploadError(f"The operating point must be {' or '.join(points) or 'left out: this model has none'}.")
    return points[operating_point].threshold


class Backend:
    """Reads uploads, runs the predictor, and turns errors into sentences.

    Args:
        model: As for `Predictor`.
        examples: A folder of images to offer; `None` for drawings, and those in the model's `examples/`.
        folder: Where uploads lie until they are read.
    """

    def __init__(
        self, model: str | os.PathLike[str] | None, examples: str | os.PathLike[str] | None, folder: Path
    ) -> None:
        self.predictor = Predictor(model, threads=CORES)
        self.predictors = {"default": self.predictor}  # by name: those that come with cxrlib, or the one that was given
        if model is None:
            self.predictors |= {name: Predictor(name, threads=CORES) for name in BUNDLED if name != "default"}
        self.uploads = Uploads(folder)
        drawn = drawings() if examples is None else {}
        found = _published_examples(self.predictor, str(model)) if examples is None else sources.find(examples)
        self.examples = [
            *((f"{PREFIX}{name}", read(pixels), pixels) for name, pixels in drawn.items()),
            *itertools.islice(_readable(found), MAX_EXAMPLES),
        ]
        self.predictor.explain(phantom.draw(0))  # loads everything before the first visitor comes

    def take(self, file: dict[str, Any]) -> Upload:
        """Read and remove one of Gradio's file descriptions."""
        return self.uploads.take(file["path"], _name(file.get("orig_name") or file["path"]))

    def example(self, index: int, *, model: str | None = None) -> Explanation:
        """Explain one of the examples."""
        name, _, source = self.examples[index]
        found = self.explain(source, model=model)
        return dataclasses.replace(found, prediction=dataclasses.replace(found.prediction, source=name))

    def named(self, model: str | None) -> Predictor:
        """One of the models; the first when no name is given."""
        if model is not None and model not in self.predictors:
            raise UploadError(f"The model must be {' or '.join(self.predictors)}.")
        return self.predictors[model or "default"]

    def explain(
        self, source: Any, *, label: str | None = None, operating_point: str | None = None, model: str | None = None
    ) -> Explanation:
        """Give prediction and heatmap, or raise `UploadError` when there is no answer."""
        predictor = self.named(model)
        threshold = _threshold(predictor, operating_point)
        if label is not None and label not in predictor.labels:
            raise UploadError(f"The label must be {' or '.join(predictor.labels)}.")
        try:
            found = predictor.explain(source, label=label)
        except (ImageError, ImportError) as error:
            raise UploadError(f"{error}.") from error
        except Exception as error:
            _log.error("%s while an image was answered", type(error).__name__)  # the message might name a patient
            raise UploadError("The demo has a fault and gives no answer for this image.") from error
        return found if threshold is None else dataclasses.replace(found, prediction=found.prediction.at(threshold))

    def batch(
        self, files: Sequence[dict[str, Any]], *, operating_point: str | None = None, model: str | None = None
    ) -> Iterator[tuple[str, Explanation | UploadError]]:
        """Name and answer of each image among the uploads, in order, at most `MAX_IMAGES`; an error stops no other."""

        def answer(name: str, image: Upload | UploadError) -> tuple[str, Explanation | UploadError]:
            try:
                if isinstance(image, UploadError):
                    raise image
                return name, self.explain(image, operating_point=operating_point, model=model)
            except UploadError as error:
                return name, error

        found, waiting = self._open(files), deque[Any]()
        try:
            _threshold(self.named(model), operating_point)
            with ThreadPoolExecutor(CORES) as pool:
                for name, image in itertools.islice(found, MAX_IMAGES):
                    waiting.append(pool.submit(answer, name, image))
                    if len(waiting) > CORES:
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            for name, _ in itertools.islice(found, 1):
                reason = f"A batch holds at most {MAX_IMAGES} images: this one and those after it were not read."
                yield name, UploadError(reason)
        finally:
            for file in files:  # what was not reached
                try:
                    self.take(file)
                except UploadError:
                    continue

    def _open(self, files: Sequence[dict[str, Any]]) -> Iterator[tuple[str, Upload | UploadError]]:
        for file in files:
            try:
                upload = self.take(file)
            except UploadError as error:
                yield _name(file.get("orig_name") or file["path"]), error
                continue
            if upload.zipped:
                yield from _unzip(upload)
            else:
                yield upload.name, upload
