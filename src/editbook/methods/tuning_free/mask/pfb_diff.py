"""PFB-Diff: deep features of the source around the mask, the text's inside, and words that stay in (Huang et al.)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from ....attention import AttentionMaps, Capture, Chain, heights, map_height, refine_mapper, sites, tokens_of
from ....attention.feature_blend import MASK_GRIDS, BlendFeatures, MaskWords, Passage, passages
from ....errors import EditbookError, unknown
from ....inversion import make_inverter
from ....inversion.ddim import DDIM
from ....masks import BACKGROUNDS, KeepSource, restore_background
from ....model import Model
from ....result import Edit
from ....sampling import Attention, Guidance, Schedule
from ...base import Card, InvertingMethod, Request, finish, sample_back

PRESETS: dict[str, dict[str, Any]] = {
    "object": {"feature_blend": 1.0, "latent_blend": 0.5},
    "background": {"feature_blend": 0.8, "latent_blend": 0.2},
}


def feature_places(model: Model, levels: int, preset: str = "object") -> list[Passage]:
    """The passages of the coarsest levels at which features are blended.

    In Stable Diffusion, with 2 levels, these are the official code's inputs of the encoder's blocks 8 to 11 (for
    backgrounds from 7 on), of the middle, and of the decoder's blocks 1 to 5.
    """
    side = model.latent_shape[1]
    chosen = heights(model.unet, side)[-levels:]

    def fits(place: Passage) -> bool:
        if place.resolution not in chosen or (place.side == "up" and place == Passage("up", chosen[-1], 0)):
            return False
        return preset == "background" or place != Passage("down", chosen[0], 0)

    return [place for place in passages(model.unet, (side, side)) if fits(place)]


def word_layers(model: Model, levels: int, preset: str = "object") -> list[int]:
    """The cross-attention, by `Site.index`, in which words are masked: the blended levels and one finer.

    In Stable Diffusion, with 2 levels, these are the official code's: all at 16 cells and the middle; at 32 the
    decoder's, without its last block for objects, and for backgrounds the encoder's as well.
    """
    side = model.latent_shape[1]
    finer = heights(model.unet, side)[: -levels or None][-1:]
    known = [site for site in sites(model.unet, (side, side)).values() if site.kind == "cross"]
    last = max((site.index for site in known if site.resolution in finer), default=-1)
    fine = [site.index for site in known if site.resolution in finer]
    if preset == "object":
        fine = [site.index for site in known if site.resolution in finer and site.side == "up" and site.index != last]
    return [site.index for site in known if site.resolution < min(finer, default=side + 1)] + fine


class OnInvertedPath:
    """Guidance whose source row sees what the inversion saw at this timestep: the latent one level further down.

    DDIM inversion estimated its noise there. So the row's estimate is the inversion's own, and the row walks exactly
    along the inverted path.

    Args:
        guidance: Of all rows.
        latents: The inversion's, in sampling order.
    """

    def __init__(self, guidance: Guidance, latents: Sequence[torch.Tensor]) -> None:
        self.guidance, self.latents = guidance, latents

    def __call__(self, model: Model, z_t: torch.Tensor, t: int, i: int) -> torch.Tensor:
        """The noise estimate of all rows."""
        return self.guidance(model, torch.cat([self.latents[i + 1], z_t[1:]]), t, i)


@dataclass
class PFBDiff(InvertingMethod):
    """Huang, Tu and Xu 2025 (first 2023): progressive feature blending, and attention masks.

    Blended noise looks right to a later step only if both parts already fit. So not (only) latents are blended but the
    U-Net's features at its coarse levels, where they mean something: outside the mask they are those of the source on
    its inverted path. And the words that the edit brings are masked in cross-attention, so that they do not colour what
    lies outside. Latents are blended in the early steps only; later the seam may heal, so the background is close to
    the source but not bit-exact (`background="paste"` makes it so).

    The official code makes three calls a step: the source, whose latent is one level cleaner than the timestep says,
    the pair that the inversion saw; then the target without and with text. Here they are one batch, which is exactly
    the same (`reference="inverted"`). One quirk is not followed: before the middle block the official code blends the
    running feature with the source's *output* of the middle, one index too far.

    Args:
        preset: "object", where the mask is the object, or "background", where it is all but the object
            (`mask_options={"invert": True}`); it says what the options that are None are, and the layers.
        levels: Features are blended at so many of the coarsest levels.
        feature_blend: Fraction of the steps, from the first, with blended features and masked words; 1 for objects, 0.8
            for backgrounds; 0 leaves them out.
        latent_blend: Fraction of the steps with blended latents; 0.5 for objects, 0.2 for backgrounds. (The official
            comparison, n / 50 > 0.5, ends one step earlier.)
        words: Words of the target prompt that act inside the mask only: a word, several, or a list. None is what the
            source prompt does not have; an empty list masks nothing, as in the official notebook.
        keep: The same for words that act outside the mask only: the object's, where the background changes.
        mask_resize: How the mask comes to the grids of features and words, see `feature_blend.mask_at`: "bicubic" in
            the official code.
        start: Where the target starts: from the "inverted" picture, or from "noise", the official notebook's way to a
            wholly new object or background.
        strength: How far up the picture is inverted, in (0, 1]; 0.8 in the notebook where the object shall keep its
            looks.
        reference: What the source row sees: "inverted", see above, which only plain DDIM inversion allows; or the "row"
            itself, as the inversion samples it. "auto" takes the first where it can.
        background: What is done about the background afterwards, see `masks.restore_background`.
    """

    card: ClassVar[Card] = Card(
        id="pfb-diff",
        title="PFB-Diff: Progressive Feature Blending Diffusion for Text-driven Image Editing",
        authors="Huang, Tu, Xu",
        year=2025,
        venue="Neural Networks",
        paper="2306.16894",
        branch="tuning_free/mask",
        inputs=("source prompt", "target prompt", "mask"),
        edit_types=("texture", "object addition"),
    )
    preset: str = "object"
    levels: int = 2
    feature_blend: float | None = None
    latent_blend: float | None = None
    words: Any = None
    keep: Any = ()
    mask_resize: str = "area"
    start: str = "inverted"
    strength: float = 1.0
    reference: str = "auto"
    background: str = "none"

    def __post_init__(self) -> None:
        super().__post_init__()
        choices: dict[str, Sequence[str]] = {
            "preset": tuple(PRESETS),
            "mask_resize": MASK_GRIDS,
            "start": ("inverted", "noise"),
            "reference": ("auto", "inverted", "row"),
            "background": BACKGROUNDS,
        }
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise unknown(f"{name} of pfb-diff", getattr(self, name), known)
        for name in ("feature_blend", "latent_blend"):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, int | float) and 0 <= value <= 1):
                raise EditbookError(f"{name} is a fraction of the steps in [0, 1], or None, got {value!r}.")
        for name in ("words", "keep"):
            value = getattr(self, name)
            listed = [value] if isinstance(value, str) or value is None else value
            if not isinstance(listed, list | tuple) or not all(isinstance(word, str | None) for word in listed):
                raise EditbookError(f"{name} is a word or a list of words, got {value!r}.")
        if self.start == "noise" and self.strength < 1:
            raise EditbookError("start='noise' of pfb-diff begins at the top: it needs strength 1.")
        plain = make_inverter(self.inversion, self.inversion_options) == DDIM()
        if self.reference == "inverted" and not plain:
            raise EditbookError("reference='inverted' of pfb-diff needs plain DDIM inversion; take 'auto' or 'row'.")
        self.inverted = plain and self.reference != "row"

    def setting(self, name: str) -> Any:
        """An option's value, or what the preset says."""
        return PRESETS[self.preset][name] if getattr(self, name) is None else getattr(self, name)

    def tokens(self, tokenizer: Any, request: Request, words: Any) -> list[int]:
        """Positions of words in the target prompt; None are those that the source prompt does not have."""
        if words is None:
            known = refine_mapper(tokenizer, request.source, request.target).sum(0) > 0
            return [k for k in range(1, len(known)) if not known[k]]
        listed = [words] if isinstance(words, str) else words
        return sorted({token for word in listed for token in tokens_of(tokenizer, request.target, word)})

    def controls(self, model: Model, request: Request, mask: torch.Tensor, stop: int) -> list[Attention]:
        """What is blended and masked in the first steps."""
        inside, outside = (self.tokens(model.tokenizer, request, words) for words in (self.words, self.keep))
        if not stop:
            return []
        found: list[Attention] = [
            BlendFeatures(mask, feature_places(model, self.levels, self.preset), stop, self.mask_resize)
        ]
        if inside or outside:
            layers = word_layers(model, self.levels, self.preset)
            found.append(MaskWords(mask, inside, outside, layers, stop, self.mask_resize))
        return found

    def __call__(self, model: Model, request: Request) -> Edit:
        """Invert, then sample source and target side by side."""
        if request.image is None or request.mask is None or request.pixel_mask is None:
            raise EditbookError("pfb-diff needs a picture and a mask.")
        mask = (request.mask > 0.5).to(request.mask)
        if not mask.any():
            raise EditbookError("No cell of the latent is inside the mask: raise its values above one half.")
        count = len(heights(model.unet, model.latent_shape[1]))
        if not 1 <= self.levels <= count:
            raise EditbookError(
                f"levels of pfb-diff must be from 1 to {count}, those of this U-Net, got {self.levels}."
            )
        schedule = Schedule(model.scheduler, self.steps).part(self.strength)
        if not schedule.timesteps:
            raise EditbookError(f"strength {self.strength} of {self.steps} steps leaves no step to take; raise either.")
        prompts = [request.source, request.target]
        model.embed(prompts)  # before the inversion: prompts that cannot be used should cost no walk
        skipped = self.steps - self.inverter.walk_length(schedule)
        features, latents = (
            max(round(self.setting(name) * self.steps) - skipped, 0) for name in ("feature_blend", "latent_blend")
        )
        capture = Capture(resolutions=[map_height(model.unet, model.latent_shape[1], below_finest=True)])
        control = Chain([*self.controls(model, request, mask, features), capture])

        inversion = self.invert(model, request, schedule)
        path = inversion.latents[1:]
        guidance: Guidance | None = None
        if self.inverted:
            guidance = OnInvertedPath(inversion.guidance(model, prompts, self.guidance_scale), inversion.latents)
        noise = model.random_latent(request.seed)
        z_0 = sample_back(
            model,
            inversion,
            prompts,
            self.guidance_scale,
            z_T=torch.cat([inversion.z_T, noise]) if self.start == "noise" else None,
            guidance=guidance,
            attention=control,
            blends=[KeepSource(path, [mask] * latents + [1.0] * (len(path) - latents), slice(1, None))],
            callbacks=request.callbacks,
        )
        maps = AttentionMaps(capture.records, model.tokenizer, prompts)
        edit = finish(model, request, inversion, z_0, mask=mask, attention=maps)
        edit.image = restore_background(model, edit.image, request.image, request.pixel_mask, self.background)
        return edit
