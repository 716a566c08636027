"""What an inversion is: the way from a picture to noise, and all that is needed to come back.

The survey's Eq. 9 is a measurement here. The survey prints Eq. 7 (sampling) and Eq. 8 (inversion) with their names
exchanged, and Eq. 9 with the noise of the wrong index and without the difference that came before; see the errata page.
With z scaled by 1 / sqrt(alpha), one step of the two paths differs by

    (z - z*)_{t-1} / sqrt(alpha_{t-1}) = (z - z*)_t / sqrt(alpha_t) + c_t (eps_t - eps*_{t-1}) + correction_t,

where eps_t was estimated at z_t (sampling) and eps*_{t-1} at z*_{t-1} (inversion), c_t = gamma_{t-1} - gamma_t with
gamma_t = sqrt(1 / alpha_t - 1) for DDIM, and the correction is what the method itself adds to a latent (PnP Inversion
does). Summed over all steps this is exact. A step that adds noise of standard deviation sigma, the same on both paths,
only has another c_t: sqrt(1 - alpha_{t-1} - sigma^2) / sqrt(alpha_{t-1}) - gamma_t.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch

from ..errors import EditbookError, unknown
from ..model import Model
from ..options import check_fields
from ..sampling import (
    Attention,
    Blend,
    Callback,
    ClassifierFreeGuidance,
    Direction,
    Guidance,
    Move,
    Schedule,
    Trajectory,
)


@dataclass(frozen=True)
class Gap:
    """Both sides of Eq. 9 along one sampling path, (steps, n, channels, height, width), in sampling order.

    Args:
        left: (z - z*) / sqrt(alpha) after each step.
        right: The running sum of `terms` and `corrections`.
        terms: c_t (eps_t - eps*_{t-1}).
        corrections: What a method added to the latent after the step, / sqrt(alpha); 0 where it adds nothing.
        timesteps: t of each step.
    """

    left: torch.Tensor
    right: torch.Tensor
    terms: torch.Tensor
    corrections: torch.Tensor
    timesteps: list[int]

    def norms(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Root mean square of both sides for each step, (steps,) each."""
        return self.left.square().mean((1, 2, 3, 4)).sqrt(), self.right.square().mean((1, 2, 3, 4)).sqrt()


