"""`edit`: one call for every method of the registry."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .errors import EditbookError, unknown
from .images import as_image, fit
from .masks import latent_mask
from .methods import REGISTRY, Method, Request
from .model import Model
from .result import Edit
from .sampling import Callback, Step


def edit(
    model: Model,
    image: Image.Image | np.ndarray | str | Path | None,
    method: str | Method = "prompt-to-prompt",
    *,
    source: str = "",
    target: str,
    seed: int = 0,
    mask: Any = None,
    progress: bool = False,
    callbacks: Iterable[Callback] = (),
    **options: Any,
) -> Edit:
    """Edit a picture.

    Args:
        model: From `editbook.load`.
        image: The picture, an array (uint8 or [0, 1]), or a file; None generates the source from seed and prompt, where
            the method can.
        method: An id of `editbook.methods`, or a configured method.
        source: Prompt that describes the picture as it is; methods whose card asks for one raise without it.
        target: Prompt that describes it after the edit.
        seed: Of all random draws, 0 to 2**63 - 1.
        mask: Where the edit may act: array (height, width) in [0, 1], or a greyscale picture; any size.
        progress: Show a progress bar.
        callbacks: Get every `Step`.
        options: The method's own, e.g. `steps`, `guidance_scale`, `inversion`; see `editbook.methods[id].options()`.

    Raises:
        EditbookError: An unknown method or option, or input that the method cannot use; the message says what to do.
    """
    if isinstance(method, str):
        if method not in REGISTRY:
            raise unknown("method", method, REGISTRY)
        editor = REGISTRY[method].configured(**options)
    elif options:
        raise EditbookError("Give options either to the method object or to edit(), not to both.")
    else:
        editor = method
    if not isinstance(seed, int) or not 0 <= seed < 2**63:
        raise EditbookError(f"seed must be an integer from 0 to 2**63 - 1, got {seed!r}.")
    check_prompts(editor, source, target)
    picture = None if image is None else fit(as_image(image), model.image_size)
    area = None if mask is None else latent_mask(mask, model.random_latent(seed))
    bar = _ProgressBar() if progress else None
    request = Request(picture, source, target, seed, area, (*callbacks, *([bar] if bar else [])))
    before, start = model.nfe, time.perf_counter()
    try:
        result = editor(model, request)
    finally:
        if bar:
            bar.close()
    result.nfe = model.nfe - before
    result.seconds = time.perf_counter() - start
    result.settings = {
        "method": editor.card.id,
        "options": {name: _plain(value) for name, value in asdict(editor).items()},
        "source": source,
        "target": target,
        "seed": seed,
        "mask": mask is not None,
        "model": model.name,
        "device": str(model.device),
        "dtype": str(model.dtype).removeprefix("torch."),
        "versions": {name: version(name) for name in ("editbook", "torch", "diffusers", "transformers")},
    }
    return result


def _plain(value: Any) -> Any:
    """An option as JSON can hold it: a picture or an array is only named, as the picture to edit is."""
    if isinstance(value, Image.Image):
        return f"a picture of {value.width} x {value.height} pixels"
    if isinstance(value, np.ndarray):
        return f"an array of shape {value.shape}"
    return str(value) if isinstance(value, Path) else value


def check_prompts(editor: Method, source: str, target: str) -> None:
    """Raise an `EditbookError` if a prompt is no text, or one that the method needs is missing."""
    for name, prompt in (("source", source), ("target", target)):
        if not isinstance(prompt, str):
            raise EditbookError(f"The {name} prompt must be a string, got {prompt!r}.")
        if f"{name} prompt" in editor.card.inputs and not prompt.strip():
            wanted = "the picture as it is" if name == "source" else "the picture after the edit"
            raise EditbookError(f"{editor.card.id} needs a {name} prompt that describes {wanted}.")


class _ProgressBar:
    """One tqdm bar over all walks of an edit; its total grows when a walk begins."""

    def __init__(self) -> None:
        from tqdm.auto import tqdm

        self._bar = tqdm(total=0, unit="step", desc="editing")

    def __call__(self, step: Step) -> None:
        if step.i == 0:
            self._bar.total += step.total
        self._bar.update()

    def close(self) -> None:
        """Leave the finished bar on the screen."""
        self._bar.close()
