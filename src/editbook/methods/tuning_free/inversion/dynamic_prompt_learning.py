"""Dynamic Prompt Learning: the nouns' own embeddings are tuned until their attention stays on their objects."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from torch.nn import functional

from ....attention import MeanMaps, map_height, smooth, tokens_of
from ....errors import EditbookError
from ....inversion import ddim_inversion
from ....inversion.embedding_tuning import TunedInversion, needs_single_precision
from ....model import Model
from ....options import option
from ....pocket import OBJECTS
from ....sampling import Callback, Schedule, follow
from ...base import Card
from ..attention.prompt_to_prompt import PromptToPrompt
from .null_text_inversion import NullText, NullTextTuning

LOSSES = ("attention balancing", "background leakage", "disjoint objects")
_WEIGHTS = torch.tensor([1.0, 0.05, 0.05])
_BETA, _ALPHA = (0.3, 0.7, 0.9), (25.0, 50.0, 25.0)


@contextmanager
def override_tokens(model: Model, positions: Sequence[int], vectors: torch.Tensor) -> Iterator[None]:
    """A context in which the text encoder reads other vectors at some positions; its vocabulary is not touched.

    Args:
        model: The model.
        positions: Of the tokens.
        vectors: What is read there, (positions, width), or (n, positions, width) for a batch of n prompts.
    """

    def replace(_: Any, __: Any, output: torch.Tensor) -> torch.Tensor:
        output = output.clone()
        output[:, list(positions)] = vectors.to(output)
        return output

    handle = model.text_encoder.get_input_embeddings().register_forward_hook(replace)
    try:
        yield
    finally:
        handle.remove()


@dataclass
class LearnedNouns:
    """An inversion's way to embed prompts: with the noun vectors that were learned for each step.

    Args:
        vectors: For each noun (N, tokens of the noun, width), in sampling order.
    """

    vectors: dict[str, torch.Tensor]

    def __call__(self, model: Model, prompts: Sequence[str]) -> torch.Tensor:
        """(N, n, tokens, width); a prompt without any of the nouns is embedded as usual, N times."""
        steps = len(next(iter(self.vectors.values())))
        rows = []
        for prompt in prompts:
            places, vectors = occurrences(model.tokenizer, prompt, self.vectors)
            if vectors is not None:
                with override_tokens(model, places, vectors):
                    rows.append(model.embed([prompt] * steps))
            else:
                rows.append(model.embed(prompt).expand(steps, -1, -1))
        return torch.stack(rows, 1)


def occurrences(
    tokenizer: Any, prompt: str, vectors: Mapping[str, torch.Tensor]
) -> tuple[list[int], torch.Tensor | None]:
    """Positions of nouns in a prompt, and the vectors that belong there, (..., positions, width)."""
    places: list[int] = []
    parts: list[torch.Tensor] = []
    for noun, learned in vectors.items():
        try:
            found = tokens_of(tokenizer, prompt, noun)
        except EditbookError:  # this prompt does not have it
            continue
        places += found
        parts += [learned] * (len(found) // learned.shape[-2])
    return places, torch.cat(parts, -2) if parts else None


def noun_losses(maps: torch.Tensor, nouns: Sequence[Sequence[int]], background: torch.Tensor) -> torch.Tensor:
    """The three losses in the order of `LOSSES`, each in [0, 1], (3,).

    Args:
        maps: Cross-attention A, (height, width, tokens).
        nouns: The positions of each noun's tokens, over which its map is averaged.
        background: B, (height, width) of 0 and 1. If it is 0 everywhere there is nothing to leak to, and the loss is 0.
    """
    # The official code drops the first and the last position of the window only; most end tokens are still there.
    sharp = (100 * maps[..., 1:-1]).softmax(-1)
    sharp = torch.stack([sharp[..., [k - 1 for k in noun]].mean(-1) for noun in nouns])
    peaks = smooth(sharp).amax((1, 2))
    flat = torch.stack([maps[..., list(noun)].mean(-1).flatten() for noun in nouns])
    leak = functional.cosine_similarity(flat, background.flatten()[None], dim=-1).mean()
    cosines = functional.cosine_similarity(flat[:, None], flat[None], dim=-1)
    pairs = torch.ones_like(cosines, dtype=torch.bool).tril(-1)
    together = cosines[pairs].mean() if len(nouns) > 1 else torch.zeros_like(leak)
    return torch.stack([(1 - peaks).amax().clamp_min(0), leak, together])


def background_mask(maps: MeanMaps, nouns: Sequence[Sequence[int]], clusters: int, threshold: float) -> torch.Tensor:
    """B at the size of the cross-attention, (height, width) of 0 and 1: clusters of self-attention that no noun owns.

    Pixels are clustered by what they attend to (k-means, begun from the points farthest from each other). A cluster is
    background if no noun's map, scaled to [0, 1], has a mean above the threshold in it.
    """
    from scipy.cluster.vq import kmeans2

    own = maps.mean("self")
    size = own.shape[:2]
    points = own.flatten(0, 1).double().cpu().numpy()
    centres = [points[np.square(points - points.mean(0)).sum(1).argmax()]]
    while len(centres) < min(clusters, len(points)):
        centres.append(points[np.min([np.square(points - centre).sum(1) for centre in centres], 0).argmax()])
    _, labels = kmeans2(points, np.stack(centres), minit="matrix", iter=30, missing="raise")
    cross = maps.mean("cross")
    heat = torch.stack([cross[..., list(noun)].mean(-1) for noun in nouns])
    heat = heat - heat.amin((1, 2), keepdim=True)
    heat = heat / heat.amax((1, 2), keepdim=True).clamp_min(1e-12)
    large = functional.interpolate(heat[None], size=size, mode="bilinear", align_corners=False)[0]
    label = torch.from_numpy(labels).to(large.device).view(size)
    mask = torch.zeros(size, dtype=large.dtype, device=large.device)
    for cluster in label.unique():
        inside = label == cluster
        if large[:, inside].mean(1).max() <= threshold:
            mask[inside] = 1
    return functional.interpolate(mask[None, None], size=cross.shape[:2], mode="nearest")[0, 0]


class NounTuning(NullTextTuning):
    """Guidance that learns the nouns' vectors for a step, and then tunes the null embedding as NTI does.

    Learning is gradual: step i stops, before an update, once each loss is below beta exp(-50 i / (alpha N)), with the
    official (alpha, beta) of (25, 0.3), (50, 0.7) and (25, 0.9) in the order of `LOSSES`. Each step begins with the
    vectors of the last and with a fresh AdamW.

    Args:
        model: The model.
        prompt: The source prompt.
        vectors: For each noun what its tokens are read as to begin with, (tokens of the noun, width).
        background: See `noun_losses`.
        resolution: Height of the feature maps whose cross-attention is looked at.
        noun_steps: Evaluations of each step, at most.
        noun_rate: AdamW's learning rate.
        slack: Multiplies the thresholds.
        null_options: Of `NullTextTuning`.
    """

    def __init__(
        self,
        model: Model,
        prompt: str,
        vectors: Mapping[str, torch.Tensor],
        background: torch.Tensor,
        resolution: int,
        *,
        noun_steps: int,
        noun_rate: float,
        slack: float,
        **null_options: Any,
    ) -> None:
        super().__init__(condition=model.embed(prompt), null=model.embed(""), **null_options)
        self.vectors = dict(vectors)
        self.nouns = [tokens_of(model.tokenizer, prompt, noun) for noun in vectors]
        self.background, self.maps = background, MeanMaps({"cross": resolution})
        self.noun_steps, self.noun_rate, self.slack = noun_steps, noun_rate, slack
        limit = model.tokenizer.model_max_length
        tokens = model.tokenizer(prompt, padding="max_length", max_length=limit, return_tensors="pt")
        self._prompt, self._ids = prompt, tokens.input_ids.to(model.device)
        self.learned: list[dict[str, torch.Tensor]] = []
        self.noun_losses: list[list[list[float]]] = []

    def __call__(self, model: Model, z_t: torch.Tensor, t: int, i: int) -> torch.Tensor:
        """Learn for step i, then tune the null embedding."""
        share = 50 * i / len(self.inversion.moves)
        limits = [self.slack * beta * math.exp(-share / alpha) for beta, alpha in zip(_BETA, _ALPHA, strict=True)]
        vectors = {noun: vector.clone().requires_grad_() for noun, vector in self.vectors.items()}
        adam = torch.optim.AdamW(list(vectors.values()), lr=self.noun_rate)
        seen: list[list[float]] = []
        with torch.enable_grad():
            for _ in range(self.noun_steps):
                losses = self._losses(model, z_t, t, vectors)
                seen.append([float(loss) for loss in losses.detach()])
                if all(loss < limit for loss, limit in zip(seen[-1], limits, strict=True)):
                    break
                total = (losses * _WEIGHTS.to(losses)).sum()
                for vector, gradient in zip(
                    vectors.values(), torch.autograd.grad(total, list(vectors.values())), strict=True
                ):
                    vector.grad = gradient
                adam.step()
        self.maps.clear()
        self.vectors = {noun: vector.detach() for noun, vector in vectors.items()}
        self.learned.append(self.vectors)
        self.noun_losses.append(seen)
        self.condition = self._embed(model, self.vectors).detach()
        return super().__call__(model, z_t, t, i)

    def _losses(self, model: Model, z_t: torch.Tensor, t: int, vectors: Mapping[str, torch.Tensor]) -> torch.Tensor:
        self.maps.clear()
        with self.maps.attached(model.unet, (z_t.shape[-2], z_t.shape[-1]), 1):
            model.noise(z_t, t, self._embed(model, vectors))
        return noun_losses(self.maps.mean(), self.nouns, self.background)

    def _embed(self, model: Model, vectors: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """As `Model.embed`, but with the gradient."""
        places, learned = occurrences(model.tokenizer, self._prompt, vectors)
        assert learned is not None
        with override_tokens(model, places, learned):
            return model.text_encoder(self._ids)[0].to(model.dtype)


@dataclass
class PromptLearningInversion(TunedInversion):
    """An inversion with the record of both tunings.

    Args:
        noun_losses: For each step and evaluation the three losses, in the order of `LOSSES`.
        background: B, (height, width) of 0 and 1, as it was found.
        nouns: The words whose vectors were learned.
    """

    noun_losses: list[list[list[float]]] = field(default_factory=list)
    background: torch.Tensor | None = field(default=None, repr=False)
    nouns: tuple[str, ...] = ()


@dataclass
class DynamicPrompt(NullText):
    """Keeps nouns off each other and off the background, then does what Null-text Inversion does.

    Where a noun's cross-attention leaks, Prompt-to-Prompt changes what nobody asked for. At each timestep the vectors
    that the text encoder reads for the nouns are moved a little, until each noun's map has a peak (attention
    balancing), no two maps overlap (disjoint objects) and none lies on the background (background leakage). The survey
    says that the three losses tune the null embedding; they tune the nouns. The null embedding's turn comes after, with
    its own loss.

    Two things differ from the official code. A hook overrides the noun's vectors, where the code adds words to the
    vocabulary and restores all other rows after every update; and the null embedding begins each step where the last
    one ended, as in NTI, where the code begins with the empty prompt's again. A noun of several tokens learns one
    vector for each. With one noun only there is no disjoint loss.

    Cost: as NTI's, and one evaluation for each of the noun iterations.

    Args:
        nouns: The words to learn. Left empty they are the pocket world's object words that the source prompt has.
        noun_steps: Evaluations of the three losses in each step, at most; 0 is Null-text Inversion.
        noun_rate: AdamW's learning rate (torch's default, as in the official code).
        slack: Multiplies the thresholds below which a step's losses are good enough; infinity is NTI but for one
            evaluation a step, 0 never stops.
        clusters: V, of the k-means on self-attention that finds the background.
        background_threshold: TH, the mean of a noun's scaled map above which a cluster is the noun's.
        inner_steps: Updates of the null embedding in each step.
        tolerance: As in Null-text Inversion, but 0: the official code does not stop early here.
    """

    id: ClassVar[str] = "dynamic-prompt-learning"
    inner_steps: int = 51
    tolerance: float = 0.0
    nouns: Sequence[str] = ()
    noun_steps: int = option(21, low=0)
    noun_rate: float = option(1e-3, above=0)
    slack: float = option(1.0, low=0, high=math.inf)
    clusters: int = option(5, low=2)
    background_threshold: float = option(0.2, low=0, high=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.nouns, str):
            raise EditbookError(f"nouns is a list of words, e.g. ({self.nouns!r},), not a string.")

    def chosen(self, tokenizer: Any, prompt: str) -> dict[str, list[int]]:
        """The nouns of a prompt with the positions of the tokens of their first occurrence.

        Raises:
            EditbookError: A given noun is not in the prompt, or none was given and none is known.
        """
        if self.nouns:
            return {noun: tokens_of(tokenizer, prompt, noun, 0) for noun in self.nouns}
        if not prompt.strip():
            raise EditbookError(
                "dynamic-prompt-learning learns words of the prompt it inverts under, and cannot follow an empty one."
            )
        known = set(prompt.lower().replace(",", " ").replace(".", " ").split())
        found = {word: tokens_of(tokenizer, prompt, word, 0) for word in OBJECTS if word in known}
        if not found:
            raise EditbookError(
                f"No object word of the pocket world is in {prompt!r}: name the words to learn, nouns=('...',)."
            )
        return found

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
    ) -> PromptLearningInversion:
        """Up by DDIM inversion, watched by attention; down once, with both tunings.

        Raises:
            EditbookError: The model computes in a half precision, or no noun is known.
        """
        needs_single_precision(model, self.id)
        callbacks = list(callbacks)
        nouns = self.chosen(model.tokenizer, prompt)
        size = (z_0.shape[-2], z_0.shape[-1])
        cross, own = (map_height(model.unet, size[0], limit=limit) for limit in (16, 32))
        watched = MeanMaps({"cross": cross, "self": own})
        with watched.attached(model.unet, size, 1):
            pivot = ddim_inversion(model, z_0, prompt, schedule, callbacks=callbacks)
        positions = [tokens_of(model.tokenizer, prompt, noun) for noun in nouns]
        background = background_mask(watched, positions, self.clusters, self.background_threshold)
        ids = torch.tensor(model.tokenizer(prompt).input_ids)
        table = model.text_encoder.get_input_embeddings().weight
        tuning = NounTuning(
            model,
            prompt,
            {noun: table[ids[place].to(table.device)].detach().clone() for noun, place in nouns.items()},
            background,
            cross,
            noun_steps=self.noun_steps,
            noun_rate=self.noun_rate,
            slack=self.slack,
            inversion=pivot,
            scale=guidance_scale,
            inner_steps=self.inner_steps,
            learning_rate=self.learning_rate,
            tolerance=self.tolerance,
        )
        follow(model, pivot.z_T, pivot.moves, tuning, callbacks=callbacks)
        return PromptLearningInversion(
            pivot.latents,
            pivot.noises,
            pivot.moves,
            prompt,
            null=torch.stack(tuning.embeddings),
            source_scale=guidance_scale,
            embed=LearnedNouns({noun: torch.stack([step[noun] for step in tuning.learned]) for noun in nouns}),
            losses=tuning.losses,
            noun_losses=tuning.noun_losses,
            background=background,
            nouns=tuple(nouns),
        )


@dataclass
class DynamicPromptLearning(PromptToPrompt):
    """Wang, Yang, Yang, Butt and van de Weijer 2023: Prompt-to-Prompt with the prompt that was learned.

    The survey's Table 1 has it under fine-tuning, without a tick; its text under inversion, where it belongs: no weight
    changes. Words of the target prompt that are learned nouns act with their learned vectors, too; a word that replaces
    one acts with its own. The fractions are the official script's (40 of 50 steps, and the first of its 20 to 40).
    """

    card: ClassVar[Card] = Card(
        id="dynamic-prompt-learning",
        title="Dynamic Prompt Learning: Addressing Cross-Attention Leakage for Text-Based Image Editing",
        authors="Wang, Yang, Yang, Butt, van de Weijer",
        year=2023,
        venue="NeurIPS",
        paper="2309.15664",
        branch="tuning_free/inversion",
        inputs=("source prompt", "target prompt"),
        edit_types=("texture", "shape"),
    )
    cross_replace: float = 0.8
    self_replace: float = 0.4
    inversion: str = "dynamic-prompt-learning"
