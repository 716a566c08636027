"""MAG-Edit: the latent inside a mask is nudged until the new word's attention is there (Mao et al. 2024)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch.nn import functional

from ....attention import Capture, Chain, Control, Site, heights, map_height, tokens_of
from ....errors import EditbookError
from ....masks import paste_source_row
from ....model import Model
from ....options import fraction, option
from ....pocket import changed_words
from ....result import Edit
from ....sampling import ClassifierFreeGuidance, Move, Schedule, Step, whole_steps
from ...base import Card, Request, finish, sample_back
from .prompt_to_prompt import PromptToPrompt


class WordMaps(Control):
    """Keeps the edit's cross-attention of one resolution, head by head and with the graph, while it is `on`.

    Args:
        resolution: Height of the feature maps; decoder and encoder, not the middle block.
    """

    def __init__(self, resolution: int) -> None:
        self.resolution, self.on = resolution, False
        self.maps: list[torch.Tensor] = []

    def wants(self, site: Site) -> bool:
        """Cross-attention on the way down and up."""
        return site.kind == "cross" and site.side != "mid" and site.resolution == self.resolution

    def active(self, site: Site) -> bool:
        """Only when asked."""
        return self.on

    def apply(self, probabilities: torch.Tensor, site: Site) -> torch.Tensor:
        """Keep the last row, (heads, pixels, tokens); change nothing."""
        self.maps.append(probabilities[-1])
        return probabilities


def token_ratio(maps: Sequence[torch.Tensor], tokens: Sequence[int], mask: torch.Tensor) -> torch.Tensor:
    """r, (layers, heads, tokens): the share of a pixel's attention that each token gets, mean over the mask.

    The share is taken of the row's sum, which is not 1 behind Prompt-to-Prompt's refinement.

    Args:
        maps: Of each layer, (heads, pixels, tokens).
        tokens: Positions of the words to raise.
        mask: Which pixels count, bool (pixels,).
    """
    return torch.stack([(a / a.sum(-1, keepdim=True))[:, mask][..., list(tokens)].mean(1) for a in maps])


def spatial_ratio(maps: Sequence[torch.Tensor], tokens: Sequence[int], mask: torch.Tensor) -> torch.Tensor:
    """q, (layers, heads, tokens): the share of a token's attention that lies inside the mask; as `token_ratio`."""
    words = [a[..., list(tokens)] for a in maps]
    return torch.stack([word[:, mask].sum(1) / word.sum(1).clamp_min(1e-12) for word in words])


@dataclass
class GuidedStep:
    """What guidance did in one step.

    Args:
        step: i.
        token: Mean token ratio before each update, and after the last.
        spatial: Mean spatial ratio, likewise.
        field: Norm over the channels of what was added to the latent in all, (height, width).
    """

    step: int
    token: list[float] = field(default_factory=list)
    spatial: list[float] = field(default_factory=list)
    field: torch.Tensor | None = None


@dataclass
class MagEditResult(Edit):
    """An edit with the record of its guidance, a `GuidedStep` for each guided step."""

    guided: list[GuidedStep] = field(default_factory=list)


