"""Masks by name: `mask="diffedit"`, `"attention:cat"`, `"segment:cat"` or an array, for every editor alike.

A source makes a heat map of the picture at a grid of its own; `MaskShape` makes a mask of it. Both can be asked without
an edit: `find_mask(model, image, "segment:cat").mask`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image

from ..attention import AttentionMaps, Capture, heights, tokens_of
from ..errors import EditbookError, check_options, unknown
from ..images import as_image, fit
from ..model import Model
from ..sampling import ClassifierFreeGuidance, Schedule, follow
from .blend import at_side, square_mask
from .difference import check_clamp_ratio, clamped_by_mean, noise_difference
from .shape import MaskShape


@dataclass(frozen=True)
class Subject:
    """What a mask is looked for in, and what is known about the edit.

    Args:
        image: The picture, at the model's size.
        source: Prompt that describes it; may be empty.
        target: Prompt of the result; may be empty.
        instruction: What to do; may be empty.
        seed: Of random draws.
    """

    image: Image.Image
    source: str = ""
    target: str = ""
    instruction: str = ""
    seed: int = 0


@dataclass(frozen=True)
class FoundMask:
    """A mask, and the map that it was made of.

    Args:
        mask: Where the edit may act, float32 (H, W) in [0, 1] at the model's picture size.
        heat: The source's map at its own grid, float32 (h, w) in [0, 1].
        name: The source, or "array".
    """

    mask: np.ndarray
    heat: np.ndarray
    name: str


MASKS: dict[str, type[MaskSource]] = {}
"""Every source of masks by name."""


@dataclass
class MaskSource:
    """A way to find a mask; its options are fields.

    Args:
        threshold: Above it, in [0, 1), the map is mask.
    """

    name: ClassVar[str]
    argument: ClassVar[str | None] = None
    """What stands behind the colon of the name, e.g. "a word of the source prompt"; None takes nothing."""

    threshold: float = 0.5

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        MASKS[cls.name] = cls

    def __post_init__(self) -> None:
        defaults = {item.name: item.default for item in dataclasses.fields(self)}
        check_options(f"the mask {self.name!r}", {name: getattr(self, name) for name in defaults}, defaults)

    def __call__(self, model: Model, subject: Subject, argument: str) -> np.ndarray:
        """The heat map, float32 (h, w) in [0, 1]."""
        raise NotImplementedError


@dataclass
class DiffEditMask(MaskSource):
    """DiffEdit's mask (Couairon et al. 2023): where the noise estimates under two texts differ.

    Args:
        threshold: Of the normalised difference; the paper's 0.5.
        maps: Noises that are averaged.
        strength: Noise level, as a fraction of the training timesteps in (0, 1).
        clamp_ratio: See `difference.clamped_by_mean`.
        reference: What the target prompt is compared with: the "source" prompt, the "empty" one, or "auto": the source
            prompt where there is one.
    """

    name: ClassVar[str] = "diffedit"
    maps: int = 10
    strength: float = 0.5
    clamp_ratio: float = 3.0
    reference: str = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.reference not in ("auto", "source", "empty"):
            raise unknown("reference of the mask 'diffedit'", self.reference, ("auto", "source", "empty"))
        if not 0 < self.strength < 1:
            raise EditbookError(f"strength of the mask 'diffedit' must lie between 0 and 1, got {self.strength!r}.")
        if self.maps < 1:
            raise EditbookError(f"maps of the mask 'diffedit' must be at least 1, got {self.maps!r}.")
        check_clamp_ratio(self.clamp_ratio)

    def difference(self, model: Model, subject: Subject) -> torch.Tensor:
        """The difference before it is normalised, (h, w)."""
        if not subject.target.strip():
            raise EditbookError("The mask 'diffedit' compares two prompts: give a target prompt.")
        if self.reference == "source" and not subject.source.strip():
            raise EditbookError("reference='source' of the mask 'diffedit' needs a source prompt.")
        texts = [subject.target, "" if self.reference == "empty" else subject.source]
        embeddings = model.embed(texts).repeat_interleave(self.maps, 0)
        schedule = Schedule(model.scheduler, 1)
        t = round(self.strength * model.scheduler.config.num_train_timesteps)

        def pair(z_t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            target, source = model.noise(z_t.repeat(2, 1, 1, 1), t, embeddings).chunk(2)
            return target, source

        z_0 = model.encode(subject.image)
        return noise_difference(pair, z_0, schedule.alpha(t), maps=self.maps, seed=subject.seed)

    def __call__(self, model: Model, subject: Subject, argument: str) -> np.ndarray:
        """The difference, cut and normalised."""
        return clamped_by_mean(self.difference(model, subject), self.clamp_ratio).float().cpu().numpy()


@dataclass
class AttentionMask(MaskSource):
    """Where a word of the source prompt acts while the picture is inverted: the masks of MasaCtrl (Cao et al. 2023).

    Cross-attention of the word, over heads, layers and steps, stretched to [0, 1].

    Args:
        threshold: Of the stretched map.
        steps: DDIM steps of the inversion, without guidance.
        levels: Resolutions to average, finest first; the finest of all is left out unless it is the only one.
    """

    name: ClassVar[str] = "attention"
    argument: ClassVar[str | None] = "a word of the source prompt"
    threshold: float = 0.3
    steps: int = 20
    levels: int = 1

    def maps(self, model: Model, subject: Subject) -> AttentionMaps:
        """Cross-attention of every word of the source prompt at every step of the inversion."""
        found = heights(model.unet, model.latent_shape[1])
        levels = (found[1:] or found)[: self.levels]
        if not levels:
            raise EditbookError(f"levels of the mask 'attention' must be at least 1, got {self.levels!r}.")
        capture = Capture(("cross",), levels)
        guidance = ClassifierFreeGuidance(model.embed(subject.source))
        path = Schedule(model.scheduler, self.steps).inversion()
        follow(model, model.encode(subject.image), path, guidance, attention=capture)
        return capture.maps(model.tokenizer, [subject.source])

    def __call__(self, model: Model, subject: Subject, argument: str) -> np.ndarray:
        """The word's map."""
        tokens_of(model.tokenizer, subject.source, argument)  # a word that is not there is better known now
        return self.maps(model, subject).map(argument, size=model.latent_shape[1])


