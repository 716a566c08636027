"""MFL: entities, a query that chooses among them, several candidates, and a choice among those. Our reconstruction."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from ....clip_guidance import load_clip_distance
from ....errors import EditbookError
from ....masks import MaskShape, latent_mask, mask_array, restore_background
from ....masks.background import seam
from ....masks.segment import outside_model
from ....model import Model
from ....pocket import changed_words
from ....ranking import similarities
from ....result import Edit
from ...base import Card, Request
from .blended_latent_diffusion import BlendedLatentDiffusion


@dataclass(frozen=True)
class Candidate:
    """One result, and what speaks for it.

    Args:
        picture: The result.
        fits: Cosine of what is in the mask with the target.
        old: Cosine of what is in the mask with the query: the old thing should be gone.
        seam: How visible the mask's border is, see `masks.background.seam`.
        score: fits - old_weight * old - seam_weight * seam.
    """

    picture: Image.Image
    fits: float
    old: float
    seam: float
    score: float


@dataclass
class MFL(BlendedLatentDiffusion):
    """Liu, Zhang and co-authors 2023: the user gives two texts and no mask. A RECONSTRUCTION.

    No code was published, and we could read of the paper only its abstract, the beginning and one caption. They say:
    a unified mask is made of the class-agnostic masks of Open-World Entity Segmentation by a *query* text; a diffusion
    model draws several candidates under a *conditional* text; a multimodal assessment picks one. The rest is ours:

    1. Entities: all that the segmenter finds, and what is left over. They do not overlap, and cover the picture.
    2. The mask: the entity that is nearest to the query for CLIP, cut out on grey, with all that are hardly further.
    3. Candidates: Blended Latent Diffusion under the target prompt, see there for its options.
    4. Assessment: `Candidate.score`.

    Args:
        query: What is to be changed, e.g. "a red car"; "" takes the words that only the source prompt has.
        margin: How much less similar than the nearest an entity may be, and still belong to the mask.
        dilate: Pixels by which the mask is widened.
        invert: Edit what is around the entity: another background.
        old_weight: Of the likeness to the query in the assessment.
        seam_weight: Of the visible border.
        segmenter: What finds the entities: a name for `perception.load_segmenter`, or an object with
            `everything(image)`; None is the pocket stand-in.
    """

    card: ClassVar[Card] = Card(
        id="mfl",
        title="Text-guided Mask-free Local Image Retouching",
        authors="Liu, Zhang, and co-authors",
        year=2023,
        venue="ICME",
        paper="2212.07603",
        branch="tuning_free/mask",
        inputs=("source prompt (optional)", "target prompt", "mask (optional)"),
        edit_types=("texture", "object removal"),
    )
    candidates: int = 8
    query: str = ""
    margin: float = 0.02
    dilate: int = 1
    invert: bool = False
    old_weight: float = 0.5
    seam_weight: float = 0.1
    segmenter: Any = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("margin", "old_weight", "seam_weight"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise EditbookError(f"{name} of mfl is a number of at least 0, got {getattr(self, name)!r}.")
        self.shape = MaskShape(dilate=self.dilate, invert=self.invert)

    def asked(self, request: Request) -> str:
        """The query.

        Raises:
            EditbookError: There is none, and the prompts do not tell.
        """
        gone = self.query or " ".join(changed_words(request.source, request.target).source)
        if not gone.strip():
            raise EditbookError(
                "mfl must know what to look for: give query='a red car', or a source prompt with words that the target "
                "prompt does not have."
            )
        return gone

    def entities(self, image: Image.Image) -> list[np.ndarray]:
        """Masks that do not overlap and cover the picture, bool (H, W) each; the last one is what nobody claimed.

        Raises:
            EditbookError: The segmenter finds nothing.
        """
        masks, _ = outside_model("segmenter", self.segmenter).everything(image)
        found: list[np.ndarray] = []
        free = np.ones((image.height, image.width), bool)
        for mask in masks:
            own = np.asarray(mask, bool) & free
            if own.any():
                found.append(own)
                free &= ~own
        if not found:
            raise EditbookError("The segmenter found no entity in the picture: give a mask, or another segmenter.")
        return [*found, free] if free.any() else found

    def find(self, model: Model, image: Image.Image, query: str) -> tuple[np.ndarray, list[np.ndarray], np.ndarray]:
        """The unified mask, float32 (H, W); the entities; and their cosines with the query."""
        found = self.entities(image)
        clip = load_clip_distance(self.clip, str(model.device))
        near = similarities([image] * len(found), query, clip, [mask.astype(np.float32) for mask in found])
        unified = np.any(
            [mask for mask, value in zip(found, near, strict=True) if value >= near.max() - self.margin], 0
        )
        return self.shape(unified.astype(np.float32)), found, near

    def assess(self, model: Model, request: Request, query: str, pictures: list[Image.Image]) -> list[Candidate]:
        """The candidates with their scores, the best first."""
        assert request.image is not None
        assert request.pixel_mask is not None
        clip, masks = load_clip_distance(self.clip, str(model.device)), [request.pixel_mask] * len(pictures)
        fits, old = (similarities(pictures, text, clip, masks) for text in (request.target, query))
        whole = (request.pixel_mask > 0.5).all()
        judged = []
        for picture, new, gone in zip(pictures, fits, old, strict=True):
            border = 0.0 if whole else seam(picture, request.image, request.pixel_mask)
            score = float(new - self.old_weight * gone - self.seam_weight * border)
            judged.append(Candidate(picture, float(new), float(gone), border, score))
        return sorted(judged, key=lambda candidate: -candidate.score)

    def __call__(self, model: Model, request: Request) -> Edit:
        """Find the mask, draw the candidates, return the best."""
        image, query = request.image, self.asked(request)
        if image is None:
            raise EditbookError("mfl needs a picture.")
        if request.pixel_mask is None:
            mask, _, _ = self.find(model, image, query)
            if not mask.any():
                raise EditbookError(f"Nothing is left of the mask for {query!r}: widen it with dilate.")
            request = replace(request, pixel_mask=mask, mask=latent_mask(mask, model.random_latent(0)))
        assert request.pixel_mask is not None
        judged = self.assess(model, request, query, self.draw(model, request))
        made = Edit(
            restore_background(model, judged[0].picture, image, request.pixel_mask, self.background),
            image,
            reconstruction=model.decode(model.encode(image)),
            mask=mask_array(self.latent_mask(model, request.pixel_mask)),
        )
        made.settings["query"] = query
        made.settings["scores"] = [round(candidate.score, 4) for candidate in judged]
        return made
