"""What every method has: a card, options with the paper's defaults, and one call."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from PIL import Image

from ..errors import EditbookError, unknown
from ..inversion import INVERSIONS, Inversion
from ..model import Model
from ..result import Edit
from ..sampling import Callback, ClassifierFreeGuidance, Schedule, Trajectory, follow


@dataclass(frozen=True)
class Card:
    """Who made a method, and where it stands in the survey.

    Args:
        id: The name that `editbook.edit(method=...)` takes.
        title: Title of the method or its paper.
        authors: Authors of the paper.
        year: Year of publication.
        venue: Where it was published.
        paper: arXiv number, e.g. "2208.01626".
        branch: Path in the survey's taxonomy, e.g. "tuning_free/attention".
        inputs: What the method needs besides the picture, e.g. ("source prompt", "target prompt").
        edit_types: What it can do, in the words of the survey's Table 1.
    """

    id: str
    title: str
    authors: str
    year: int
    venue: str
    paper: str
    branch: str
    inputs: tuple[str, ...]
    edit_types: tuple[str, ...]


@dataclass(frozen=True)
class Request:
    """What is to be edited.

    Args:
        image: The picture; None generates the source from the seed and the source prompt.
        source: Prompt that describes the source.
        target: Prompt that describes the result.
        seed: Of all random draws.
        mask: Where the edit may act, (1, 1, h, w) in [0, 1] at the latent's size; None leaves it to the method.
        callbacks: Get every `Step` of every walk.
    """

    image: Image.Image | None
    source: str
    target: str
    seed: int = 0
    mask: torch.Tensor | None = None
    callbacks: tuple[Callback, ...] = ()


REGISTRY: dict[str, type[Method]] = {}


@dataclass
class Method:
    """A method of the survey: options are fields, `__call__` is the paper's algorithm box.

    Args:
        steps: N, the number of DDIM steps.
        guidance_scale: w of classifier-free guidance for the edited picture.
    """

    card: ClassVar[Card]
    steps: int = 50
    guidance_scale: float = 7.5

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "card" in cls.__dict__:
            REGISTRY[cls.card.id] = cls

    def __call__(self, model: Model, request: Request) -> Edit:
        """Make the edit."""
        raise NotImplementedError

    @classmethod
    def options(cls) -> dict[str, Any]:
        """Every option with its default."""
        return {item.name: getattr(cls(), item.name) for item in dataclasses.fields(cls)}

    @classmethod
    def configured(cls, **options: Any) -> Method:
        """The method with these options; an unknown one raises, with the nearest name."""
        for name in options:
            if name not in cls.options():
                raise unknown(f"option of {cls.card.id}", name, cls.options())
        return cls(**options)


def invert(model: Model, request: Request, name: str, schedule: Schedule) -> Inversion:
    """The request's picture inverted under its source prompt by the inversion of that name."""
    if name not in INVERSIONS:
        raise unknown("inversion", name, INVERSIONS)
    if request.image is None:
        raise EditbookError("An inversion needs a picture.")
    z_0 = model.encode(request.image)
    return INVERSIONS[name](model, z_0, request.source, schedule, callbacks=request.callbacks)


def guided(model: Model, prompts: Iterable[str], scale: float | list[float]) -> ClassifierFreeGuidance:
    """Classifier-free guidance with one prompt for each row, away from the empty prompt."""
    return ClassifierFreeGuidance(model.embed(list(prompts)), model.embed(""), scale)


def reconstruct(
    model: Model, inversion: Inversion, scale: float = 1.0, callbacks: Iterable[Callback] = ()
) -> torch.Tensor:
    """Sample back from z_T under the inversion's own prompt, and record the walk in `inversion.sampled` for Eq. 9."""
    inversion.sampled = Trajectory()
    guidance = guided(model, [inversion.prompt] * len(inversion.z_T), scale)
    return follow(model, inversion.z_T, inversion.moves, guidance, callbacks=[inversion.sampled, *callbacks])
