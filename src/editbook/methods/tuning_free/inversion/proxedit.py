"""ProxEdit: small differences between the two prompts are noise, so guidance drops them (Han et al. 2024)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch.nn import functional

from ....attention import MutualSelfAttention, heights
from ....errors import EditbookError
from ....inversion import Inversion
from ....inversion.base import inversion_name
from ....masks import KeepSource, PasteSourceRow
from ....model import Model
from ....options import option
from ....result import Edit
from ....sampling import Callback, Schedule, Step
from ...base import Card, Request, finish, sample_back
from ..attention.prompt_to_prompt import PromptToPrompt
from .negative_prompt_inversion import NegativePrompt


def threshold(delta: torch.Tensor, quantile: float, *, official: bool = False) -> torch.Tensor:
    """lambda, (rows, 1, 1, 1): the quantile of |delta| in each row; a negative one is -lambda itself.

    Args:
        delta: Guidance direction, (rows, channels, height, width).
        quantile: q in [0, 1]; 0 means lambda = 0.
        official: One quantile over all rows, the source's among them. Its direction is zero everywhere, so q is in
            truth the (2q - 1)-quantile of one target row.
    """
    if quantile <= 0:
        return delta.new_full((len(delta), 1, 1, 1), -quantile)
    sizes = delta.abs().to(torch.promote_types(delta.dtype, torch.float32)).flatten(1)
    if not official:
        return sizes.quantile(quantile, dim=1).to(delta).view(-1, 1, 1, 1)
    # With w = 1 the source row is not evaluated twice, and so is not here; the official code has it.
    sizes = torch.cat([sizes, sizes.new_zeros(max(2 - len(sizes), 0), sizes.shape[1])])
    return sizes.quantile(quantile).to(delta).expand(len(delta), 1, 1, 1)


def shrink(delta: torch.Tensor, size: torch.Tensor, prox: str = "l0", *, official: bool = False) -> torch.Tensor:
    """The proximal operator of the l0 norm (hard) or the l1 norm (soft) with threshold `size`.

    Args:
        delta: Guidance direction, (rows, channels, height, width).
        size: lambda, (rows, 1, 1, 1).
        prox: "l0" keeps an entry above lambda and drops the others; "l1" also brings those kept lambda closer to zero.
        official: What the authors' code computes: its "l0" is soft, its "l1" shifts what is left once more.
    """
    soft = delta - delta.clamp(-size, size)
    if not official:
        return soft if prox == "l1" else torch.where(delta.abs() > size, delta, 0.0)
    if prox == "l0":
        return soft
    again = torch.where(soft > 0, soft - size, soft)
    return torch.where(again < 0, again + size, again)


@dataclass
class Proximal(NegativePrompt):
    """Negative-prompt Inversion whose guidance direction is thresholded, and whose background is pulled to the picture.

    The direction eps(C_tar) - eps(C_src) is small except where the edit belongs. Guidance multiplies all of it by w,
    and the small part becomes artefacts. So the small part is set to zero (proximal guidance); and where it was, the
    latent is drawn towards the inverted path (inversion guidance), which also takes away DDIM's own drift.

    Deviations of the official code, kept with `official=True`: see `threshold` and `shrink`; besides, its region is
    where the *shrunk* direction exceeds lambda, so where the direction exceeded 2 lambda. Not kept: a negative `pull_t`
    there pulls even if told not to.

    Args:
        prox: "l0" (hard thresholding) or "l1" (soft).
        quantile: q, the share of the direction's entries that is dropped, per row; 0 drops none and is Negative-prompt
            Inversion if nothing is pulled. A negative number is a fixed threshold, -lambda.
        pull: "inversion" moves the latent towards the inverted path; "reconstruction" moves the predicted clean latent
            towards the picture's (our reading: the noise estimate stays); "none" does neither.
        pull_rate: eta in [0, 1], the share of the way. The code's default; its examples have 0.5 and 1.
        pull_t: Pull below this timestep; a negative one pulls above -pull_t.
        dilate: The kept region grows by so many latent cells before the rest is pulled.
        region: "channel" decides for each latent channel by itself, as the authors do; "spatial" keeps a cell for all
            channels if any of them is kept (ours: small latents are noisy).
        official: Compute what the authors' code computes.
    """

    id: ClassVar[str] = "proxedit"
    takes_batch: ClassVar[bool] = False
    prox: str = option("l0", among=("l0", "l1"))
    quantile: float = option(0.7, high=1, hint="below 0 it is -lambda")
    pull: str = option("inversion", among=("inversion", "reconstruction", "none"))
    pull_rate: float = option(0.1, low=0, high=1, what="a share of the way")
    pull_t: int = 400
    dilate: int = option(1, low=0, what="a number of latent cells")
    region: str = option("channel", among=("channel", "spatial"))
    official: bool = False

    def __call__(
        self,
        model: Model,
        z_0: torch.Tensor,
        prompt: str,
        schedule: Schedule,
        *,
        guidance_scale: float = 7.5,
        callbacks: Iterable[Callback] = (),
        **_: Any,
    ) -> Inversion:
        """Negative-prompt Inversion, with the direction and the blend of the way back."""
        if guidance_scale == 1:
            raise EditbookError(
                "proxedit thresholds the guidance direction, and guidance_scale=1 has none; 7.5 is usual."
            )
        inversion = super().__call__(model, z_0, prompt, schedule, guidance_scale=guidance_scale, callbacks=callbacks)
        guidance = ProximalGuidance(self, inversion.latents[1:])
        inversion.direction = guidance.direction
        if self.pull != "none":
            inversion.blend = guidance.blend
        return inversion


class ProximalGuidance:
    """One way back: `direction` leaves the region that it kept for the `blend` of the same step.

    Args:
        options: Of the inversion: threshold, region and pull.
        path: The inversion's latents in sampling order, from the first step's end on.
    """

    def __init__(self, options: Proximal, path: list[torch.Tensor]) -> None:
        self.options, self.path = options, path
        self.kept: torch.Tensor | None = None

    def direction(self, delta: torch.Tensor, t: int, i: int) -> torch.Tensor:
        """The thresholded direction of the guided rows."""
        options = self.options
        size = threshold(delta, options.quantile, official=options.official)
        direction = shrink(delta, size, options.prox, official=options.official)
        kept = (direction.abs() > size if options.official else direction != 0).to(delta)
        if options.region == "spatial":
            kept = kept.amax(1, keepdim=True).expand_as(delta)
        self.kept = functional.max_pool2d(kept, 2 * options.dilate + 1, stride=1, padding=options.dilate)
        return direction

    def blend(self, step: Step) -> torch.Tensor:
        """Outside the kept region, every row on its way to the picture."""
        options = self.options
        kept, self.kept = self.kept, None
        if not (step.t < options.pull_t if options.pull_t >= 0 else step.t > -options.pull_t):
            return step.z_next
        # Guided rows are the last ones. A row without guidance, such as the source, has no direction to keep.
        region = torch.zeros_like(step.z_next)
        if kept is not None:
            region[len(region) - len(kept) :] = kept
        share = options.pull_rate * (1 - region)
        if options.pull == "inversion":
            return KeepSource(self.path, 1 - share)(step)
        return step.z_next - share * step.move.alpha_to**0.5 * (step.z_0 - self.path[-1])


@dataclass
class ProxEdit(PromptToPrompt):
    """Han, Wen, Chen, Zhang, Song, Ren, Gao and others 2024: ProxNPI and ProxMasaCtrl.

    With Prompt-to-Prompt it is Negative-prompt Inversion with proximal guidance. With MasaCtrl's mutual self-attention
    the layout may change as well: the target draws with the source's keys and values. The official settings of that
    pair are then the inversion's defaults: q = 0.6, the empty prompt as the target's negative one, nothing is pulled.

    Cost: 4 N evaluations, N up and 3 N down. The official code takes 5 N: it estimates the source row twice under the
    same prompt.

    Args:
        attention: "prompt-to-prompt" or "masactrl". The options of Prompt-to-Prompt have no meaning with the latter.
        mutual_start: The step at which mutual self-attention begins, in the decoder's two finest levels.
        inject_null: What the target's unconditional row attends to with "masactrl": "source", or "joint" (source and
            itself), or "none" (itself).
    """

    card: ClassVar[Card] = Card(
        id="proxedit",
        title="ProxEdit: Improving Tuning-Free Real Image Editing with Proximal Guidance",
        authors="Han, Wen, Chen, Zhang, Song, Ren, Gao, et al.",
        year=2024,
        venue="WACV",
        paper="2306.05414",
        branch="tuning_free/inversion",
        inputs=("source prompt", "target prompt"),
        edit_types=("texture", "style", "object removal", "object addition"),
    )
    cross_replace: float = 0.4
    self_replace: float = 0.6
    inversion: str = "proxedit"
    attention: str = option("prompt-to-prompt", among=("prompt-to-prompt", "masactrl"))
    mutual_start: int = option(4, low=0, what="a step")
    inject_null: str = option("source", among=MutualSelfAttention.MODES)

    def __post_init__(self) -> None:
        if self.attention == "masactrl" and inversion_name(self.inversion) == Proximal.id:
            defaults = {"quantile": 0.6, "interpolation": 1.0, "pull": "none"}
            self.inversion_options = {**defaults, **self.inversion_options}
        super().__post_init__()
        if self.attention == "masactrl" and (self.blend is not None or self.reweight or self.word_replace):
            raise EditbookError("blend, reweight and word_replace need attention='prompt-to-prompt'.")

    def __call__(self, model: Model, request: Request) -> Edit:
        """Prompt-to-Prompt, or mutual self-attention, on the inversion."""
        if self.attention == "prompt-to-prompt":
            return super().__call__(model, request)
        prompts = [request.source, request.target]
        model.embed(prompts)  # before the inversion: prompts that cannot be used should cost no walk
        schedule = Schedule(model.scheduler, self.steps)
        total = self.inverter.walk_length(schedule)
        if self.mutual_start > total:
            raise EditbookError(f"mutual_start must be at most the {total} steps of the walk, got {self.mutual_start}.")
        inversion = self.invert(model, request, schedule)
        # The official code gives the source row its own prompt as the negative one, which is w = 1.
        z_0 = sample_back(
            model,
            inversion,
            prompts,
            self.guidance_scale,
            source_scale=1.0 if self.source_guidance_scale is None else self.source_guidance_scale,
            attention=MutualSelfAttention(
                heights(model.unet, model.latent_shape[1])[:2], start=self.mutual_start, inject_null=self.inject_null
            ),
            blends=[] if request.mask is None else [PasteSourceRow(request.mask)],
            callbacks=request.callbacks,
        )
        return finish(model, request, inversion, z_0)