class AttentionAdjustedGuidance:
    """Guidance that first moves the edit's latent z downhill on the ratios' losses, inside a mask.

    z <- z - lambda sigma_t M grad L, with sigma_t = sqrt((1 - alpha_t) / alpha_t) and
    L = a mean (1 - r)^2 + b mean (1 - q)^2. The step is then made from the z that results. The loop does not know of it
    and steps from the old one; `carry`, a blend, adds what is missing, which is exact since a step is linear in z.

    Args:
        guidance: Makes the noise estimate of all rows.
        moves: The path.
        maps: Collects the edit's maps; attached to the U-Net behind Prompt-to-Prompt's control.
        tokens: Positions of the words to raise.
        mask: M at the latent's size, (1, 1, height, width).
        cells: The mask at the maps' size, bool (pixels,).
        options: The method's.
    """

    def __init__(
        self,
        guidance: ClassifierFreeGuidance,
        moves: Sequence[Move],
        maps: WordMaps,
        tokens: Sequence[int],
        mask: torch.Tensor,
        cells: torch.Tensor,
        options: MagEdit,
    ) -> None:
        self.guidance, self.moves, self.maps, self.tokens = guidance, moves, maps, tokens
        self.mask, self.cells, self.options = mask, cells, options
        self.record: list[GuidedStep] = []
        self._shift: torch.Tensor | None = None

    def __call__(self, model: Model, z_t: torch.Tensor, t: int, i: int) -> torch.Tensor:
        """The noise estimate at the latents that guidance came to."""
        self._shift = None
        if self.options.iterations and i < int(self.options.guided * len(self.moves)):
            self._shift = self._descend(model, z_t, t, i)
            z_t = torch.cat([z_t[:-1], z_t[-1:] + self._shift])
        return self.guidance(model, z_t, t, i)

    def carry(self, step: Step) -> torch.Tensor:
        """z_next as it is when the step starts from the moved latent."""
        if self._shift is None:
            return step.z_next
        scale = (step.move.alpha_to / step.move.alpha_from) ** 0.5
        return torch.cat([step.z_next[:-1], step.z_next[-1:] + scale * self._shift])

    def _descend(self, model: Model, z_t: torch.Tensor, t: int, i: int) -> torch.Tensor:
        """What is to be added to the edit's latent at step i."""
        alpha = self.moves[i].alpha_from
        rate = self.options.scale * ((1 - alpha) / alpha) ** 0.5
        guided = GuidedStep(i)
        with _single_precision(model):
            condition = self.guidance.condition
            condition = (condition[i] if condition.ndim == 4 else condition).to(model.dtype)
            source, edit = z_t[:1].to(model.dtype), z_t[-1:].to(model.dtype)
            mask, start = self.mask.to(edit), edit
            for iteration in range(self.options.iterations + 1):
                last = iteration == self.options.iterations
                with torch.set_grad_enabled(not last):
                    edit = edit.detach().requires_grad_(not last)
                    token, spatial = self._ratios(model, torch.cat([source, edit]), t, condition)
                    guided.token.append(float(token.detach().mean()))
                    guided.spatial.append(float(spatial.detach().mean()))
                    if last or guided.token[-1] > self.options.enough:
                        break
                    options = self.options
                    loss = options.token_weight * (1 - token).square().mean()
                    loss = loss + options.spatial_weight * (1 - spatial).square().mean()
                    (gradient,) = torch.autograd.grad(loss, edit)
                edit = edit.detach() - rate * gradient * mask
            shift = (edit.detach() - start).to(z_t)
        guided.field = shift[0].float().norm(dim=0).cpu()
        self.record.append(guided)
        return shift

    def _ratios(
        self, model: Model, z_t: torch.Tensor, t: int, condition: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Token and spatial ratio of the edit, after Prompt-to-Prompt."""
        self.maps.maps, self.maps.on = [], True
        try:
            model.noise(z_t, t, condition)
            seen = self.maps.maps, self.tokens, self.cells
            return token_ratio(*seen), spatial_ratio(*seen)
        finally:
            self.maps.maps, self.maps.on = [], False


@contextmanager
def _single_precision(model: Model) -> Iterator[None]:
    """A context in which a U-Net of half precision computes in float32: the weights come back to the bit."""
    dtype = model.dtype
    if dtype.itemsize >= 4:
        yield
        return
    model.unet.float()
    try:
        yield
    finally:
        model.unet.to(dtype)


class LateBlend:
    """Pastes the source outside a mask, in the last part of the steps.

    Args:
        mask: (1, 1, height, width).
        last: The fraction of the steps in which it acts.
    """

    def __init__(self, mask: torch.Tensor, last: float) -> None:
        self.mask, self.last = mask, last

    def __call__(self, step: Step) -> torch.Tensor:
        """z_next, its outside the source's when it is late enough."""
        late = step.total - step.i <= whole_steps(self.last, step.total)
        return paste_source_row(step, self.mask) if late else step.z_next


@dataclass
class MagEdit(PromptToPrompt):
    """Mao, Chen, Gu, Fang and Shou 2024: Prompt-to-Prompt, with a gradient where it does not listen.

    In a busy picture a new word's attention is weak or lies on the wrong thing, and Prompt-to-Prompt, which leaves the
    maps of new words to themselves, does nothing or changes something else. Given a mask, the noisy latent inside it is
    moved, in the first half of the steps, until there the word wins over other words (token ratio) and the word is
    there rather than elsewhere (spatial ratio). In the last steps the source comes back outside the mask, grown by one
    cell on each side.

    Only the token ratio is in the official script, whose defaults these are. The spatial ratio's loss mean (1 - q)^2 is
    our form; the official code has a linear one that nothing calls. Each update costs two evaluations, of source and
    edit, and a backward pass; it is made in float32 whatever the model computes in. The words must be new in the target
    prompt: all others read the source's maps, in which there is nothing to move. So a removal needs a phrase for what
    is to be seen instead, such as "empty ground".

    Args:
        words: The words of the target prompt to raise, one string; empty takes those that the source has not.
        scale: lambda, the size of an update, times sigma_t = sqrt((1 - alpha_t) / alpha_t).
        token_weight: a of the token ratio's loss.
        spatial_weight: b of the spatial ratio's loss.
        iterations: Updates in each guided step, at most; 0 is Prompt-to-Prompt with the late blend.
        guided: The fraction of the steps with guidance, from the first.
        enough: A step stops when the mean token ratio is above this; 1 never stops, as the official code.
        resolution: Height of the feature maps that are read; None is 16 in Stable Diffusion, see `map_height`.
        blend_last: The fraction of the steps, the last ones, in which the source is pasted outside the mask.
    """

    card: ClassVar[Card] = Card(
        id="mag-edit",
        title="MAG-Edit: Localized Image Editing in Complex Scenarios via Mask-Based Attention-Adjusted Guidance",
        authors="Mao, Chen, Gu, Fang, Shou",
        year=2024,
        venue="ACM Multimedia",
        paper="2312.11396",
        branch="tuning_free/attention",
        inputs=("source prompt", "target prompt", "mask"),
        edit_types=("texture", "shape", "style", "non-rigid", "object removal", "object addition"),
    )
    generates: ClassVar[bool] = False
    edit: str = "refine"
    self_replace: float = 0.5
    inversion: str = "null-text-inversion"
    words: str = ""
    scale: float = option(2.5, low=0)
    token_weight: float = option(1.0, low=0)
    spatial_weight: float = option(0.0, low=0)
    iterations: int = option(15, low=0)
    guided: float = fraction(0.5)
    enough: float = option(1.0, low=0, high=1)
    resolution: int | None = None
    blend_last: float = fraction(0.3)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.edit != "refine" or self.blend is not None:
            raise EditbookError(
                "mag-edit raises words that are new, and blends with its mask: it needs edit='refine' and blend=None."
            )

    def __call__(self, model: Model, request: Request) -> MagEditResult:
        """Prompt-to-Prompt in which the edit's latent is moved before each of the first steps."""
        if request.mask is None:
            raise EditbookError(
                "mag-edit needs a mask of the place to edit: edit(..., mask=array of height and width)."
            )
        prompts = [request.source, request.target]
        model.embed(prompts)  # before the inversion: prompts that cannot be used should cost no walk
        side = model.latent_shape[1]
        control = self.control(model.tokenizer, request.source, request.target, side)
        tokens = self._new_tokens(model, request, control.known)
        height = self.resolution or map_height(model.unet, side, below_finest=True)
        levels = heights(model.unet, side)
        if height not in levels:
            raise EditbookError(f"resolution {height} is none of this model's, {levels}.")
        cells = functional.adaptive_max_pool2d((request.mask > 0).float(), height).flatten() > 0
        grown = functional.max_pool2d(request.mask, 3, stride=1, padding=1)
        maps = WordMaps(height)
        capture = Capture(resolutions=[r for r in levels if r <= 32][:2] or levels[-1:])

        inversion = self.invert(model, request, Schedule(model.scheduler, self.steps))
        # Bare, since sample_back wraps it as the inversion asks: our moved latent is inside of that.
        bare = replace(inversion, guide=None).guidance(model, prompts, self.guidance_scale, self.source_guidance_scale)
        assert isinstance(bare, ClassifierFreeGuidance)
        guidance = AttentionAdjustedGuidance(bare, inversion.moves, maps, tokens, request.mask, cells, self)
        z_0 = sample_back(
            model,
            inversion,
            prompts,
            self.guidance_scale,
            guidance=guidance,
            attention=Chain([control, maps, capture]),
            blends=[guidance.carry, LateBlend(grown, self.blend_last)],
            callbacks=request.callbacks,
        )
        edit = finish(model, request, inversion, z_0, mask=grown, attention=capture.maps(model.tokenizer, prompts))
        return MagEditResult(**vars(edit), guided=guidance.record)

    def _new_tokens(self, model: Model, request: Request, known: torch.Tensor) -> list[int]:
        """The positions of the words to raise, none of which may have a partner in the source prompt.

        Raises:
            EditbookError: There is no such word, or one has a partner.
        """
        words = self.words.split() or [
            word.strip(".,;:!?") for word in changed_words(request.source, request.target).target
        ]
        if not words:
            raise EditbookError("mag-edit raises words that only the target prompt has, and this target has none.")
        tokens = [k for word in dict.fromkeys(words) for k in tokens_of(model.tokenizer, request.target, word)]
        new = [k for k in tokens if not known[k]]
        if len(new) < len(tokens) and (self.words or not new):
            raise EditbookError(
                f"All of {' '.join(words)!r} must be new in the target prompt: words of the source, too, read the "
                "source's attention maps and cannot be raised."
            )
        return new
