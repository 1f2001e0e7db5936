"""How figures look: colours, line styles, fonts, and text that fits."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which colour-blind readers can tell apart, with a line style each for grey prints.
BLUE, ORANGE, GREEN, PURPLE, SKY, BROWN = "#0072B2", "#D55E00", "#009E73", "#AA4488", "#56B4E9", "#8C6D1F"
GREY = "#5F6368"
COLOURS = (BLUE, ORANGE, GREEN, PURPLE, SKY, BROWN)
LINES = ("-", "--", "-.", (0, (1, 1)), (0, (5, 1, 1, 1, 1, 1)), (0, (8, 2)))
MARKERS = ("o", "s", "D", "^", "v", "P")
_STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E3E5E8",
    "legend.frameon": False,
    "legend.fontsize": 9,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "lines.linewidth": 1.8,
}


@contextmanager
def figure(width: float, height: float) -> Iterator[Figure]:
    """Make an empty figure in this style.

    Args:
        width: In inches.
        height: In inches.

    Yields:
        The figure; what is drawn on it inside the context has the style.

    Raises:
        ImportError: If matplotlib is missing.
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('figures need matplotlib: pip install "cxrlib[train]"') from error
    style: dict[Any, Any] = {**matplotlib.rcParamsDefault, **_STYLE}
    del style["backend"]
    with matplotlib.rc_context(style):
        made = Figure(figsize=(width, height), layout="constrained")
        made.get_layout_engine().set(h_pad=0.08, w_pad=0.08)  # type: ignore[union-attr,call-arg]
        yield made


def short(text: str, width: int = 34) -> str:
    """Shorten a text in its middle.

    Args:
        text: The text.
        width: Most characters.

    Returns:
        The text, or its beginning and end.
    """
    return text if len(text) <= width else f"{text[: width // 2 - 1]}…{text[-(width - width // 2) :]}"


def wrap(text: str, width: int) -> str:
    """Break a text into lines, after spaces, hyphens, slashes and underscores where possible.

    Args:
        text: The text.
        width: Most characters in a line.

    Returns:
        The lines.
    """
    lines = [""]
    for word in re.findall(rf"[^\s_/-]{{1,{width}}}[\s_/-]*|[\s_/-]+", text):
        if lines[-1] and len((lines[-1] + word).rstrip()) > width:
            lines.append("")
        lines[-1] += word
    return "\n".join(line.strip() for line in lines)
