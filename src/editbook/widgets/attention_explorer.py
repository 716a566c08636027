"""What attends to what: a figure that answers the mouse, in a live notebook and in the built page alike."""

from __future__ import annotations

import base64
import hashlib
import html
import json
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from matplotlib import colormaps
from torch.nn import functional

from ..attention import words_and_tokens
from ..errors import EditbookError, unknown
from ..images import data_address

if TYPE_CHECKING:
    from ..attention import AttentionMaps
    from ..result import Edit

ROWS = ("source", "edit")


def attention_explorer(
    edit: Edit, *, row: str = "edit", word: str | None = None, side: int = 256, frames: int = 10
) -> Any:
    """Point at the picture to see what that place attends to; choose a word, and turn the steps, to see where it acts.

    The left picture is the edit's (or the source's); under the pointer it shows one query of self-attention. The right
    one shows the map of one word in one step, scaled by its largest value over all steps, so that steps compare. The
    numbers are in the page: nothing is asked of a kernel, so the explorer works in the built book too.

    Args:
        edit: An edit that kept its maps, e.g. by Prompt-to-Prompt.
        row: Whose attention: the "source" or the "edit".
        word: The word that is shown first; None takes the first that the other prompt does not have, else the last.
        side: Pixels of each picture on the page.
        frames: How many of the steps the slider has, evenly spread from the noisiest to the last.

    Returns:
        An `IPython.display.HTML`.

    Raises:
        EditbookError: The edit kept no maps, the word is not in the prompt, or an option is out of its range.
    """
    from IPython.display import HTML

    maps = edit.attention
    if maps is None:
        raise EditbookError(
            f"An edit by {edit.settings.get('method', 'this method')} keeps no attention maps: use one that does, "
            "e.g. method='prompt-to-prompt'."
        )
    if row not in ROWS:
        raise EditbookError(f"row must be 'source' or 'edit', got {row!r}.")
    if frames < 1 or side < 32:
        raise EditbookError(f"frames must be at least 1 and side at least 32, got {frames!r} and {side!r}.")
    k = ROWS.index(row)
    if k >= len(maps.prompts):
        raise EditbookError("These maps belong to one prompt only: ask for row='source'.")
    words, steps, heat = _word_maps(maps, k, frames)
    queries = _queries(maps, k)
    picture = edit.image if row == "edit" else (edit.reconstruction or edit.source_image)
    others = {text.lower() for prompt in maps.prompts[:k] + maps.prompts[k + 1 :] for text in prompt.split()}
    if word is None:
        word = next((text for text in words if text.lower() not in others), words[-1]) if others else words[-1]
    if word not in words:
        raise unknown(f"word (the prompt is {maps.prompts[k]!r})", word, words)
    rows, columns = queries.shape[:2]
    data = {
        "picture": data_address(picture),
        "side": side,
        "words": words,
        "start": words.index(word),
        "steps": [step + 1 for step in steps],
        "height": heat.shape[2],
        "width": heat.shape[3],
        "heat": _bytes(heat),
        "grid": [rows, columns],
        "at": [rows // 2, columns // 2],
        "queries": _bytes(queries),
        "colours": _colours(),
    }
    # In a script element the first "</" would end it, whatever stands around it.
    encoded = json.dumps(data).replace("<", "\\u003c")
    name = f"explorer-{hashlib.sha1(encoded.encode()).hexdigest()[:8]}"
    return HTML(
        _PAGE.format(
            name=name,
            side=side,
            alt=html.escape(f"the picture of {maps.prompts[k]!r}"),
            hint="point at the picture to see where that place looks",
            words="".join(f'<button type="button">{html.escape(part)}</button>' for part in words),
            last=len(steps) - 1,
            data=encoded,
            script=_SCRIPT,
        )
    )


def _word_maps(maps: AttentionMaps, row: int, frames: int) -> tuple[list[str], list[int], np.ndarray]:
    """Words, steps, and (words, steps, height, width) in [0, 1]: each word over its own largest value."""
    prompt = maps.prompts[row]
    words = words_and_tokens(maps.tokenizer, prompt)
    captured = sorted({step for site, step in maps.records if site.kind == "cross"})
    steps = [captured[k] for k in np.linspace(0, len(captured) - 1, min(frames, len(captured))).astype(int)]
    heights = sorted({site.resolution for site, _ in maps.records if site.kind == "cross"}, reverse=True)
    found = []
    for step in steps:
        layers = []
        for height in heights:
            mean = maps.mean("cross", height, [step])[row]
            chosen = torch.stack([mean[:, :, tokens].mean(-1) for _, tokens in words])
            size = (heights[0], round(heights[0] * mean.shape[1] / mean.shape[0]))
            layers.append(functional.interpolate(chosen[None], size, mode="bilinear", align_corners=False)[0])
        found.append(torch.stack(layers).mean(0))
    heat = torch.stack(found, 1)
    return [word for word, _ in words], steps, (heat / heat.amax((1, 2, 3), keepdim=True).clamp_min(1e-12)).numpy()


def _queries(maps: AttentionMaps, row: int) -> np.ndarray:
    """Self-attention of every pixel, (height, width, height, width) in [0, 1], each over its own largest value."""
    heights = sorted({site.resolution for site, _ in maps.records if site.kind == "self"}, reverse=True)
    if not heights:
        raise EditbookError(
            "This edit kept cross-attention only; capture 'self' too, as prompt-to-prompt does: "
            "Capture(kinds=('cross', 'self'))."
        )
    mean = maps.mean("self", heights[0])[row]
    own = mean.unflatten(-1, mean.shape[:2])
    return (own / own.amax((2, 3), keepdim=True).clamp_min(1e-12)).numpy()


def _bytes(values: np.ndarray) -> str:
    """Numbers in [0, 1] as base64 of one byte each."""
    return base64.b64encode((values * 255).round().astype(np.uint8).tobytes()).decode()


def _colours(count: int = 32) -> list[list[int]]:
    """The colour map of the book's heat, from 0 to 1."""
    return [[round(255 * part) for part in colour[:3]] for colour in colormaps["inferno"](np.linspace(0, 1, count))]


_PAGE = """<div id="{name}" class="attention-explorer">
<style>
#{name} .pair {{ display: flex; flex-wrap: wrap; gap: 12px }}
#{name} figure {{ margin: 0 }}
#{name} figcaption {{ font-size: 80%; max-width: {side}px; min-height: 2.6em }}
#{name} canvas {{ width: {side}px; height: {side}px; cursor: crosshair; touch-action: none }}
#{name} button {{ margin: 0 4px 4px 0; padding: 1px 7px; border: 1px solid #888; border-radius: 4px; background: none;
color: inherit; cursor: pointer }}
#{name} button[aria-pressed="true"] {{ background: #1a7f37; color: white }}
</style>
<div class="pair">
<figure><canvas class="query" tabindex="0" role="img" aria-label="{alt}; arrow keys move the pixel"></canvas>
<figcaption>{hint}</figcaption></figure>
<figure><canvas class="word" role="img" aria-label="where the chosen word acts"></canvas>
<figcaption></figcaption></figure>
</div>
<div class="words">{words}</div>
<label>step <input type="range" min="0" max="{last}" value="{last}" style="width: 50%"></label>
<script type="application/json">{data}</script>
<script>{script}(document.getElementById("{name}"))</script>
</div>"""

_SCRIPT = """((root) => {
  const data = JSON.parse(root.querySelector('script[type="application/json"]').textContent);
  const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  const heat = bytes(data.heat), queries = bytes(data.queries);
  const [rows, columns] = data.grid, buttons = [...root.querySelectorAll('button')];
  const [left, right] = root.querySelectorAll('canvas'), captions = root.querySelectorAll('figcaption');
  const slider = root.querySelector('input');
  let word = data.start, at = data.at;
  const picture = new Image();
  const paint = (canvas, values, height, width, mark) => {
    const small = document.createElement('canvas');
    small.width = width;
    small.height = height;
    const pixels = small.getContext('2d').createImageData(width, height);
    values.forEach((value, k) => {
      const colour = data.colours[Math.round(value / 255 * (data.colours.length - 1))];
      pixels.data.set([...colour, 165], 4 * k);
    });
    small.getContext('2d').putImageData(pixels, 0, 0);
    canvas.width = canvas.height = data.side;
    const draw = canvas.getContext('2d');
    draw.imageSmoothingEnabled = false;
    draw.drawImage(picture, 0, 0, data.side, data.side);
    draw.imageSmoothingEnabled = true;
    draw.drawImage(small, 0, 0, data.side, data.side);
    if (mark) {
      draw.strokeStyle = '#00e5ff';
      draw.lineWidth = 2;
      draw.strokeRect(mark[1] * data.side / width, mark[0] * data.side / height, data.side / width, data.side / height);
    }
  };
  const showQuery = () => {
    const size = rows * columns, first = (at[0] * columns + at[1]) * size;
    paint(left, queries.slice(first, first + size), rows, columns, at);
    captions[0].textContent = `self-attention of the cell in row ${at[0] + 1}, column ${at[1] + 1}: where it looks`;
  };
  const showWord = () => {
    const size = data.height * data.width, first = (word * data.steps.length + Number(slider.value)) * size;
    paint(right, heat.slice(first, first + size), data.height, data.width);
    captions[1].textContent = `\u201c${data.words[word]}\u201d in step ${data.steps[slider.value]}: where it acts`;
    buttons.forEach((button, k) => button.setAttribute('aria-pressed', k === word));
  };
  const clamp = (value, count) => Math.min(count - 1, Math.max(0, value));
  const point = (event) => {
    const box = left.getBoundingClientRect();
    at = [clamp(Math.floor((event.clientY - box.top) / box.height * rows), rows),
          clamp(Math.floor((event.clientX - box.left) / box.width * columns), columns)];
    showQuery();
  };
  left.addEventListener('pointermove', point);
  left.addEventListener('pointerdown', point);
  left.addEventListener('keydown', (event) => {
    const move = {ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1]}[event.key];
    if (!move) return;
    event.preventDefault();
    at = [clamp(at[0] + move[0], rows), clamp(at[1] + move[1], columns)];
    showQuery();
  });
  buttons.forEach((button, k) => button.addEventListener('click', () => { word = k; showWord(); }));
  slider.addEventListener('input', showWord);
  picture.onload = () => { showQuery(); showWord(); };
  picture.src = data.picture;
})"""