@dataclass
class Inversion:
    """A trajectory from noise to picture, and how to sample back along it. Lists stand in *sampling* order.

    What an inversion changes about sampling is data here, so any editor can follow any inversion: it asks for
    `guidance`, applies `blend` after each step, and needs to know nothing else.

    Args:
        latents: z*_T ... z*_0, N + 1 tensors (n, channels, height, width).
        noises: eps*, N tensors: `noises[i]` moved the latent between `latents[i + 1]` and `latents[i]`.
        moves: The N moves of the *sampling* path between them, with the noise that each adds, if any.
        prompt: The prompt under which the picture was inverted.
        null: What takes the place of the empty prompt: (1, tokens, width), or (N, 1, tokens, width) for each step.
        source_scale: w of the row that repeats the source; None takes the edit's own w. 1 repeats what DDIM inversion
            did; 0 is the unconditional estimate.
        embed: Embeds prompts in a way of its own, (n, tokens, width) or (N, n, tokens, width); None is `Model.embed`.
        direction: Reshapes the guidance direction, see `ClassifierFreeGuidance`.
        guide: Wraps the guidance as a whole.
        blend: Corrects z_next after each step; the source is row 0.
        attention: A control that sampling back runs under, before the editor's own.
        sampled: The sampling path of the source row, if one was recorded.
    """

    latents: list[torch.Tensor]
    noises: list[torch.Tensor]
    moves: list[Move]
    prompt: str = ""
    null: torch.Tensor | None = field(default=None, repr=False)
    source_scale: float | None = 1.0
    embed: Callable[[Model, Sequence[str]], torch.Tensor] | None = field(default=None, repr=False)
    direction: Direction | None = field(default=None, repr=False)
    guide: Callable[[Guidance], Guidance] | None = field(default=None, repr=False)
    blend: Blend | None = field(default=None, repr=False)
    attention: Attention | None = field(default=None, repr=False)
    sampled: Trajectory | None = field(default=None, repr=False)

    @property
    def z_T(self) -> torch.Tensor:
        """The noisiest latent, from which sampling starts."""
        return self.latents[0]

    @property
    def timesteps(self) -> list[int]:
        """T of each sampling step."""
        return [move.t for move in self.moves]

    def guidance(
        self,
        model: Model,
        prompts: Sequence[str],
        scale: float | Sequence[float],
        source_scale: float | None = None,
    ) -> Guidance:
        """The guidance of the way back.

        Args:
            model: The model.
            prompts: One for each row; row 0 is the source.
            scale: w of all rows but the first, or one for each of them.
            source_scale: w of row 0; None is what the inversion needs to repeat the source.
        """
        first = self.source_scale if source_scale is None else source_scale
        edits = [scale] * (len(prompts) - 1) if isinstance(scale, int | float) else list(scale)
        own = scale if isinstance(scale, int | float) else edits[-1]
        scales = [own if first is None else first, *edits]
        condition = self.embed(model, prompts) if self.embed else model.embed(list(prompts))
        null = model.embed("") if self.null is None else self.null
        made = ClassifierFreeGuidance(condition, null, scales, self.direction)
        return self.guide(made) if self.guide else made

    def gap(self, sampled: Trajectory | None = None) -> Gap:
        """The survey's Eq. 9 (corrected), both sides, at each step of a sampling path back from `z_T`.

        Args:
            sampled: The recorded sampling path; None takes `self.sampled`.

        Raises:
            EditbookError: There is no sampling path, or it did not start at `z_T` with the same steps.
        """
        path = sampled or self.sampled
        if path is None:
            raise EditbookError("Eq. 9 compares inversion with sampling: give gap() a recorded sampling Trajectory.")
        if [move.levels for move in path.moves] != [move.levels for move in self.moves]:
            raise EditbookError("The sampling path did not take the same steps as the inversion.")
        if not torch.equal(path.latents[0], self.z_T):
            raise EditbookError("The sampling path did not start at the inversion's z_T.")
        left, terms, corrections = [], [], []
        for i, move in enumerate(self.moves):
            scale = move.alpha_to**-0.5
            left.append(scale * (path.latents[i + 1] - self.latents[i + 1]))
            terms.append(_coefficient(move) * (path.noises[i] - self.noises[i]))
            corrections.append(scale * (path.latents[i + 1] - path.moves[i](path.latents[i], path.noises[i])))
        summands, corrected = torch.stack(terms), torch.stack(corrections)
        return Gap(torch.stack(left), (summands + corrected).cumsum(0), summands, corrected, self.timesteps)


def _coefficient(move: Move) -> float:
    """c_t of Eq. 9: what a unit of noise estimate changes in z / sqrt(alpha)."""
    gamma = (1 / move.alpha_from - 1) ** 0.5
    return ((1 - move.alpha_to - move.sigma**2) / move.alpha_to) ** 0.5 - gamma


INVERSIONS: dict[str, type[Inverter]] = {}
"""Inversions by the name that `editbook.edit(..., inversion=...)` takes; method files add theirs."""