def parse_name(text: str) -> tuple[str, str]:
    """A source's name and what stands behind its colon, "" if nothing.

    Raises:
        EditbookError: Unknown name, or something is missing behind the colon, or nothing should be there.
    """
    name, _, argument = (part.strip() for part in text.partition(":"))
    if name not in MASKS:
        raise unknown("mask", name, MASKS)
    wanted = MASKS[name].argument
    if wanted and not argument:
        raise EditbookError(f'The mask {name!r} needs {wanted}: write it as mask="{name}:...".')
    if argument and not wanted:
        raise EditbookError(f"The mask {name!r} takes nothing behind a colon, got {argument!r}.")
    return name, argument


def mask_source(name: str, options: Mapping[str, Any]) -> tuple[MaskSource | None, MaskShape]:
    """The source with its options, and the shape that its map is given; None for "array".

    Args:
        name: One of `MASKS`, or "array".
        options: Options of either, mixed.

    Raises:
        EditbookError: An option of neither, or a wrong value.
    """
    shapes = {item.name for item in dataclasses.fields(MaskShape)}
    known = set() if name == "array" else {item.name for item in dataclasses.fields(MASKS[name])}
    for option in options:
        if option not in shapes | known:
            raise unknown(f"option of the mask {name!r}", option, shapes | known)
    shape = {option: value for option, value in options.items() if option in shapes}
    if name == "array":
        return None, MaskShape(**shape)
    source = MASKS[name](**{option: value for option, value in options.items() if option in known})
    return source, MaskShape(**{"threshold": source.threshold, **shape})


def find_mask(model: Model, image: Any, mask: Any, options: Mapping[str, Any] | None = None, **known: Any) -> FoundMask:
    """A mask for a picture, from wherever it comes.

    Args:
        model: The model; sources that ask it are counted in its `nfe`.
        image: The picture that the mask is for; None where there is none yet, and the mask is an array.
        mask: A source's name ("diffedit", "attention:cat", ...), a float or bool array (height, width) in [0, 1], or a
            greyscale picture (white is 1); any size. What is not square is cropped to its middle, as pictures are.
        options: Of the source and of `MaskShape`, by name.
        known: What else is known of the edit: source, target, instruction, seed; see `Subject`.

    Raises:
        EditbookError: Unknown source or option, or no mask (wrong shape or range, NaN).
    """
    options = options or {}
    side = model.image_size
    if isinstance(mask, str):
        name, argument = parse_name(mask)
        source, shape = mask_source(name, options)
        assert source is not None
        if image is None:
            raise EditbookError(f"The mask {mask!r} is looked for in a picture: give one, or a mask of your own.")
        subject = Subject(fit(as_image(image), side), **known)
        heat = source(model, subject, argument)
    else:
        name = "array"
        _, shape = mask_source(name, options)
        heat = square_mask(mask, None if image is None else as_image(image))
    return FoundMask(shape(at_side(heat, side)), heat, name)
