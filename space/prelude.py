"""What must be set before Gradio is imported: where it puts files, no telemetry, no stubs, and how memory is shared."""

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
    """Make a folder for uploads that only this user may open, removed at exit; remove what killed processes left."""
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

# glibc gives every thread a heap of its own that no other can reuse: memory would grow by 2 MB/s with fifty visitors.
if sys.platform == "linux":
    with contextlib.suppress(AttributeError, OSError):  # another C library
        ctypes.CDLL(None).mallopt(-8, 2)  # M_ARENA_MAX

# At every import Gradio writes stubs for editors beside its own modules: half of the import's time. It writes none for
# components without a file.
_file_of = inspect.getfile


def _no_file_of(thing: Any) -> str:
    if type(thing).__name__ == "ComponentMeta":
        raise OSError("gets no stub")
    return _file_of(thing)


with mock.patch.object(inspect, "getfile", _no_file_of):
    import gradio  # noqa: F401