@dataclass
class Inverter:
    """Makes an `Inversion`. Options are fields with the paper's defaults; a subclass with an `id` is registered.

    Whatever a subclass does in its call, its input has been checked before, see `check`.
    """

    id: ClassVar[str]
    needs_source_row: ClassVar[bool] = False
    """Whether the guidance of the way back takes row 0 for the source, so that no edit can be sampled by itself."""
    takes_batch: ClassVar[bool] = False
    """Whether it inverts several latents at once, each as if it were alone."""

    def __post_init__(self) -> None:
        check_fields(self.id, self)

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "id" in cls.__dict__:
            INVERSIONS[cls.id] = cls
        if "__call__" in cls.__dict__:
            cls.__call__ = _checked(cls.__call__)  # type: ignore[method-assign]

    @property
    def needs_prompt(self) -> bool:
        """Whether it is made for the source prompt, and an empty one is most likely forgotten; see `check_prompt`."""
        return False

    def walk_length(self, schedule: Schedule) -> int:
        """How many moves the way back has: all steps, but for an inversion that skips some."""
        return schedule.steps

    def __call__(
        self,
        model: Model,
        z_0: torch.Tensor,
        prompt: str,
        schedule: Schedule,
        *,
        guidance_scale: float = 7.5,
        seed: int = 0,
        callbacks: Iterable[Callback] = (),
    ) -> Inversion:
        """Invert.

        Args:
            model: The model.
            z_0: The picture's latent (1, channels, height, width), from `Model.encode`; n of them where the inversion
                `takes_batch`.
            prompt: The source prompt.
            schedule: The steps.
            guidance_scale: w with which the edit will sample, at least 0; some inversions are made for one w.
            seed: Of random draws, where there are any.
            callbacks: Get each `Step`.

        Raises:
            EditbookError: See `check`.
        """
        raise NotImplementedError

    def check(self, model: Model, z_0: torch.Tensor, guidance_scale: float) -> None:
        """Raise an `EditbookError` if the inversion cannot begin with these.

        Args:
            model: The model.
            z_0: Latents of the model's own size, (n, channels, height, width), n = 1 unless it `takes_batch`.
            guidance_scale: w, a finite number of at least 0.
        """
        if z_0.ndim != 4 or tuple(z_0.shape[1:]) != model.latent_shape:
            expected = ", ".join(map(str, model.latent_shape))
            raise EditbookError(
                f"z_0 of {self.id} must be latents (n, {expected}), as Model.encode gives them, got {tuple(z_0.shape)}."
            )
        if len(z_0) != 1 and not self.takes_batch:
            raise EditbookError(f"{self.id} inverts one latent at a time, got {len(z_0)}: call it for each of them.")
        if not 0 <= guidance_scale < math.inf:
            raise EditbookError(
                f"guidance_scale of {self.id} must be a finite number of at least 0, got {guidance_scale!r}."
            )

    def check_prompt(self, prompt: str) -> None:
        """Raise an `EditbookError` if the inversion needs a source prompt and got none.

        For methods whose source prompt may be left out. Those that invert under the empty prompt on purpose, as
        MasaCtrl does, do not ask.
        """
        if self.needs_prompt and not prompt.strip():
            raise EditbookError(
                f"The inversion {self.id} needs a source prompt: give source='...', which describes the picture as it "
                "is, or take inversion='ddim-inversion', which can do without."
            )

    @classmethod
    def options(cls) -> dict[str, Any]:
        """Every option with its default."""
        return {item.name: getattr(cls(), item.name) for item in dataclasses.fields(cls)}


def _checked(invert: Callable[..., Inversion]) -> Callable[..., Inversion]:
    """An inverter's call that looks at its input first."""

    @functools.wraps(invert)
    def call(
        self: Inverter,
        model: Model,
        z_0: torch.Tensor,
        prompt: str,
        schedule: Schedule,
        *,
        guidance_scale: float = 7.5,
        **options: Any,
    ) -> Inversion:
        self.check(model, z_0, guidance_scale)
        return invert(self, model, z_0, prompt, schedule, guidance_scale=guidance_scale, **options)

    return call


def inversion_name(name: str) -> str:
    """The registered name that this one is, or is the only beginning of: "edit-friendly" is "edit-friendly-ddpm".

    Raises:
        EditbookError: There is none; the nearest is suggested.
    """
    importlib.import_module("editbook.methods")  # whose files add their inversions
    found = [name] if name in INVERSIONS else [known for known in INVERSIONS if known.startswith(f"{name}-")]
    if len(found) != 1:
        raise unknown("inversion", name, INVERSIONS)
    return found[0]


def make_inverter(name: str, options: Mapping[str, Any]) -> Inverter:
    """The inversion of that name with these options.

    Raises:
        EditbookError: The name or an option is unknown, and the nearest is suggested; or an option has a wrong value.
    """
    kind = INVERSIONS[inversion_name(name)]
    for option in options:
        if option not in kind.options():
            raise unknown(f"option of the inversion {kind.id}", option, kind.options())
    return kind(**options)
