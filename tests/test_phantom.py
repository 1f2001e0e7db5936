"""The drawn chest: alike for a seed, different between seeds, plausible."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cxrlib.data.audit import audit
from cxrlib.data.scan import scan
from cxrlib.images import phantom


def test_a_seed_is_a_person() -> None:
    assert (phantom.draw(7, size=128) == phantom.draw(7, size=128)).all()
    assert np.abs(phantom.draw(7, size=128).astype(int) - phantom.draw(8, size=128)).mean() > 2


@pytest.mark.parametrize("seed", range(12))
def test_it_looks_like_a_chest(seed: int) -> None:
    image = phantom.draw(seed, size=200).astype(float)
    across = image[60:110].mean(0)  # (200,): at the height of the lungs
    middle = 70 + int(across[70:130].argmax())  # the spine, wherever the person stands
    left, right = across[20 : middle - 20].min(), across[middle + 20 : 180].min()
    assert max(left, right) + 60 < min(across[middle], image[185:, 60:140].mean())
    assert image.min() < 25  # air
    heart = image[108:122, middle + 10 : middle + 25].mean()
    assert heart > image[108:122, middle - 45 : middle - 30].mean() + 40  # lies on the image's right
    assert image[60:110, middle - 60 : middle - 25].std() > 8  # ribs and vessels


@pytest.mark.parametrize("seed", range(12))
def test_opacities_brighten_both_lungs_and_nothing_else(seed: int) -> None:
    clear, opaque = (phantom.draw(seed, opacity=opacity, size=200).astype(int) for opacity in (False, True))
    change = opaque - clear
    assert (change < 0).mean() < 0.01  # where a vessel is hidden
    assert change.max() > 40
    for lung in (change[:, :100], change[:, 100:]):
        assert 0.01 < (lung > 15).mean() < 0.4
    assert (change == 0).mean() > 0.4
    middle = 70 + int(clear[60:90].mean(0)[70:130].argmax())  # the spine
    assert change[:, middle - 3 : middle + 4].mean() < 0.3 * change.mean()


def test_no_two_persons_are_taken_for_one(tmp_path: Path) -> None:
    found = audit(scan(phantom.write(tmp_path, 40, seed=7)), progress=False)
    assert found.exact_duplicates == found.near_duplicates == ()


@pytest.mark.parametrize("size", [16, 33, 224, 700])
def test_sizes(size: int) -> None:
    image = phantom.draw(0, size=size)
    assert image.shape == (size, size)
    assert image.dtype == np.uint8
    small = np.asarray(Image.fromarray(image).resize((16, 16), Image.Resampling.BOX), int)
    assert np.abs(small - phantom.draw(0, size=16)).mean() < 16


def test_too_small() -> None:
    with pytest.raises(ValueError, match=r"size must be at least 16\. Received: size=15"):
        phantom.draw(size=15)


def test_write(tmp_path: Path) -> None:
    folder = phantom.write(tmp_path / "images", 2, seed=5, size=64)
    paths = sorted(folder.glob("*/*.png"))
    assert [path.relative_to(folder).as_posix() for path in paths] == [
        *("NORMAL/phantom00005.png", "NORMAL/phantom00006.png"),
        *("PNEUMONIA/phantom00007.png", "PNEUMONIA/phantom00008.png"),
    ]
    with Image.open(paths[0]) as clear, Image.open(paths[3]) as opaque:
        assert (np.asarray(clear) == phantom.draw(5, size=64)).all()
        assert (np.asarray(opaque) == phantom.draw(8, opacity=True, size=64)).all()
    with pytest.raises(ValueError, match=r"n must be at least 1\. Received: n=0"):
        phantom.write(tmp_path, 0)
