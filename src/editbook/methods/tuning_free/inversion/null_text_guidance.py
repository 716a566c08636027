"""Null-text guidance: the unconditional half of guidance is shown another latent (Zhao et al. 2023)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

import torch

from ....errors import EditbookError
from ....masks import KeepSource, mask_array
from ....model import Model
from ....options import option
from ....result import Edit
from ....sampling import Guidance, Schedule, Trajectory, add_noise, follow
from ...base import Card, Method, Request, guided

Disturbance = Callable[[dict[int, torch.Tensor], int], torch.Tensor]
"""From the latents visited so far, by their timesteps, and the present timestep to what the unconditional half gets."""


def rollback(b: int) -> Disturbance:
    """The latent that was visited nearest to b timesteps earlier; for b > 0 never the present one, if there is another.

    Args:
        b: In training timesteps, at least 0.
    """

    def disturb(visited: dict[int, torch.Tensor], t: int) -> torch.Tensor:
        earlier = [u for u in visited if u > t]
        return visited[min(earlier, key=lambda u: abs(u - t - b)) if b and earlier else t]

    return disturb


def reference(z_0: torch.Tensor) -> Disturbance:
    """The clean latent of the reference, at every step."""
    return lambda visited, t: z_0


def known(noise: torch.Tensor) -> Guidance:
    """The guidance eps = n: a path that comes down again as add_noise with n goes up, without asking the model."""
    return lambda model, z_t, t, i: noise.expand_as(z_t)


@dataclass
class DisturbedGuidance:
    """eps(x_sigma, t, null) + w [eps(x_t, t, C) - eps(x_sigma, t, null)], both halves told the same timestep t.

    With x_sigma = x_t this is classifier-free guidance. It keeps its own history of the walk, from step 0 of it.

    Args:
        condition: C, (n, tokens, width).
        null: Embedding of the empty prompt, (1 or n, tokens, width).
        scale: w. At w = 1 the unconditional half has no weight and is not evaluated.
        disturb: Chooses x_sigma.
        start: s; the guidance acts where t <= s.
        before: Gives the noise estimate where t > s.
    """

    condition: torch.Tensor
    null: torch.Tensor
    scale: float
    disturb: Disturbance
    start: float
    before: Guidance
    _visited: dict[int, torch.Tensor] = field(default_factory=dict, init=False, repr=False)

    def __call__(self, model: Model, z_t: torch.Tensor, t: int, i: int) -> torch.Tensor:
        """The noise estimate at step i, shaped like z_t."""
        if i == 0:
            self._visited = {}
        self._visited[t] = z_t
        if t > self.start:
            return self.before(model, z_t, t, i)
        if self.scale == 1:
            return model.noise(z_t, t, self.condition)
        z_sigma = self.disturb(self._visited, t).expand_as(z_t)
        embeddings = torch.cat([self.null.expand_as(self.condition), self.condition])
        eps_null, eps = model.noise(torch.cat([z_sigma, z_t]), t, embeddings).chunk(2)
        return eps_null + self.scale * (eps - eps_null)


@dataclass
class NullTextGuidance(Method):
    """Zhao, Zheng, Wang, Lan, Huang and Yang 2023: no inversion, but a guidance whose "empty" half is disturbed.

    Guidance leads away from the unconditional estimate. Made at another latent, that estimate differs in more than the
    text, and guidance leads away from that difference as well. "rollback" (Back-D) takes the latent that the walk
    visited b timesteps before, which is noisier; "image" (Image-D) takes the clean latent of the reference. Neither is
    noised to fit, rescaled or told its own timestep.

    A picture is noised to level s by the noise n of the seed, which is then denoised under the target prompt. Above s
    the noise is known, so the walk comes down from T with eps = n and no evaluation of the U-Net; this fills the
    history, as the official code does. Without a picture, above s the sampler is guided as usual ("rollback" only);
    the undisturbed sample of the same seed is made too and returned as the source.

    The official code reads one step less far back than b says, and for b = 0 the first latent instead of the current
    one. Here b is what it says, to the nearest step (at least one, if b > 0), and never beyond the first.

    Args:
        disturbance: "rollback" or "image".
        s: Where the disturbance begins, and the level to which a picture is noised, in training timesteps, [0, 999];
            the official script tries 200, 300 and 400.
        b: How far the rollback goes, in training timesteps, [0, 999]; the script tries 100, 200 and 300. "image" does
            not use it. 0 disturbs nothing.
        steps: Of the whole walk from T, of which a picture uses those up to s; the official 100.
        guidance_scale: w; the official 10.

    With a mask, the undisturbed source of the same noise level is pasted back outside it.
    """

    card: ClassVar[Card] = Card(
        id="null-text-guidance",
        title="Null-text Guidance in Diffusion Models is Secretly a Cartoon-style Creator",
        authors="Zhao, Zheng, Wang, Lan, Huang, Yang",
        year=2023,
        venue="ACM MM",
        paper="2305.06710",
        branch="tuning_free/inversion",
        inputs=("target prompt",),
        edit_types=("style",),
    )
    steps: int = 100
    guidance_scale: float = 10.0
    disturbance: str = option("rollback", among=("rollback", "image"))
    s: int = option(400, low=0, high=999, what="a number of training timesteps")
    b: int = option(200, low=0, high=999, what="a number of training timesteps")

    def __call__(self, model: Model, request: Request) -> Edit:
        """Noise the picture (or draw noise), then denoise with the disturbed guidance."""
        path = Schedule(model.scheduler, self.steps).sampling()
        noise = model.random_latent(request.seed)
        disturb, z_T = rollback(self.b), noise
        before: Guidance = guided(model, [request.target], self.guidance_scale)
        if request.image is None:
            if self.disturbance == "image":
                raise EditbookError("The image disturbance needs a picture: give one, or disturbance='rollback'.")
            undisturbed = Trajectory()
            z_0 = follow(model, z_T, path, before, callbacks=[undisturbed, *request.callbacks])
            source = undisturbed.latents[1:]
        else:
            if path[-1].t > self.s:
                raise EditbookError(f"s = {self.s} leaves no step to take; it must be at least {path[-1].t}.")
            z_0, before = model.encode(request.image), known(noise)
            if self.disturbance == "image":
                disturb = reference(z_0)
            z_T = add_noise(z_0, noise, path[0].alpha_from)
            source = [*(add_noise(z_0, noise, move.alpha_to) for move in path[:-1]), z_0]
        edited = follow(
            model,
            z_T,
            path,
            DisturbedGuidance(
                model.embed(request.target), model.embed(""), self.guidance_scale, disturb, self.s, before
            ),
            blend=None if request.mask is None else KeepSource(source, request.mask),
            callbacks=request.callbacks,
        )
        reconstruction = model.decode(z_0)
        return Edit(
            model.decode(edited),
            reconstruction if request.image is None else request.image,
            reconstruction=reconstruction,
            mask=mask_array(request.mask),
        )
