"""What every method has: a card, options with the paper's defaults, and one call."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image

from ..attention import AttentionMaps, Chain
from ..errors import EditbookError, unknown
from ..inversion import INVERSIONS, Inversion, make_inverter
from ..inversion.base import inversion_name
from ..masks import mask_array
from ..model import Model
from ..options import check_fields, option
from ..result import Edit
from ..sampling import Attention, Blend, Callback, ClassifierFreeGuidance, Guidance, Schedule, Step, Trajectory, follow


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
        inputs: What the method needs besides the picture: "source prompt", "target prompt", "instruction", "mask",
            "reference image"; what it can use but does without has " (optional)" behind it.
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
        pixel_mask: The same at the picture's size, float32 (H, W).
        instruction: What shall be done to the picture, for methods that follow instructions.
    """

    image: Image.Image | None
    source: str
    target: str
    seed: int = 0
    mask: torch.Tensor | None = None
    callbacks: tuple[Callback, ...] = ()
    pixel_mask: np.ndarray | None = None
    instruction: str = ""


REGISTRY: dict[str, type[Method]] = {}


@dataclass
class Method:
    """A method of the survey: options are fields, `__call__` is the paper's algorithm box.

    Args:
        steps: N, the number of DDIM steps.
        guidance_scale: w of classifier-free guidance for the edited picture.
    """

    card: ClassVar[Card]
    takes_image: ClassVar[bool] = False
    """Whether it needs a model that sees the source picture, as InstructPix2Pix does."""
    steps: int = 50
    guidance_scale: float = option(7.5, low=0, hint="1 is no guidance, 7.5 is usual")

    def __post_init__(self) -> None:
        check_fields(self.card.id, self)

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
        default = cls()
        return {item.name: getattr(default, item.name) for item in dataclasses.fields(cls)}

    @classmethod
    def configured(cls, **options: Any) -> Method:
        """The method with these options; an unknown one raises, with the nearest name."""
        for name in options:
            if name not in cls.options():
                raise unknown(f"option of {cls.card.id}", name, cls.options())
        return cls(**options)


@dataclass
class InvertingMethod(Method):
    """A method that begins by inverting the picture, by any inversion of the library.

    A method that `generates` also edits a picture that it samples itself (`image=None`), from the seed's noise.

    Args:
        inversion: Which inversion makes the trajectory: a name of `editbook.inversion.INVERSIONS`.
        inversion_options: Its own options. `editbook.edit` also takes them among the method's:
            `edit(..., inversion="null-text-inversion", inner_steps=5)`.
    """

    generates: ClassVar[bool] = False
    inversion: str = "ddim-inversion"
    inversion_options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.inversion = inversion_name(self.inversion)
        self.inverter = make_inverter(self.inversion, self.inversion_options)  # raises where options are wrong

    @classmethod
    def configured(cls, **options: Any) -> Method:
        """As `Method.configured`; options of the inversion may stand among the method's."""
        name = inversion_name(options.get("inversion", cls.options()["inversion"]))
        theirs = {key: options.pop(key) for key in list(options) if key in INVERSIONS[name].options()}
        if theirs:
            options["inversion_options"] = {**options.get("inversion_options", {}), **theirs}
        for given in options:
            if given not in cls.options():
                raise unknown(f"option of {cls.card.id}", given, {**cls.options(), **INVERSIONS[name].options()})
        return cls(**options)

    def walk_length(self, model: Model) -> int:
        """How many steps the way back has, of which an editor's fractions are: the inversion may skip some."""
        return self.inverter.walk_length(Schedule(model.scheduler, self.steps))

    def invert(self, model: Model, request: Request, schedule: Schedule) -> Inversion:
        """The request's picture, inverted under its source prompt; or the seed's noise, where there is no picture.

        Raises:
            EditbookError: There is no picture, and the method or the inversion needs one; or no source prompt, and the
                method does without but the inversion does not.
        """
        if request.image is None:
            if not self.generates or self.inversion != "ddim-inversion":
                raise EditbookError("An inversion needs a picture.")
            z_T = model.random_latent(request.seed)
            return Inversion([z_T], [], schedule.sampling(), request.source, source_scale=None)
        # A method that takes a source prompt, and inverts under the empty one all the same, does so on purpose.
        if not any(name.startswith("source prompt") for name in self.card.inputs):
            self.inverter.check_prompt(request.source)
        return self.inverter(
            model,
            model.encode(request.image),
            request.source,
            schedule,
            guidance_scale=self.guidance_scale,
            seed=request.seed,
            callbacks=request.callbacks,
        )


