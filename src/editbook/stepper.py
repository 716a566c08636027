"""A figure that the reader turns with a slider, in the built page and without a kernel."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from typing import Any

from PIL import Image

from .errors import EditbookError
from .images import data_address

_FRAME = (
    "width:{side}px;height:{side}px;image-rendering:pixelated;background-image:url({address});"
    "background-size:100% {height}%;background-position:0 {at}%"
)


def stepper(
    strips: dict[str, Sequence[Image.Image]],
    labels: Sequence[str],
    *,
    start: int = 0,
    side: int = 128,
    columns: int = 3,
) -> Any:
    """Pictures that turn together with one slider.

    Each of them is one tall picture of all its frames, of which the slider shows one. An untrusted JupyterLab takes
    the slider's script away and shows the frame of `start`.

    Args:
        strips: The frames of each picture by its name, equally many and of one size.
        labels: What is said beside the slider at each frame.
        start: The frame that is shown first.
        side: Pixels of one picture on the page.
        columns: Pictures in a row.

    Returns:
        An `IPython.display.HTML`.

    Raises:
        EditbookError: Rows of unequal length, labels that do not fit them, or a start beyond them.
    """
    from IPython.display import HTML

    if not labels or {len(frames) for frames in strips.values()} != {len(labels)}:
        raise EditbookError(f"strips must have as many frames each as there are labels, {len(labels)}.")
    if not 0 <= start < len(labels):
        raise EditbookError(f"start must be from 0 to {len(labels) - 1}, got {start!r}.")
    last = max(len(labels) - 1, 1)
    figures = []
    for name, frames in strips.items():
        style = _FRAME.format(side=side, address=_strip(frames), height=100 * len(frames), at=100 * start / last)
        figures.append(
            f'<figure style="margin:0"><div class="frame" role="img" aria-label="{html.escape(name)}" style="{style}">'
            f'</div><figcaption style="font-size:80%">{html.escape(name)}</figcaption></figure>'
        )
    turn = (
        "const box = this.closest('.stepper');"
        "box.querySelectorAll('.frame').forEach("
        f"e => e.style.backgroundPosition = '0 ' + 100 * this.value / {last} + '%');"
        "box.querySelector('output').textContent = JSON.parse(box.dataset.labels)[this.value]"
    )
    return HTML(
        f'<div class="stepper" data-labels="{html.escape(json.dumps(list(labels)))}">'
        f'<div style="display:grid;grid-template-columns:repeat({columns},max-content);gap:10px">'
        f"{''.join(figures)}</div>"
        f'<input type="range" aria-label="step" min="0" max="{len(labels) - 1}" value="{start}" style="width:60%" '
        f'oninput="{html.escape(turn)}"> <output>{html.escape(labels[start])}</output></div>'
    )


def _strip(frames: Sequence[Image.Image]) -> str:
    """All frames below each other, as the address of a PNG."""
    width, height = frames[0].size
    tall = Image.new("RGB", (width, height * len(frames)))
    for k, frame in enumerate(frames):
        if frame.size != (width, height):
            raise EditbookError(
                f"The frames of one picture must have one size, got {frame.size} and {(width, height)}."
            )
        tall.paste(frame.convert("RGB"), (0, k * height))
    return data_address(tall)
