"""What tests of pages need: a browser, and a measure of how well their text can be read."""

import os
import shutil
from typing import Any

CHROMIUM = os.environ.get("CHROMIUM") or next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
# the texts whose contrast is below what WCAG 2.2 (1.4.3) asks
CONTRAST = """() => {
    const colour = (text) => { const c = text.match(/[\\d.]+/g).map(Number); return c.length > 3 ? c : [...c, 1]; };
    const over = (top, below) => below.map((c, i) => (i === 3 ? 1 : top[i] * top[3] + c * (1 - top[3])));
    const linear = (c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    const light = ([r, g, b]) => [r, g, b].map((c) => linear(c / 255))
        .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
    const ground = (element) => {
        const layers = [];
        for (let e = element; e; e = e.parentElement) layers.push(colour(getComputedStyle(e).backgroundColor));
        return layers.reverse().reduce((below, top) => over(top, below), [255, 255, 255, 1]);
    };
    const poor = [];
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    for (let node = walker.nextNode(); node; node = walker.nextNode()) {
        const e = node.parentElement, style = getComputedStyle(e);
        const seen = e.checkVisibility({ opacityProperty: true, visibilityProperty: true })
            && !e.closest(".cx-unseen, .unseen, script, style, footer");
        if (!node.data.trim() || !seen) continue;
        const below = ground(e), a = light(over(colour(style.color), below)), b = light(below);
        const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), large = parseFloat(style.fontSize) >= 24;
        if (ratio < (large ? 3 : 4.5)) poor.push(`${ratio.toFixed(2)} ${node.data.trim().slice(0, 40)}`);
    }
    return poor;
}"""


def reached_by_tab(page: Any, times: int) -> str:
    """The names of what the tabulator key reaches, one after the other."""
    page.evaluate("() => document.activeElement.blur()")
    reached = []
    for _ in range(times):
        page.keyboard.press("Tab")
        reached.append(
            page.evaluate(
                "() => { const e = document.activeElement;"
                " return e.getAttribute('aria-label') || e.innerText || e.closest('label')?.innerText || ''; }"
            )
        )
    return " | ".join(text.strip().split("\n")[0] for text in reached)


def unnamed(page: Any, within: str) -> list[str]:
    """What is in sight, can be used or seen, and has no name for a screen reader."""
    found: list[str] = page.evaluate(
        """(within) => [...document.querySelectorAll(`${within} :is(button, input, img, canvas)`)]
            .filter((e) => e.checkVisibility() && !(e.innerText || e.getAttribute("aria-label")
                || (e.matches("canvas") && e.ariaHidden)
                || e.closest("label")?.innerText || e.hasAttribute("alt"))).map((e) => e.outerHTML)""",
        within,
    )
    return found
