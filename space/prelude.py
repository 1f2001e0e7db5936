"""What must be settled before Gradio is imported: where it puts files, that it calls nobody and writes no stubs, and how memory is shared. Import it first."""

import atexit
import contextlib
import ctypes
import inspect
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

PREFIX = "cxrlib-demo-"


def make_folder() -> Path:
    """A folder for uploads that only this user may look into; it goes with this process, and those that killed ones left behind go now."""
    for old in Path(tempfile.gettempdir()).glob(f"{PREFIX}*-*") if os.name == "posix" else ():
        try:
            os.kill(int(old.name.split("-")[2]), 0)
        except ProcessLookupError:
            shutil.rmtree(old, ignore_errors=True)
        except (ValueError, PermissionError):  # somebody else's
            continue
    folder = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-")).resolve()
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


FOLDER = make_folder()
os.environ["GRADIO_TEMP_DIR"] = str(FOLDER)  # some of Gradio's modules read it when they are imported
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"

# glibc gives threads heaps of their own, and what was freed in one serves no other: with fifty visitors memory would grow by two megabytes a second.
if sys.platform == "linux":
    with contextlib.suppress(AttributeError, OSError):  # another C library
        ctypes.CDLL(None).mallopt(-8, 2)  # M_ARENA_MAX

# At every import Gradio writes, beside its own modules, a stub for editors for each component that has a file: half of the import's time. Components without
# a file, such as those made in a notebook, it leaves alone; here none has one.
_file_of = inspect.getfile


def _no_file_of(thing: Any) -> str:
    if type(thing).__name__ == "ComponentMeta":
        raise OSError("gets no stub")
    return _file_of(thing)


with mock.patch.object(inspect, "getfile", _no_file_of):
    import gradio  # noqa: F401
