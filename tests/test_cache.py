"""Images are decoded once and found again, whatever stops, shares or damages the cache."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import pytest
from PIL import Image

from cxrlib.data import cache
from cxrlib.data.cache import cache_folder, clean, decode, fingerprint
from cxrlib.data.scan import Dataset, scan
from cxrlib.images import decode as images
from cxrlib.images.sources import ImageError

ROOT = Path(__file__).parents[1]
SIZE = 32


def plant(folder: Path, n: int = 20, *, seed: int = 0, size: int = 48) -> Dataset:
    """Different images of noise, in two classes."""
    draw = np.random.default_rng(seed)
    for i in range(n):
        path = folder / ("NORMAL", "PNEUMONIA")[i % 2] / f"{i:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 256, (size, size + 8), np.uint8)).save(path)
        os.utime(path, (1e9, 1e9 + i))
    return scan(folder)


def expected(dataset: Dataset, size: int = SIZE) -> np.ndarray:
    return np.stack(
        [np.rint(images.fit(images.read(path), size)[..., 0] * 255).astype(np.uint8) for path in dataset.paths]
    )


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the arrays lie."""
    monkeypatch.setenv("CXRLIB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "images"


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Which images are decoded."""
    seen: list[Any] = []
    true_read = images.read

    def count(source: Any, **options: Any) -> Any:
        seen.append(source)
        return true_read(source, **options)

    monkeypatch.setattr(images, "read", count)
    return seen


def get(dataset: Dataset, **options: Any) -> cache.Images:
    decoded = decode(dataset, **{"size": SIZE, "progress": False, **options})
    decoded.check(dataset)
    return decoded.images


def arrays(place: Path) -> list[Path]:
    return sorted(place.glob("*.npy"))


# --- what it holds ---


def test_images_are_what_the_decoder_gives_in_the_order_of_the_data_set(tmp_path: Path, read: list[Any]) -> None:
    dataset = plant(tmp_path / "clinic")
    found = get(dataset)
    assert found.shape == (20, SIZE, SIZE)
    assert len(found) == 20
    assert found.dtype == np.uint8
    assert np.array_equal(np.asarray(found), expected(dataset))
    read.clear()
    shuffled = dataset.take(np.random.default_rng(0).permutation(20))
    assert np.array_equal(get(shuffled)[:], found[np.random.default_rng(0).permutation(20)])
    assert read == []  # the same files in another order


def test_every_kind_of_index(tmp_path: Path) -> None:
    dataset = plant(tmp_path / "clinic")
    found, whole = get(dataset), expected(dataset)
    mask = np.arange(20) % 3 == 0
    for index in (3, -1, np.int64(7), slice(None), slice(15, 2, -3), [4, 4, 0], np.array([19, 0, 7]), mask, []):
        assert np.array_equal(found[index], whole[index]), index
    assert np.asarray(found, np.float32).dtype == np.float32
    assert not found[3].flags.writeable
    with pytest.raises(IndexError):
        found[20]
    with pytest.raises(ValueError, match="without a copy"):
        np.array(found, copy=False)


def test_take(tmp_path: Path) -> None:
    dataset = plant(tmp_path / "clinic", 6)
    decoded = decode(dataset, size=SIZE, progress=False)
    for index in ([4, 1], np.arange(6) % 2 == 1, [], range(6)):
        part = decoded.take(index)
        assert np.array_equal(part.images[:], get(dataset.take(index))[:])
        assert [facts.digest for facts in part.facts] == [decoded.facts[i].digest for i in np.arange(6)[index]]
        assert np.array_equal(part.take([]).images[:], np.empty((0, SIZE, SIZE), np.uint8))


def test_sizes_and_decoder_versions_do_not_mix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = plant(tmp_path / "clinic", 4)
    get(dataset)
    assert get(dataset, size=16).shape == (4, 16, 16)
    monkeypatch.setattr(images, "DECODER", 99)
    monkeypatch.setattr(images, "fit", lambda image, size: np.ones((size, size, 1), np.float32))
    assert get(dataset)[:].min() == 255


def test_an_empty_data_set(tmp_path: Path) -> None:
    empty = plant(tmp_path / "clinic", 2).take([])
    for _ in range(2):
        assert get(empty)[:].shape == (0, SIZE, SIZE)


def test_facts(tmp_path: Path) -> None:
    dataset = plant(tmp_path / "clinic", 2)
    Image.fromarray(np.full((50, 40), 30000, np.uint16)).save(dataset.paths[0])
    Image.new("RGB", (60, 50), (255, 0, 0)).save(dataset.paths[1])
    for _ in range(2):
        deep, red = decode(dataset, size=SIZE, progress=False).facts
        assert (deep.height, deep.width, deep.white, deep.colour, deep.view, deep.error) == (50, 40, 65535, 0, None, "")
        assert (red.height, red.width, red.white, red.colour) == (50, 60, 255, 1)
        assert len({deep.digest, red.digest}) == 2
        assert isinstance(deep.notes, tuple)


def test_the_fingerprint_is_of_content_and_labels(tmp_path: Path) -> None:
    def of(dataset: Dataset) -> str:
        return fingerprint(dataset, decode(dataset, size=SIZE, progress=False))

    first = plant(tmp_path / "clinic", 6)
    shutil.copytree(tmp_path / "clinic", tmp_path / "moved")
    moved = scan(tmp_path / "moved")
    relabelled = Dataset(first.paths, 1 - first.targets, first.labels, first.patients, first.sources, first.splits)
    assert of(first) == of(moved) == of(first.take([5, 4, 3, 2, 1, 0]))
    assert len({of(first), of(relabelled), of(first.take(range(5)))}) == 3


# --- found again ---


def test_a_warm_start_reads_no_image(tmp_path: Path, read: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = plant(tmp_path / "clinic")
    get(dataset)
    assert len(read) == 20
    monkeypatch.setattr(cache, "bytes_of", lambda _: pytest.fail("an image was opened"))
    assert get(dataset).shape[0] == 20


def test_the_same_path_twice(tmp_path: Path) -> None:
    dataset = plant(tmp_path / "clinic", 4).take([1, 1, 0])
    assert np.array_equal(get(dataset)[:], expected(dataset))


@pytest.mark.parametrize("what", ["time", "length"])
def test_a_changed_image_is_decoded_anew(tmp_path: Path, what: str) -> None:
    dataset = plant(tmp_path / "clinic", 4)
    first = get(dataset)[:]
    Image.fromarray(np.zeros((48, 56), np.uint8)).save(dataset.paths[0])
    if what == "length":
        os.utime(dataset.paths[0], (1e9, 1e9))
    again = get(dataset)[:]
    assert again[0].max() == 0
    assert np.array_equal(again[1:], first[1:])


def test_names_that_are_not_utf8(tmp_path: Path, read: list[Any]) -> None:
    dataset = plant(tmp_path / "clinic", 2)
    strange = os.fsdecode(os.fsencode(tmp_path / "clinic" / "NORMAL") + b"/M\xfcller.png")
    try:
        os.rename(dataset.paths[0], strange)
    except OSError:
        pytest.skip("this file system takes UTF-8 only")
    for _ in range(2):
        assert get(scan(tmp_path / "clinic")).shape[0] == 2
    assert len(read) == 2


# --- images that cannot be read ---


def test_unreadable_images_are_named_together(tmp_path: Path) -> None:
    dataset = plant(tmp_path / "clinic", 6)
    Path(dataset.paths[0]).write_bytes(b"")
    Path(dataset.paths[2]).write_bytes(Path(dataset.paths[2]).read_bytes()[:100])
    os.unlink(dataset.paths[4])
    for _ in range(2):
        with pytest.raises(ImageError) as raised:
            get(dataset)
        lines = str(raised.value).splitlines()
        assert lines[0] == "3 of 6 images cannot be read:"
        assert lines[1] == f"{dataset.paths[0]}: it is empty"
        assert lines[2].startswith(f"{dataset.paths[2]}: it is cut short")
        assert lines[3] == f"{dataset.paths[4]}: no such file"
        decoded = decode(dataset, size=SIZE, progress=False)
        assert [bool(facts.error) for facts in decoded.facts] == [True, False, True, False, True, False]
        assert np.array_equal(decoded.images[[1, 3, 5]], expected(dataset.take([1, 3, 5])))
        assert not decoded.images[0].any()


def test_a_long_list_of_unreadable_images_is_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "_LISTED", 2)
    dataset = plant(tmp_path / "clinic", 5)
    for path in dataset.paths:
        Path(path).write_bytes(b"no image")
    message = r"^5 of 5 images cannot be read:\n.*\n.*\n… and 3 more; cxrlib audit names all$"
    with pytest.raises(ImageError, match=message):
        get(dataset)


def test_a_repaired_image_is_read(tmp_path: Path) -> None:
    dataset = plant(tmp_path / "clinic", 2)
    good = Path(dataset.paths[0]).read_bytes()
    Path(dataset.paths[0]).write_bytes(b"no image")
    assert decode(dataset, size=SIZE, progress=False).facts[0].error
    Path(dataset.paths[0]).write_bytes(good)
    assert get(dataset).shape[0] == 2


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_pipe_does_not_hang(tmp_path: Path) -> None:
    dataset = plant(tmp_path / "clinic", 2)
    os.unlink(dataset.paths[0])
    os.mkfifo(dataset.paths[0])
    assert "regular file" in decode(dataset, size=SIZE, progress=False).facts[0].error


def test_a_missing_library_stops_at_once(tmp_path: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = plant(tmp_path / "clinic")

    def fail(*_: Any, **__: Any) -> None:
        raise ImportError('DICOM needs pydicom: pip install "cxrlib[dicom]"')

    with monkeypatch.context() as patch:
        patch.setattr(images, "read", fail)
        with pytest.raises(ImportError, match=r"cxrlib\[dicom\]"):
            get(dataset)
    assert not list(place.glob("*.*"))
    assert np.array_equal(get(dataset)[:], expected(dataset))


# --- many at once ---


def fill(folder: str, barrier: Any, results: Any) -> None:
    decoded = []
    true_read = images.read

    def count(source: Any, **options: Any) -> Any:
        decoded.append(source)
        return true_read(source, **options)

    images.read = count  # type: ignore[assignment]
    dataset = scan(folder)
    barrier.wait()
    results.put((int(get(dataset)[:].sum()), len(decoded)))


def test_processes_at_once_decode_every_image_once(tmp_path: Path) -> None:
    dataset = plant(tmp_path / "clinic", 60)
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    barrier, results = context.Barrier(3), context.Queue()
    arguments = (str(tmp_path / "clinic"), barrier, results)
    workers = [context.Process(target=fill, args=arguments) for _ in range(3)]
    for worker in workers:
        worker.start()
    found = [results.get(timeout=60) for _ in workers]
    for worker in workers:
        worker.join()
    assert {total for total, _ in found} == {int(expected(dataset).sum())}
    assert sorted(n for _, n in found) == [0, 0, 60]


def test_threads_at_once(tmp_path: Path, read: list[Any]) -> None:
    dataset = plant(tmp_path / "clinic", 40)
    found: list[int] = []
    threads = [threading.Thread(target=lambda: found.append(int(get(dataset)[:].sum()))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(read) == 40
    assert found == [int(expected(dataset).sum())] * 4


def test_whoever_waits_says_so(tmp_path: Path, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dataset = plant(tmp_path / "clinic", 2)
    place.mkdir(parents=True)
    with filelock.FileLock(place / "lock"):
        thread = threading.Thread(target=lambda: get(dataset, progress=True))
        thread.start()
        thread.join(0.3)
        assert thread.is_alive()
    thread.join()
    assert "waiting for another process that decodes images\n" in capsys.readouterr().err


# --- killed and damaged ---

VICTIM = """
import os, sys
from cxrlib.data import cache
from cxrlib.data.scan import scan
steps = int(sys.argv[2])
def die(name, true):
    def call(*arguments, **options):
        global steps
        steps -= 1
        if steps < 0:
            os.kill(os.getpid(), 9)
        return true(*arguments, **options)
    return call
cache._read = die("read", cache._read)
for name in ("fsync", "replace"):
    setattr(os, name, die(name, getattr(os, name)))
cache.decode(scan(sys.argv[1]), size=32, progress=False)
"""


@pytest.mark.skipif(os.name != "posix", reason="no kill -9 here")
def test_killed_at_any_step_the_next_run_has_everything(tmp_path: Path, place: Path, read: list[Any]) -> None:
    dataset = plant(tmp_path / "clinic", 16)
    whole = expected(dataset)
    codes = Counter[int]()
    for steps in (0, 9, 16, 17, 18, 99):  # at the first image, among them, before the flush and each renaming, never
        command = [sys.executable, "-c", VICTIM, str(tmp_path / "clinic"), str(steps)]
        run = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False)
        codes[run.returncode] += 1
        read.clear()
        assert np.array_equal(get(dataset)[:], whole)
        assert len(read) == (0 if steps == 99 else 16)  # what was not complete was not used
        assert sorted(file.suffix for file in place.iterdir()) == ["", ".json", ".npy"]
        shutil.rmtree(place)
    assert codes == {0: 1, -signal.SIGKILL: 5}


@pytest.mark.parametrize("how", ["gone", "cut", "empty", "rubbish"])
@pytest.mark.parametrize("which", [".npy", ".json"])
def test_a_damaged_cache_heals(tmp_path: Path, place: Path, which: str, how: str) -> None:
    dataset = plant(tmp_path / "clinic")
    whole = get(dataset)[:]
    [file] = place.glob(f"*{which}")
    if how == "gone":
        file.unlink()
    else:
        file.write_bytes({"cut": file.read_bytes()[:-1], "empty": b"", "rubbish": b"rubbish" * 1000}[how])
    for _ in range(2):
        assert np.array_equal(get(dataset)[:], whole)
    assert len(arrays(place)) == 1


def test_facts_of_another_form_are_not_used(tmp_path: Path, place: Path) -> None:
    dataset = plant(tmp_path / "clinic", 2)
    get(dataset)
    [file] = place.glob("*.json")
    for content in ("[]", "{}", json.dumps({**json.loads(file.read_text()), "digest": ["one"]})):
        file.write_text(content)
        assert np.array_equal(get(dataset)[:], expected(dataset))


# --- where it lies ---


def test_where_the_cache_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("CXRLIB_CACHE", str(tmp_path / "own"))
    assert cache_folder(tmp_path / "given") == tmp_path / "given"
    assert cache_folder() == tmp_path / "own"
    monkeypatch.delenv("CXRLIB_CACHE")
    assert cache_folder() == tmp_path / "xdg" / "cxrlib"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "cxrlib"


@pytest.mark.skipif(os.name != "posix", reason="POSIX permissions")
def test_nobody_else_may_look(tmp_path: Path, place: Path) -> None:
    get(plant(tmp_path / "clinic", 2))
    assert place.stat().st_mode & 0o077 == 0


def test_clean(tmp_path: Path, place: Path, read: list[Any]) -> None:
    dataset = plant(tmp_path / "clinic", 4)
    found = get(dataset)
    get(dataset, size=16)
    (place.parent / "mine.txt").write_text("keep")
    assert clean(place.parent) >= 4 * (SIZE**2 + 16**2)
    assert sorted(file.name for file in place.parent.rglob("*") if file.is_file()) == ["lock", "mine.txt"]
    assert found[0].shape == (SIZE, SIZE)  # whoever has it open keeps it
    assert clean(place.parent) == 0
    read.clear()
    get(dataset)
    assert len(read) == 4
    assert clean(tmp_path / "nowhere") == 0


def test_what_nobody_used_for_a_month_goes(tmp_path: Path, place: Path) -> None:
    old, used = plant(tmp_path / "old", 2), plant(tmp_path / "used", 2, seed=1)
    get(old)
    [array] = arrays(place)
    get(used)
    long_ago = time.time() - 40 * 86400
    for file in place.glob("*.json"):
        os.utime(file, (long_ago, long_ago))
    get(used)  # it was used again
    (place / "broken.part").touch()
    get(plant(tmp_path / "new", 2, seed=2))
    assert array not in arrays(place)
    assert len(arrays(place)) == 2
    assert not list(place.glob("*.part"))
    assert clean(days=1) == 0
    assert len(arrays(place)) == 2


def test_a_folder_that_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("CXRLIB_CACHE", str(tmp_path / "file" / "cache"))
    message = r"the cache cannot be written \(Not a directory\): free space there, or choose another .* CXRLIB_CACHE"
    with pytest.raises(OSError, match=message):
        get(plant(tmp_path / "clinic", 2))


def test_a_cache_that_may_only_be_read(tmp_path: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = plant(tmp_path / "clinic", 4)
    get(dataset.take([0, 1, 2]))

    def denied(*_: Any, **__: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(filelock.FileLock, "acquire", denied)
    monkeypatch.setattr(os, "utime", denied)
    assert get(dataset.take([0, 1, 2])).shape == (3, SIZE, SIZE)
    with pytest.raises(PermissionError, match=r"the cache cannot be written \(Permission denied\)") as raised:
        get(dataset)
    assert raised.value.filename == str(place)


def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise NotImplementedError("FileSystem does not appear to support flock")

    monkeypatch.setattr(filelock.FileLock, "acquire", fail)
    with pytest.raises(OSError, match=r"cannot be written \(FileSystem .*choose another folder with CXRLIB_CACHE"):
        get(plant(tmp_path / "clinic", 2))


def test_too_small_a_disk_is_said_before_it_is_filled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = plant(tmp_path / "clinic", 4)
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 4000))  # type: ignore[attr-defined]
    with pytest.raises(OSError, match=r"it needs 0.0 GB, and 0.0 GB are free\): free space there, or") as raised:
        get(dataset)
    assert raised.value.errno == errno.ENOSPC


def test_a_disk_that_fills_up_leaves_no_rubbish(
    tmp_path: Path, place: Path, small_files: Callable[[int], None]
) -> None:
    dataset = plant(tmp_path / "clinic", 60)
    small_files(40 * SIZE**2)
    with pytest.raises(OSError, match=r"the cache cannot be written .*too large"):
        get(dataset)
    assert not list(place.glob("*.*"))
    small_files(10**9)
    assert np.array_equal(get(dataset)[:], expected(dataset))


def test_a_size_that_is_not_positive(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"size must be positive. Received: size=0"):
        get(plant(tmp_path / "clinic", 2), size=0)


def test_progress_is_shown_only_when_asked_and_only_on_a_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    get(plant(tmp_path / "log"), progress=True)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    get(plant(tmp_path / "quiet"))
    assert capsys.readouterr().err == ""
    get(plant(tmp_path / "shown"), progress=True)
    assert "decoding:   0%" in capsys.readouterr().err
