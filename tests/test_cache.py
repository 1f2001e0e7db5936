"""Films are decoded once and found again, whatever stops, shares, moves or damages the cache."""

from __future__ import annotations

import errno
import functools
import multiprocessing
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cxrlib.data import cache
from cxrlib.data import scan as data
from cxrlib.data.cache import clean, decode, fingerprint, open_cache
from cxrlib.data.hf import cache_folder
from cxrlib.data.scan import Dataset
from cxrlib.images import decode as images
from cxrlib.images.sources import ImageError

ROOT = Path(__file__).parents[1]
SIZE = 32


def plant(folder: Path, n: int = 20, *, seed: int = 0, size: int = 48, old: bool = True) -> Dataset:
    """Different pictures of noise, in two classes; written long ago unless told otherwise."""
    draw = np.random.default_rng(seed)
    for i in range(n):
        path = folder / ("NORMAL", "PNEUMONIA")[i % 2] / f"{i:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 256, (size, size + 8), np.uint8)).save(path)
        if old:
            os.utime(path, (1e9, 1e9 + i))
    return data.scan(folder)


def expected(dataset: Dataset, size: int = SIZE) -> np.ndarray:
    return np.stack(
        [np.rint(images.fit(images.read(path), size)[..., 0] * 255).astype(np.uint8) for path in dataset.paths]
    )


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What films are decoded."""
    seen: list[Any] = []
    true_read = images.read

    def count(source: Any, **options: Any) -> images.Film:
        seen.append(source)
        return true_read(source, **options)

    monkeypatch.setattr(images, "read", count)
    return seen


def get(dataset: Dataset, place: Path, **options: Any) -> cache.Films:
    return open_cache(dataset, size=SIZE, folder=place, progress=False, **options)


def store(place: Path) -> Path:
    return next(place.glob("films-*-32"))


# --- what it holds ---


def test_films_are_what_the_decoder_gives_in_the_order_of_the_data_set(tmp_path: Path, place: Path) -> None:
    dataset = plant(tmp_path / "films")
    films = get(dataset, place)
    assert films.shape == (20, SIZE, SIZE)
    assert len(films) == 20
    assert films.dtype == np.uint8
    assert np.array_equal(np.asarray(films), expected(dataset))
    shuffled = dataset.take(np.random.default_rng(0).permutation(20))
    assert np.array_equal(get(shuffled, place)[:], expected(shuffled))


def test_every_kind_of_index(tmp_path: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "_SHARD_BYTES", 6 * SIZE**2)  # rows over several shards
    dataset = plant(tmp_path / "films")
    films, whole = get(dataset, place), expected(dataset)
    assert len(list(store(place).glob("*.shard"))) == 4
    mask = np.arange(20) % 3 == 0
    for index in (3, -1, np.int64(7), slice(None), slice(15, 2, -3), [4, 4, 0], np.array([19, 0, 7]), mask, []):
        assert np.array_equal(films[index], whole[index]), index
    assert np.asarray(films, np.float32).dtype == np.float32
    assert not films[3].flags.writeable
    with pytest.raises(IndexError):
        films[20]
    with pytest.raises(ValueError, match="without a copy"):
        np.array(films, copy=False)


def test_sizes_and_decoder_versions_do_not_mix(tmp_path: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = plant(tmp_path / "films", 4)
    get(dataset, place)
    assert open_cache(dataset, size=16, folder=place, progress=False).shape == (4, 16, 16)
    monkeypatch.setattr(images, "DECODER", 99)
    monkeypatch.setattr(images, "fit", lambda film, size: np.ones((size, size, 1), np.float32))
    assert get(dataset, place)[:].min() == 255


def test_an_empty_data_set(tmp_path: Path, place: Path) -> None:
    films = get(plant(tmp_path / "films", 2).take([]), place)
    assert films[:].shape == (0, SIZE, SIZE)


def test_facts(tmp_path: Path, place: Path) -> None:
    dataset = plant(tmp_path / "films", 2)
    Image.fromarray(np.full((50, 40), 30000, np.uint16)).save(dataset.paths[0])
    Image.new("RGB", (60, 50), (255, 0, 0)).save(dataset.paths[1])
    for _ in range(2):
        deep, red = decode(dataset, size=SIZE, folder=place, progress=False).facts
        assert (deep.height, deep.width, deep.white, deep.colour, deep.view, deep.error) == (50, 40, 65535, 0, None, "")
        assert (red.height, red.width, red.white, red.colour) == (50, 60, 255, 1)
        assert len({deep.digest, red.digest}) == 2


def test_the_fingerprint_is_of_content_and_labels(tmp_path: Path, place: Path) -> None:
    def of(dataset: Dataset) -> str:
        return fingerprint(dataset, decode(dataset, size=SIZE, folder=place, progress=False))

    first = plant(tmp_path / "films", 6)
    shutil.copytree(tmp_path / "films", tmp_path / "moved")
    moved = data.scan(tmp_path / "moved")
    relabelled = Dataset(first.paths, 1 - first.targets, first.labels, first.patients, first.sources, first.splits)
    assert of(first) == of(moved) == of(first.take([5, 4, 3, 2, 1, 0]))
    assert len({of(first), of(relabelled), of(first.take(range(5)))}) == 3


# --- found again ---


def test_a_warm_start_reads_no_film(
    tmp_path: Path, place: Path, read: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = plant(tmp_path / "films")
    get(dataset, place)
    assert len(read) == 20
    monkeypatch.setattr(cache._Store, "_read", lambda *_: pytest.fail("a film was opened"))
    films = get(dataset, place)
    assert len(read) == 20
    assert films.shape[0] == 20


def test_only_what_is_new_is_decoded(tmp_path: Path, place: Path, read: list[Any]) -> None:
    dataset = plant(tmp_path / "films")
    get(dataset.take(range(5)), place)
    get(dataset, place)
    assert len(read) == 20


def test_a_moved_or_copied_film_is_known_by_its_content(tmp_path: Path, place: Path, read: list[Any]) -> None:
    dataset = plant(tmp_path / "films")
    get(dataset, place)
    shutil.copytree(tmp_path / "films", tmp_path / "moved")
    moved = data.scan(tmp_path / "moved")
    assert np.array_equal(get(moved, place)[:], expected(dataset))
    assert len(read) == 20 + 20  # those of `expected`


def test_copies_within_a_data_set_take_one_row(tmp_path: Path, place: Path) -> None:
    dataset = plant(tmp_path / "films", 4)
    shutil.copy(dataset.paths[0], tmp_path / "films" / "PNEUMONIA" / "copy.png")
    dataset = data.scan(tmp_path / "films")
    assert np.array_equal(get(dataset, place)[:], expected(dataset))
    [shard] = store(place).glob("*.shard")
    assert shard.stat().st_size == 4 * SIZE**2


def test_the_same_path_twice(tmp_path: Path, place: Path) -> None:
    dataset = plant(tmp_path / "films", 4).take([1, 1, 0])
    assert np.array_equal(get(dataset, place)[:], expected(dataset))


@pytest.mark.parametrize("what", ["time", "length"])
def test_a_changed_film_is_decoded_anew(tmp_path: Path, place: Path, what: str) -> None:
    dataset = plant(tmp_path / "films", 4)
    first = get(dataset, place)[:]
    Image.fromarray(np.zeros((48, 56), np.uint8)).save(dataset.paths[0])
    if what == "length":
        os.utime(dataset.paths[0], (1e9, 1e9))
    again = get(dataset, place)[:]
    assert again[0].max() == 0
    assert np.array_equal(again[1:], first[1:])


def test_a_film_that_was_just_written_is_not_judged_by_its_time(tmp_path: Path, place: Path) -> None:
    path = tmp_path / "films" / "NORMAL" / "a.bmp"
    path.parent.mkdir(parents=True)
    dataset = Dataset((str(path),), np.array([0]), ("NORMAL", "PNEUMONIA"), (None,), ("x",), (None,))
    now = time.time()
    for level in (10, 200):  # same length, same time
        Image.new("L", (8, 8), level).save(path)
        os.utime(path, (now, now))
        assert get(dataset, place)[0].max() == level


def test_names_that_are_no_utf8(tmp_path: Path, place: Path, read: list[Any]) -> None:
    dataset = plant(tmp_path / "films", 2)
    strange = os.fsdecode(os.fsencode(tmp_path / "films" / "NORMAL") + b"/M\xfcller.png")
    try:
        os.rename(dataset.paths[0], strange)
    except OSError:
        pytest.skip("this file system takes UTF-8 only")
    for _ in range(2):
        assert get(data.scan(tmp_path / "films"), place).shape[0] == 2
    assert len(read) == 2


# --- films that cannot be read ---


def test_unreadable_films_are_named_together(tmp_path: Path, place: Path) -> None:
    dataset = plant(tmp_path / "films", 6)
    Path(dataset.paths[0]).write_bytes(b"")
    Path(dataset.paths[2]).write_bytes(Path(dataset.paths[2]).read_bytes()[:100])
    os.unlink(dataset.paths[4])
    with pytest.raises(ImageError) as raised:
        get(dataset, place)
    lines = str(raised.value).splitlines()
    assert lines[0] == "3 of 6 films cannot be read:"
    assert lines[1] == f"{dataset.paths[0]}: it is empty"
    assert lines[2].startswith(f"{dataset.paths[2]}: it is damaged")
    assert lines[3] == f"{dataset.paths[4]}: No such file or directory"
    decoded = decode(dataset, size=SIZE, folder=place, progress=False)
    assert [bool(facts.error) for facts in decoded.facts] == [True, False, True, False, True, False]
    assert np.array_equal(decoded.films[[1, 3, 5]], expected(dataset.take([1, 3, 5])))
    for index in (0, [1, 2]):
        with pytest.raises(ImageError, match="this film cannot be read"):
            decoded.films[index]


def test_a_long_list_of_unreadable_films_is_cut(tmp_path: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "_LISTED", 2)
    dataset = plant(tmp_path / "films", 5)
    for path in dataset.paths:
        Path(path).write_bytes(b"no film")
    with pytest.raises(
        ImageError, match=r"^5 of 5 films cannot be read:\n.*\n.*\n… and 3 more; cxrlib audit names all$"
    ):
        get(dataset, place)


def test_a_repaired_film_is_read(tmp_path: Path, place: Path) -> None:
    dataset = plant(tmp_path / "films", 2)
    good = Path(dataset.paths[0]).read_bytes()
    Path(dataset.paths[0]).write_bytes(b"no film")
    assert decode(dataset, size=SIZE, folder=place, progress=False).facts[0].error
    Path(dataset.paths[0]).write_bytes(good)
    assert get(dataset, place).shape[0] == 2


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_pipe_does_not_hang(tmp_path: Path, place: Path) -> None:
    dataset = plant(tmp_path / "films", 2)
    os.unlink(dataset.paths[0])
    os.mkfifo(dataset.paths[0])
    assert decode(dataset, size=SIZE, folder=place, progress=False).facts[0].error == "it is no regular file"


def test_a_missing_library_stops_at_once_and_keeps_what_is_done(
    tmp_path: Path, place: Path, monkeypatch: pytest.MonkeyPatch, read: list[Any]
) -> None:
    dataset = plant(tmp_path / "films")
    fake = images.read

    def read_or_fail(source: Any, **options: Any) -> images.Film:
        if source == Path(dataset.paths[10]).read_bytes():
            raise ImportError('DICOM needs pydicom: pip install "cxrlib[dicom]"')
        return fake(source, **options)

    with monkeypatch.context() as patch:
        patch.setattr(images, "read", read_or_fail)
        with pytest.raises(ImportError, match=r"cxrlib\[dicom\]"):
            get(dataset, place, workers=1)
    read.clear()
    get(dataset, place)
    assert len(read) == 12  # eight films make a task


# --- many at once ---


def fill(folder: str, place: str, barrier: Any, results: Any) -> None:
    dataset = data.scan(folder)
    barrier.wait()
    results.put(int(get(dataset, Path(place))[:].sum()))


def test_processes_at_once_decode_every_film_once(tmp_path: Path, place: Path) -> None:
    dataset = plant(tmp_path / "films", 60)
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    barrier, results = context.Barrier(3), context.Queue()
    workers = [
        context.Process(target=fill, args=(str(tmp_path / "films"), str(place), barrier, results)) for _ in range(3)
    ]
    for worker in workers:
        worker.start()
    sums = [results.get(timeout=60) for _ in workers]
    for worker in workers:
        worker.join()
    assert sums == [int(expected(dataset).sum())] * 3
    assert sum(shard.stat().st_size for shard in store(place).glob("*.shard")) == 60 * SIZE**2


def test_threads_at_once(tmp_path: Path, place: Path, read: list[Any]) -> None:
    dataset = plant(tmp_path / "films", 40)
    found: list[int] = []
    threads = [threading.Thread(target=lambda: found.append(int(get(dataset, place)[:].sum()))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(read) == 40
    assert found == [int(expected(dataset).sum())] * 4


def test_without_locks_nothing_breaks(tmp_path: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fcntl", None)
    dataset = plant(tmp_path / "films", 40)
    found: list[int] = []
    threads = [threading.Thread(target=lambda: found.append(int(get(dataset, place)[:].sum()))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [int(expected(dataset).sum())] * 4


def test_who_waits_says_so(tmp_path: Path, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fcntl = pytest.importorskip("fcntl")
    dataset = plant(tmp_path / "films", 2)
    get(dataset.take([0]), place)
    with (store(place) / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        thread = threading.Thread(target=lambda: open_cache(dataset, size=SIZE, folder=place))
        thread.start()
        thread.join(0.3)
        assert thread.is_alive()
        fcntl.flock(lock, fcntl.LOCK_UN)
    thread.join()
    assert "waiting for another process that fills the cache\n" in capsys.readouterr().err


# --- killed and damaged ---

VICTIM = """
import os, sys
from pathlib import Path
from cxrlib.data import cache, scan as data
cache._SHARD_BYTES = 5 * 32**2
steps = int(sys.argv[3])
def die(name, true):
    def call(*arguments, **options):
        global steps
        steps -= 1
        if steps < 0:
            os.kill(os.getpid(), 9)
        return true(*arguments, **options)
    return call