def guided(model: Model, prompts: Iterable[str], scale: float | list[float]) -> ClassifierFreeGuidance:
    """Classifier-free guidance with one prompt for each row, away from the empty prompt."""
    return ClassifierFreeGuidance(model.embed(list(prompts)), model.embed(""), scale)


def sample_back(
    model: Model,
    inversion: Inversion,
    prompts: Sequence[str],
    scale: float | Sequence[float],
    *,
    source_scale: float | None = None,
    z_T: torch.Tensor | None = None,
    guidance: Guidance | None = None,
    attention: Attention | None = None,
    blends: Iterable[Blend] = (),
    callbacks: Iterable[Callback] = (),
) -> torch.Tensor:
    """Sample back from z_T with one row for each prompt, row 0 repeating the source, as the inversion prescribes.

    The source row's walk is kept in `inversion.sampled`, for Eq. 9.

    Args:
        model: The model.
        inversion: Where to start, and how to come back.
        prompts: The source's, then the edits'.
        scale: w of the edits, or one for each of them.
        source_scale: w of the source row; None is what the inversion needs.
        z_T: Where each row starts; None is the inversion's z_T for all.
        guidance: Of all rows, instead of classifier-free guidance with the prompts; wrapped as the inversion asks.
        attention: A control of all rows; it comes after the inversion's own, if that has one.
        blends: Applied in order after each step, when the inversion has corrected its source row.
        callbacks: Get each `Step`.

    Returns:
        z_0 of every row, (len(prompts), channels, height, width).

    Raises:
        EditbookError: The inversion is that of several pictures.
    """
    if len(inversion.z_T) != 1:
        raise EditbookError(
            f"Sampling back has one picture's source row, and the inversion has {len(inversion.z_T)} pictures: "
            "invert them one by one."
        )
    inversion.sampled = Trajectory(rows=1)
    parts = [*([inversion.blend] if inversion.blend else []), *blends]

    def blend(step: Step) -> torch.Tensor:
        for part in parts:
            step.z_next = part(step)
        return step.z_next

    if guidance is None:
        guidance = inversion.guidance(model, prompts, scale, source_scale)
    elif inversion.guide is not None:
        guidance = inversion.guide(guidance)
    controls = [control for control in (inversion.attention, attention) if control is not None]
    return follow(
        model,
        inversion.z_T.repeat(len(prompts), 1, 1, 1) if z_T is None else z_T,
        inversion.moves,
        guidance,
        attention=Chain(controls) if controls else None,
        blend=blend if parts else None,
        callbacks=[inversion.sampled, *callbacks],
    )


def finish(
    model: Model,
    request: Request,
    inversion: Inversion,
    z_0: torch.Tensor,
    *,
    mask: torch.Tensor | None = None,
    attention: AttentionMaps | None = None,
) -> Edit:
    """Decode what `sample_back` came to: row 0 is the reconstruction, the last row the edit.

    Args:
        model: The model.
        request: What was asked for; without a picture, row 0 is the source that was generated.
        inversion: The way there and back.
        z_0: (rows, channels, height, width).
        mask: Where the method edited, (1, 1, h, w); None is the request's.
        attention: Maps to keep.
    """
    pictures = model.decode_batch(z_0[[0, -1]])
    generated = request.image is None
    return Edit(
        pictures[1],
        pictures[0] if request.image is None else request.image,
        reconstruction=pictures[0],
        mask=mask_array(request.mask if mask is None else mask),
        inversion=None if generated else inversion,
        attention=attention,
    )


def reconstruct(
    model: Model, inversion: Inversion, scale: float | None = None, callbacks: Iterable[Callback] = ()
) -> torch.Tensor:
    """Sample back from z_T under the inversion's own prompt, and record the walk in `inversion.sampled` for Eq. 9.

    Args:
        model: The model.
        inversion: One picture's.
        scale: w; None is what the inversion needs to repeat the source (1 where that is the edit's own).
        callbacks: Get each `Step`.
    """
    return sample_back(model, inversion, [inversion.prompt], 1.0, source_scale=scale, callbacks=callbacks)
