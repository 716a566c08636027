"""Disentanglement Diffusion: learn when to switch from the old prompt to the new (Wu et al. 2023)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from ....errors import EditbookError
from ....inversion import Inversion
from ....masks import KeepSource
from ....model import Model
from ....options import fraction, option
from ....result import Edit
from ....sampling import Callback, Guidance, Schedule, Step, follow, whole_steps
from ...base import Card, InvertingMethod, Request, finish, reconstruct


@dataclass
class Learned:
    """What the optimisation did. Entry k was measured with the weights that epoch k began with.

    Args:
        weights: lambda before each epoch, and the final one last: epochs + 1 lists of N numbers, noisiest step first.
        clip: The directional loss of each epoch, in [0, 2].
        perceptual: The perceptual distance of each epoch, before it is weighted.
        gradient: Gradient of the whole loss with respect to each weight, at the start, N numbers.
    """

    weights: list[list[float]]
    clip: list[float] = field(default_factory=list)
    perceptual: list[float] = field(default_factory=list)
    gradient: list[float] = field(default_factory=list)


@dataclass
class DisentanglementDiffusion(InvertingMethod):
    """Wu, Liu, Zhao, Kale, Bui, Yu, Lin, Zhang and Chang 2023.

    With all noise fixed, early steps settle the layout and late ones the attributes, so the prompt may be changed on
    the way. Step i is guided by lambda_i C_src + (1 - lambda_i) C_tar. The N numbers lambda are learned through the
    whole sampler, such that the picture moves in CLIP's space as the text does (the survey's Eq. 6) and stays close to
    the neutral picture, which is sampled with all lambda = 1. The survey's "about 50 numbers" is N.

    Departures: DDIM steps instead of PLMS, whose steps reuse old estimates. VGG-16 features are not shipped; the
    perceptual term compares features of the autoencoder's encoder and is balanced against the CLIP term, so that the
    official weight 0.05 does not apply. CLIP gets normalised pixels, which the official code forgets. That code returns
    the last epoch's picture, one update behind its weights; here the final weights are sampled once more. Its random
    residuals, which repair the inversion of a real picture, are left out: any inversion of the library can stand here.

    Each step is checkpointed: memory does not grow with N, and the U-Net runs a second time on the way back. Both runs
    are counted. With a mask, the neutral picture is pasted back outside it.

    Args:
        switch: t* / N in [0, 1]: the share of steps that begin with the source prompt; 0.4 for local attributes, 0.2 to
            0.25 for styles. N counts the steps of the way back, wherever an inversion skips some.
        late: lambda of the other steps at the start; the paper takes -0.1 to -0.2 for stubborn styles.
        epochs: Updates of the weights; 0 leaves the hard switch, and needs no CLIP.
        learning_rate: Of Adam.
        perceptual: Weight of the perceptual term, if both terms were equally large at the start.
        weights: N weights learned before: used as they are, nothing is optimised. They carry over to other pictures.
        clip: Folder or hub id of a CLIP, for a model that has none of its own; the paper's is
            "openai/clip-vit-base-patch32".

    After a call, `learned` holds the weights and losses. A generated source (`image=None`) needs no inversion.
    """

    card: ClassVar[Card] = Card(
        id="disentanglement-diffusion",
        title="Uncovering the Disentanglement Capability in Text-to-Image Diffusion Models",
        authors="Wu, Liu, Zhao, Kale, Bui, Yu, Lin, Zhang, Chang",
        year=2023,
        venue="CVPR",
        paper="2212.08698",
        branch="tuning_free/inversion",
        inputs=("source prompt", "target prompt"),
        edit_types=("texture", "style", "object addition"),
    )
    generates: ClassVar[bool] = True
    switch: float = fraction(0.4)
    late: float = option(0.0)
    epochs: int = option(10, low=0)
    learning_rate: float = option(0.05, low=0)
    perceptual: float = option(1.0, low=0)
    weights: Sequence[float] | None = None
    clip: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.learned: Learned | None = None
        if self.inverter.needs_source_row:
            raise EditbookError(
                f"disentanglement-diffusion samples the edit by itself and cannot follow {self.inversion}, whose first "
                "row repeats the source: take another inversion, e.g. inversion='pnp-inversion'."
            )
        if not all(math.isfinite(value) for value in self.weights or ()):
            raise EditbookError("weights must be finite numbers.")

    def __call__(self, model: Model, request: Request) -> Edit:
        """Sample the neutral picture, learn the weights, sample with them."""
        schedule = Schedule(model.scheduler, self.steps)
        total = self.inverter.walk_length(schedule)
        if self.weights is not None and len(self.weights) != total:
            raise EditbookError(f"weights must hold {total} numbers, one for each step, not {len(self.weights)}.")
        model.embed([request.source, request.target])  # prompts that cannot be used should cost no walk
        inversion = self.invert(model, request, schedule)
        neutral = reconstruct(model, inversion, self.guidance_scale, request.callbacks)
        assert inversion.sampled is not None
        blend = None if request.mask is None else KeepSource(inversion.sampled.latents[1:], request.mask)

        def sample(weights: torch.Tensor) -> torch.Tensor:
            return follow(
                model,
                inversion.z_T,
                inversion.moves,
                mixed_guidance(model, inversion, request.target, weights, self.guidance_scale),
                blend=blend,
                callbacks=[_detached(callback) for callback in request.callbacks],
                gradients=weights.requires_grad,
            )

        self.learned = self._learn(model, request, total, neutral, sample)
        z_0 = sample(torch.tensor(self.learned.weights[-1]).to(neutral))
        return finish(model, request, inversion, torch.cat([neutral, z_0]))

    def _learn(
        self,
        model: Model,
        request: Request,
        total: int,
        neutral: torch.Tensor,
        sample: Callable[[torch.Tensor], torch.Tensor],
    ) -> Learned:
        """Adam on lambda, through all steps and the decoder."""
        held = whole_steps(self.switch, total, nearest=True)
        start = self.weights or [1.0] * held + [float(self.late)] * (total - held)
        learned = Learned([list(start)])
        if self.weights is not None or self.epochs == 0:
            return learned
        directional = DirectionalLoss(model, self.clip, request.source, request.target, pixels(model, neutral))
        distance = PerceptualDistance(model, pixels(model, neutral))
        weights = torch.tensor(start).to(neutral).requires_grad_(True)
        optimiser = torch.optim.Adam([weights], lr=self.learning_rate)
        balance = 0.0
        with torch.enable_grad():
            for epoch in range(self.epochs):
                picture = pixels(model, sample(weights))
                clip, perceptual = directional(picture), distance(picture)
                if epoch == 0 and perceptual > 0:
                    balance = self.perceptual * clip.item() / perceptual.item()
                (weights.grad,) = torch.autograd.grad(clip + balance * perceptual, [weights])
                if epoch == 0:
                    learned.gradient = weights.grad.tolist()
                optimiser.step()
                learned.clip.append(clip.item())
                learned.perceptual.append(perceptual.item())
                learned.weights.append(weights.tolist())
        return learned


def mixed_guidance(model: Model, inversion: Inversion, target: str, weights: torch.Tensor, scale: float) -> Guidance:
    """The inversion's guidance of one row under the mixed prompts, lambda_i C_src + (1 - lambda_i) C_tar in step i.

    Args:
        model: The model.
        inversion: Whose prompt is the source; it says how to embed, and what stands for the empty prompt.
        target: The target prompt.
        weights: lambda, (N,), noisiest step first; gradients flow into it.
        scale: w.
    """

    def mixture(model: Model, prompts: Sequence[str]) -> torch.Tensor:
        embed = inversion.embed or (lambda model, prompts: model.embed(list(prompts)))
        source, target = embed(model, [inversion.prompt, *prompts]).split(1, dim=-3)
        share = weights.view(-1, 1, 1, 1)
        return share * source + (1 - share) * target

    guidance = replace(inversion, embed=mixture).guidance(model, [target], scale, scale)

    def checkpointed(model: Model, z_t: torch.Tensor, t: int, i: int) -> torch.Tensor:
        # Keeps z_t alone of the step, and computes the rest again when gradients come back.
        eps: torch.Tensor = checkpoint(guidance, model, z_t, t, i, use_reentrant=False)
        return eps

    return checkpointed


def pixels(model: Model, z_0: torch.Tensor) -> torch.Tensor:
    """The pictures of latents, (n, 3, height, width) in [0, 1], with gradients, unlike `Model.decode`."""
    decoded: torch.Tensor = model.vae.decode(z_0 / model.vae.config.scaling_factor).sample
    return (decoded / 2 + 0.5).clamp(0, 1)


_CLIP_MEAN, _CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class DirectionalLoss:
    """1 - cos(E_I(x) - E_I(x0), E_T(target) - E_T(source)): the survey's Eq. 6, on raw features as in the paper's code.

    1, with gradient 0, where a direction is undefined: at x = x0, or if both prompts mean the same.

    Args:
        model: The model, whose own CLIP is taken if it has one.
        clip: Folder or hub id of another CLIP.
        source: Source prompt.
        target: Target prompt.
        neutral: x0, (1, 3, height, width) in [0, 1].

    Raises:
        EditbookError: There is no CLIP.
    """

    def __init__(self, model: Model, clip: str | None, source: str, target: str, neutral: torch.Tensor) -> None:
        self.towers, tokenizer, mean, std = _towers(model, clip)
        like = {"device": model.device, "dtype": self.towers.dtype}
        self._mean, self._std = torch.tensor(mean, **like).view(3, 1, 1), torch.tensor(std, **like).view(3, 1, 1)
        limit = self.towers.config.text_config.max_position_embeddings
        options = {"padding": "max_length", "max_length": limit, "truncation": True, "return_tensors": "pt"}
        tokens = tokenizer([source, target], **options).input_ids.to(model.device)
        with torch.no_grad():
            before, after = self.towers.text_projection(self.towers.text_model(tokens).pooler_output)
            self._text, self._image = after - before, self._embed(neutral)
        self._means_something = bool(self._text.norm() > 1e-5 * before.norm())

    def _embed(self, picture: torch.Tensor) -> torch.Tensor:
        side = self.towers.config.vision_config.image_size
        fitted = picture.to(self.towers.dtype)
        if fitted.shape[-1] != side:
            fitted = functional.interpolate(fitted, (side, side), mode="bicubic", antialias=True)
        output = self.towers.vision_model((fitted - self._mean) / self._std).pooler_output
        features: torch.Tensor = self.towers.visual_projection(output)[0]
        return features

    def __call__(self, picture: torch.Tensor) -> torch.Tensor:
        """The loss of a picture (1, 3, height, width) in [0, 1], a scalar."""
        moved = self._embed(picture) - self._image
        if not self._means_something or moved.norm() <= 1e-5 * self._image.norm():
            return 1 + 0 * picture.sum()
        return 1 - functional.cosine_similarity(moved, self._text, dim=0)


def _towers(model: Model, name: str | None) -> tuple[Any, Any, Sequence[float], Sequence[float]]:
    """CLIP, its tokenizer, and the mean and deviation by which its pixels are normalised."""
    if name is None:
        if model.clip is None:
            raise EditbookError(
                f"The model {model.name!r} brings no CLIP, which the directional loss needs: give "
                'clip="openai/clip-vit-base-patch32" or a folder; or epochs=0 for the hard switch alone.'
            )
        return model.clip, model.tokenizer, (0.5,) * 3, (0.5,) * 3
    from transformers import CLIPModel, CLIPTokenizer

    try:
        towers, tokenizer = CLIPModel.from_pretrained(name), CLIPTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise EditbookError(f"Could not load the CLIP {name!r}: {str(error).strip().splitlines()[0]}") from None
    return towers.eval().requires_grad_(False).to(model.device), tokenizer, _CLIP_MEAN, _CLIP_STD


class PerceptualDistance:
    """L1 between features of the autoencoder's encoder, each level in units of its own deviation: our stand-in for VGG.

    Args:
        model: The model.
        reference: x0, (1, 3, height, width) in [0, 1].
    """

    def __init__(self, model: Model, reference: torch.Tensor) -> None:
        self.encoder = model.vae.encoder
        with torch.no_grad():
            self._reference = self._features(reference)

    def _features(self, picture: torch.Tensor) -> list[torch.Tensor]:
        x, levels = self.encoder.conv_in(2 * picture - 1), []
        for block in self.encoder.down_blocks:
            x = block(x)
            levels.append(x)
        return levels

    def __call__(self, picture: torch.Tensor) -> torch.Tensor:
        """The distance of a picture (1, 3, height, width) in [0, 1] from x0, a scalar."""
        pairs = zip(self._features(picture), self._reference, strict=True)
        return torch.stack([(x - x_0).abs().mean() / x_0.std() for x, x_0 in pairs]).mean()


def _detached(callback: Callback) -> Callback:
    """Callbacks keep what they get: let it not be the graph of the whole walk."""
    return lambda step: callback(
        Step(step.i, step.total, step.move, step.z_t.detach(), step.eps.detach(), step.z_next.detach())
    )