for owner, name in ((os, "fsync"), (os, "replace"), (cache._Shard, "append"), (cache.sqlite3, "connect")):
    setattr(owner, name, die(name, getattr(owner, name)))
cache.open_cache(data.scan(sys.argv[1]), size=32, folder=sys.argv[2], workers=1, progress=False)
"""


@pytest.mark.skipif(os.name != "posix", reason="no kill -9 here")
def test_killed_at_any_step_the_next_run_goes_on(tmp_path: Path, place: Path, read: list[Any]) -> None:
    dataset = plant(tmp_path / "films", 16)
    whole = expected(dataset)
    read.clear()
    codes, decoded = Counter[int](), []
    for steps in (0, 6, 11, 15, 21, 99):
        run = subprocess.run(
            [sys.executable, "-c", VICTIM, str(tmp_path / "films"), str(place), str(steps)],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            check=False,
        )
        codes[run.returncode] += 1
        assert np.array_equal(get(dataset, place)[:], whole)
        assert not list(store(place).glob("*.part"))
        assert sum(shard.stat().st_size for shard in store(place).glob("*.shard")) == 16 * SIZE**2
        decoded.append(len(read))
        read.clear()
        shutil.rmtree(place)
    assert set(codes) == {0, -signal.SIGKILL}
    assert max(decoded) == 16
    assert 0 < min(decoded[:-1]) < 16  # what was safe was kept


def damage(how: str, place: Path) -> None:
    [shard] = store(place).glob("*.shard")
    index = store(place) / "index.sqlite3"
    if how == "shard gone":
        shard.unlink()
    elif how == "shard cut":
        os.truncate(shard, shard.stat().st_size - 1)
    elif how == "index gone":
        index.unlink()
    elif how == "index is rubbish":
        index.write_bytes(b"rubbish" * 1000)
    elif how == "index cut":
        os.truncate(index, index.stat().st_size // 2)
    elif how == "index overwritten":
        content = index.read_bytes()
        index.write_bytes(content[:4096] + bytes(len(content) - 4096))


@pytest.mark.parametrize(
    "how", ["shard gone", "shard cut", "index gone", "index is rubbish", "index cut", "index overwritten"]
)
def test_a_damaged_cache_heals(tmp_path: Path, place: Path, how: str) -> None:
    dataset = plant(tmp_path / "films")
    whole = get(dataset, place)[:]
    damage(how, place)
    assert np.array_equal(get(dataset, place)[:], whole)
    assert np.array_equal(get(dataset, place)[:], whole)
    assert sum(shard.stat().st_size for shard in store(place).glob("*.shard")) == 20 * SIZE**2 + (
        how == "shard cut"
    ) * (SIZE**2 - 1)


@pytest.mark.parametrize("step", ["_find", "_open"])
def test_a_cache_that_is_cleaned_again_and_again_while_it_is_in_use(
    tmp_path: Path, place: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    dataset = plant(tmp_path / "films", 4)
    get(dataset, place)
    true_step, cleaners = getattr(cache._Store, step), []

    def clean_first(self: cache._Store, *arguments: Any) -> Any:
        cleaners.append(threading.Thread(target=clean, args=(place,)))
        cleaners[-1].start()
        cleaners[-1].join(0.2)  # who fills the cache makes it wait
        return true_step(self, *arguments)

    monkeypatch.setattr(cache._Store, step, clean_first)
    assert np.array_equal(get(dataset, place)[:], expected(dataset))
    for cleaner in cleaners:
        cleaner.join()
    assert len(cleaners) > 1


class Failing(sqlite3.Connection):
    """An index that takes no entry, so many times."""

    times = 0

    def executemany(self, *arguments: Any) -> sqlite3.Cursor:
        if Failing.times:
            Failing.times -= 1
            raise sqlite3.OperationalError("disk I/O error")
        return super().executemany(*arguments)


def test_an_index_that_fails_once_is_tried_again(
    tmp_path: Path, place: Path, read: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = plant(tmp_path / "films", 4)
    monkeypatch.setattr(cache.sqlite3, "connect", functools.partial(sqlite3.connect, factory=Failing))
    monkeypatch.setattr(Failing, "times", 1)
    monkeypatch.setattr(cache, "_SHARD_BYTES", 2 * SIZE**2)
    films = get(dataset, place)
    assert len(read) == 4 + 2  # the first two were kept
    assert np.array_equal(films[:], expected(dataset))


def test_an_index_that_fails_is_named(tmp_path: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = plant(tmp_path / "films", 4)
    with monkeypatch.context() as patch:
        patch.setattr(cache.sqlite3, "connect", functools.partial(sqlite3.connect, factory=Failing))
        patch.setattr(Failing, "times", 99)
        with pytest.raises(
            OSError,
            match=r"the cache cannot be written \(disk I/O error\); choose another with folder= or CXRLIB_CACHE",
        ) as raised:
            get(dataset, place)
    assert (raised.value.errno, raised.value.filename) == (errno.EIO, str(store(place)))
    assert np.array_equal(get(dataset, place)[:], expected(dataset))
    assert len(list(store(place).glob("*.shard*"))) == 1  # what it did not know of is gone


def test_a_busy_index_is_no_damage(tmp_path: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = plant(tmp_path / "films", 2)
    get(dataset, place)

    def busy(*_: object, **__: object) -> None:
        raise sqlite3.OperationalError("database is locked")

    monkeypatch.setattr(cache.sqlite3, "connect", busy)
    with pytest.raises(OSError, match=r"the cache cannot be written \(database is locked\)"):
        get(dataset, place)
    assert list(store(place).glob("*.shard"))


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
    get(plant(tmp_path / "films", 2), place)
    assert store(place).stat().st_mode & 0o077 == 0


def test_clean(tmp_path: Path, place: Path, read: list[Any]) -> None:
    dataset = plant(tmp_path / "films", 4)
    films = get(dataset, place)
    open_cache(dataset, size=16, folder=place, progress=False)
    (place / "mine.txt").write_text("keep")
    freed = clean(place)
    assert freed >= 4 * (SIZE**2 + 16**2)
    assert sorted(file.name for file in place.rglob("*") if file.is_file()) == ["lock", "lock", "mine.txt"]
    assert films[0].shape == (SIZE, SIZE)  # who has it open keeps it
    assert clean(place) == 0
    read.clear()
    get(dataset, place)
    assert len(read) == 4
    assert clean(tmp_path / "nowhere") == 0


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(
        OSError, match=r"the cache folder cannot be made \(.*\); choose another with folder= or CXRLIB_CACHE"
    ):
        get(plant(tmp_path / "films", 2), tmp_path / "file" / "cache")


@pytest.mark.parametrize(
    "mode", ["a", "wb"]
)  # of the lock, as in a shared cache; of a shard, as in one's own that was made read-only
def test_a_cache_that_may_only_be_read(tmp_path: Path, place: Path, monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    dataset, true_open = plant(tmp_path / "films", 4), Path.open

    def denied(path: Path, *words: Any, **options: Any) -> Any:
        if words == (mode,):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return true_open(path, *words, **options)

    get(dataset.take([0, 1, 2]), place)
    monkeypatch.setattr(Path, "open", denied)
    assert get(dataset.take([0, 1, 2]), place).shape == (3, SIZE, SIZE)
    with pytest.raises(
        PermissionError,
        match=r"the cache cannot be written \(Permission denied\); choose another with folder= or CXRLIB_CACHE",
    ) as raised:
        get(dataset, place)
    assert raised.value.filename == str(store(place))


def test_only_who_holds_the_lock_writes_the_index(tmp_path: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unlocked(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cache._Store, "locked", unlocked)
    with pytest.raises(KeyboardInterrupt):
        get(plant(tmp_path / "films", 2), place)
    assert list(store(place).iterdir()) == []


def test_a_folder_whose_name_is_no_address(tmp_path: Path) -> None:
    dataset, place = plant(tmp_path / "films", 2), tmp_path / "50%25 of?mode=ro#1"
    try:
        place = Path(os.fsdecode(os.fsencode(place) + b"\xfc"))
        place.mkdir()
    except OSError:  # this file system takes UTF-8 only
        place = tmp_path / "50%25 of#1"
    get(dataset, place)
    assert (store(place) / "index.sqlite3").exists()
    assert len(os.listdir(tmp_path)) == 2


def test_too_small_a_disk_is_said_before_it_is_filled(
    tmp_path: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = plant(tmp_path / "films", 4)
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 4000))  # type: ignore[attr-defined]
    with pytest.raises(OSError, match=r"the cache needs 0.0 GB, and 0.0 GB are free; choose another folder") as raised:
        get(dataset, place)
    assert raised.value.errno == errno.ENOSPC


def test_a_disk_that_fills_up_leaves_no_rubbish(
    tmp_path: Path, place: Path, small_files: Callable[[int], None]
) -> None:
    dataset = plant(tmp_path / "films", 60)
    get(dataset.take([0]), place)
    small_files(40 * SIZE**2)
    with pytest.raises(OSError, match="too large"):
        get(dataset, place)
    assert not list(store(place).glob("*.part"))
    small_files(10**9)
    assert np.array_equal(get(dataset, place)[:], expected(dataset))


@pytest.mark.parametrize("options", [{"size": 0}, {"workers": 0}])
def test_what_may_not_be_asked(tmp_path: Path, place: Path, options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"size and workers must be positive. Received: size="):
        open_cache(plant(tmp_path / "films", 2), **{"size": SIZE, "folder": place, **options})  # type: ignore[arg-type]


def test_progress_is_shown_only_when_asked(
    tmp_path: Path, place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    dataset = plant(tmp_path / "films")
    get(dataset.take(range(10)), place)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("cxrlib.progress._TERMINAL_EVERY", 0.0)
    open_cache(dataset, size=SIZE, folder=place)
    assert "decoding: 10/10 films" in capsys.readouterr().err
