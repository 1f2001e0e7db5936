"""What several test files need: real films where there are any, and a bundle that costs nothing."""

import os
import signal
from pathlib import Path

import pytest
import tiny_network

signal.signal(
    signal.SIGINT, signal.default_int_handler
)  # a shell's background jobs, and what they start, would not hear it

SHARED = Path(os.environ.get("CXRLIB_SHARED", Path(__file__).parents[2] / "shared"))


@pytest.fixture(scope="session")
def shared():
    """The folder of real films."""
    if not (SHARED / "data").is_dir():
        pytest.skip(f"no real films in {SHARED}: name their folder in CXRLIB_SHARED")
    return SHARED


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """The folder of a sound bundle with two operating points and no gate: a network of five operations for films of 32 x 32 pixels."""
    points = {
        name: {"threshold": t, "sensitivity": 0.9, "specificity": 0.8, "by_source": {}}
        for name, t in (("screening", 0.3), ("balanced", 0.6))
    }
    return tiny_network.write(
        tmp_path_factory.mktemp("tiny"), tiny_network.files(operating_points=points, default_point="screening")
    )


@pytest.fixture(scope="session")
def gated(tmp_path_factory):
    """The folder of such a bundle with a gate that refuses what is blank, and nothing that the network sees."""
    return tiny_network.write(tmp_path_factory.mktemp("gated"), tiny_network.files(gate=tiny_network.tolerant_gate()))


@pytest.fixture
def small_files():
    """Sets how many bytes a file may have: a disk that fills up."""
    resource = pytest.importorskip("resource")
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    yield lambda most: resource.setrlimit(resource.RLIMIT_FSIZE, (most, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)
