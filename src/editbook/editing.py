"""`edit`: one call for every method of the registry."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .errors import EditbookError, unknown
from .images import as_image, fit
from .masks import find_mask, latent_mask
from .methods import REGISTRY, Method, Request
from .model import Model
from .result import Edit
from .sampling import Callback, Step

_version = cache(version)  # it parses the package's whole metadata each time


def edit(
    model: Model,
    image: Image.Image | np.ndarray | str | Path | None,
    method: str | Method = "prompt-to-prompt",
    *,
    source: str = "",
    target: str = "",
    instruction: str = "",
    seed: int = 0,
    mask: Any = None,
    mask_options: Mapping[str, Any] | None = None,
    progress: bool = False,
    callbacks: Iterable[Callback] = (),
    **options: Any,
) -> Edit:
    """Edit a picture.

    Args:
        model: From `editbook.load`.
        image: The picture, an array (uint8 or [0, 1]), or a file, scaled to the model's size; of one that is not square
            the middle is kept, with a warning. None generates the source from seed and prompt, where the method can.
        method: An id of `editbook.methods`, or a configured method.
        source: Prompt that describes the picture as it is; methods whose card asks for one raise without it.
        target: Prompt that describes it after the edit; the same holds.
        instruction: What to do, for methods that follow instructions.
        seed: Of all random draws, 0 to 2**63 - 1.
        mask: Where the edit may act: an array (height, width) in [0, 1] or a greyscale picture, of any size; or the
            name of a source of masks, such as "diffedit" or "segment:cat", see `editbook.masks.MASKS`.
        mask_options: `threshold`, `dilate`, `invert`, `blur` (see `editbook.masks.MaskShape`), and the source's own.
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
    check_inputs(editor, source=source, target=target, instruction=instruction, mask=mask)
    if model.takes_image != editor.takes_image:
        raise EditbookError(
            f"{editor.card.id} needs a model that sees the source picture, such as 'pocket-instruct-pix2pix'."
            if editor.takes_image
            else f"{editor.card.id} needs a plain text-to-image model; {model.name} also takes a picture."
        )
    if mask is None and mask_options:
        raise EditbookError("mask_options say how a mask is found or shaped: give a mask, too.")
    raw = None if image is None else as_image(image)
    picture = None if raw is None else fit(raw, model.image_size)
    bar = _ProgressBar() if progress else None
    before, start = model.nfe, time.perf_counter()
    try:
        region = None
        if mask is not None:
            known = {"source": source, "target": target, "instruction": instruction, "seed": seed}
            region = find_mask(model, picture if isinstance(mask, str) else raw, mask, mask_options, **known).mask
            if isinstance(mask, str) and not region.any():
                raise EditbookError(
                    f"The mask {mask!r} found nothing in the picture: lower its threshold, or draw one."
                )
        request = Request(
            picture,
            source,
            target,
            seed,
            None if region is None else latent_mask(region, model.random_latent(seed)),
            (*callbacks, *([bar] if bar else [])),
            region,
            instruction,
        )
        result = editor(model, request)
    finally:
        if bar:
            bar.close()
    result.nfe = model.nfe - before
    result.seconds = time.perf_counter() - start
    result.settings |= {
        "method": editor.card.id,
        "options": {name: _plain(getattr(editor, name)) for name in editor.options()},
        "source": source,
        "target": target,
        "seed": seed,
        "instruction": instruction,
        "mask": mask if isinstance(mask, str) else mask is not None,
        "mask_options": _plain(mask_options or {}),
        "model": model.name,
        "device": str(model.device),
        "dtype": str(model.dtype).removeprefix("torch."),
        "versions": {name: _version(name) for name in ("editbook", "torch", "diffusers", "transformers")},
    }
    return result


def _plain(value: Any) -> Any:
    """An option as JSON can hold it: a picture, an array or another object is only named, as the picture to edit is."""
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Image.Image):
        return f"a picture of {value.width} x {value.height} pixels"
    if isinstance(value, np.ndarray):
        return f"an array of shape {value.shape}"
    if is_dataclass(value) and not isinstance(value, type):
        return {item.name: _plain(getattr(value, item.name)) for item in fields(value)}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return str(value) if isinstance(value, Path) else f"an object of the class {type(value).__name__}"


_WANTED = {
    "source prompt": "a source prompt that describes the picture as it is",
    "target prompt": "a target prompt that describes the picture after the edit",
    "instruction": "an instruction that says what to do",
    "mask": "a mask: an array or picture that is 1 where the edit may act, or the name of a source of masks",
}


def check_inputs(editor: Method, *, source: str, target: str, instruction: str = "", mask: Any = None) -> None:
    """Raise an `EditbookError` if a text is none, or something that the method needs is missing."""
    texts = {"source prompt": source, "target prompt": target, "instruction": instruction}
    for name, text in texts.items():
        if not isinstance(text, str):
            raise EditbookError(f"The {name} must be a string, got {text!r}.")
    missing = {name for name, text in texts.items() if not text.strip()} | ({"mask"} if mask is None else set())
    for name, wanted in _WANTED.items():
        if name in editor.card.inputs and name in missing:
            raise EditbookError(f"{editor.card.id} needs {wanted}.")
    if instruction and not any(name.startswith("instruction") for name in editor.card.inputs):
        raise EditbookError(f"{editor.card.id} follows no instructions: give it prompts, not an instruction.")


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
