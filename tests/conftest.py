"""What several test files need: real images where there are any, small bundles, and one trained run."""

import functools
import os
import signal
from pathlib import Path

import filelock
import pytest
import tiny_network

signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background jobs would ignore

SHARED = Path(os.environ.get("CXRLIB_SHARED", Path(__file__).parents[2] / "shared"))


@pytest.fixture(scope="session")
def shared():
    """The folder of real images."""
    if not (SHARED / "data").is_dir():
        pytest.skip(f"no real images in {SHARED}: name their folder in CXRLIB_SHARED")
    return SHARED


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """The folder of a sound bundle with two operating points and no gate: five operations, images of 32 x 32 pixels."""
    points = {
        name: {"threshold": t, "sensitivity": 0.9, "specificity": 0.8, "by_source": {}}
        for name, t in (("screening", 0.3), ("balanced", 0.6))
    }
    return tiny_network.write(
        tmp_path_factory.mktemp("tiny"), tiny_network.files(operating_points=points, default_point="screening")
    )


@pytest.fixture(scope="session")
def gated(tmp_path_factory):
    """The folder of such a bundle with a gate that refuses blank images and nothing else."""
    return tiny_network.write(tmp_path_factory.mktemp("gated"), tiny_network.files(gate=tiny_network.tolerant_gate()))


def shrink_training(patch):
    """Make every training a matter of seconds: three convolutions in the place of MobileNetV2, a gate of few images."""
    keras = pytest.importorskip("keras", reason="needs the [train] extra")
    import small_backbone

    from cxrlib.network import gate_fit

    patch.setattr(keras.applications, "MobileNetV2", small_backbone.build)
    patch.setattr(gate_fit, "fit", functools.partial(gate_fit.fit, made=120))


@pytest.fixture
def small_backbone(monkeypatch):
    """Every network that is built has three convolutions in the place of MobileNetV2, and a gate of few images."""
    shrink_training(monkeypatch)


@pytest.fixture(scope="session")
def together(tmp_path_factory):
    """A folder that all processes of one test session share."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


@pytest.fixture(scope="session")
def phantoms(together):
    """A folder of 16 drawn chests without and 16 with an opacity, in class folders. Do not write into it."""
    from cxrlib.images import phantom

    folder = together / "images" / "phantoms"
    with filelock.FileLock(together / "phantoms.lock"):
        return folder if folder.is_dir() else phantom.write(folder, n=16, seed=3, size=64)


@pytest.fixture(scope="session")
def trained(phantoms, together):
    """A finished `TrainingRun` of the default recipe on `phantoms`, with a small backbone. Do not write into it."""
    pytest.importorskip("keras", reason="needs the [train] extra")
    from cxrlib import train

    home = together / "trained"
    with filelock.FileLock(together / "trained.lock"), pytest.MonkeyPatch.context() as patch:
        patch.setenv("CXRLIB_CACHE", str(home / "cache"))
        shrink_training(patch)  # what another process has trained is found finished
        return train(
            phantoms, output=home / "runs" / "first", recipe=small_recipe(), formats=("keras", "h5"), progress=False
        )


def small_recipe(name="default", **settings):
    """A recipe that takes seconds."""
    from cxrlib.config import recipe_of

    return recipe_of({"name": name, "image_size": 32, "epochs": 2, "batch_size": 8, "validation": 0.25, **settings})


@pytest.fixture
def small_files():
    """Sets how many bytes a file may have: a disk that fills up."""
    resource = pytest.importorskip("resource")
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    yield lambda most: resource.setrlimit(resource.RLIMIT_FSIZE, (most, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)
