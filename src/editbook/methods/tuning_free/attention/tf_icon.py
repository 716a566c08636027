"""TF-ICON: an object of one picture put into another, self-attention assembled from both (Lu, Liu and Kong 2023)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch.nn import functional

from ....attention import Control, Projected, Site
from ....errors import EditbookError
from ....images import as_image
from ....inversion.exceptional import exceptional_embedding, exceptional_inversion
from ....masks import latent_mask, mask_array
from ....masks.place import box_mask, box_of, check_box, object_mask, paste, place
from ....model import Model
from ....options import fraction, option
from ....result import Edit
from ....sampling import ClassifierFreeGuidance, Schedule, Step, Trajectory, follow, whole_steps
from ...base import Card, Method, Request

BACKGROUND, OBJECT, COMPOSITE = range(3)


class ComposeScores(Control):
    """Assembles the composite's self-attention scores, before the softmax, from those of three rows that run together.

    Between pixels outside the box stand the background's own scores. Between the object's pixels stand the object's
    own. Between a pixel p and a pixel f of the object stands what the background's query at p says to the object's key
    at f, and for the other direction the same number (an approximation: query and key exchange roles). All else, and
    all values, are the composite's. Scores of several pictures have several scales, so the softmax comes after.

    In the official code the queries of the mixed part are sliced from the object's rows; this follows the paper.

    Args:
        box: Where the composite may differ from the background, bool (1, 1, h, w).
        thing: The object's cells in it, bool (1, 1, h, w); may be empty.
        background_stop: Step before which the background's part ends.
        object_stop: The same for the object's parts.
    """

    reads_scores: ClassVar[bool] = True
    reads_probabilities: ClassVar[bool] = False

    def __init__(self, box: torch.Tensor, thing: torch.Tensor, background_stop: int, object_stop: int) -> None:
        self.box, self.thing = box, thing
        self.background_stop, self.object_stop = background_stop, object_stop

    def wants(self, site: Site) -> bool:
        """All self-attention."""
        return site.kind == "self"

    def active(self, site: Site) -> bool:
        """Until both parts have ended."""
        return self.step < max(self.background_stop, self.object_stop)

    def at(self, mask: torch.Tensor, site: Site) -> torch.Tensor:
        """A mask at a layer's grid, bool (pixels,): cells that are covered by half."""
        return functional.adaptive_avg_pool2d(mask.float(), (site.height, site.width)).flatten() >= 0.5

    def exchange(self, projected: Projected, site: Site, rows: int) -> Projected:
        """Keep the background's queries and the object's keys; change nothing."""
        query, key = projected.query[-rows:][BACKGROUND], projected.key[-rows:][OBJECT]
        self._mixed = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
        return projected

    def rescore(self, scores: torch.Tensor, site: Site) -> torch.Tensor:
        """The last row's scores, assembled."""
        box, own = self.at(self.box, site), scores[COMPOSITE]
        thing = self.at(self.thing & self.box, site) & box  # at a coarse grid there may be none
        if self.step < self.background_stop:
            own = torch.where(~box[:, None] & ~box[None, :], scores[BACKGROUND], own)
        if self.step < self.object_stop:
            own = torch.where(thing[None, :], self._mixed, own)
            own = torch.where(thing[:, None], self._mixed.transpose(-1, -2), own)
            own = torch.where(thing[:, None] & thing[None, :], scores[OBJECT], own)
        return torch.cat([scores[:COMPOSITE], own[None]])


class KeepOutside:
    """A blend: outside the box the composite is the background of the same step, in the first steps.

    Args:
        box: Bool (1, 1, h, w).
        stop: Step before which it ends.
    """

    def __init__(self, box: torch.Tensor, stop: int) -> None:
        self.box, self.stop = box, stop

    def __call__(self, step: Step) -> torch.Tensor:
        """z_next of all rows."""
        if step.i >= self.stop:
            return step.z_next
        z = step.z_next.clone()
        z[COMPOSITE] = torch.where(self.box[0], z[COMPOSITE], z[BACKGROUND])
        return z


@dataclass
class TFICON(Method):
    """Lu, Liu and Kong 2023: training-free image composition, across styles.

    Background and object are inverted under the exceptional prompt (`inversion.exceptional`), which says nothing and so
    disturbs no inversion. Their noises are put together: the object's where it shall be, fresh noise around it in the
    box, the background's elsewhere. From there the composite is sampled under the target prompt, beside background and
    object, from whose scores its self-attention is assembled: see `ComposeScores`.

    The paper walks 20 steps of DPM-Solver++; this walks DDIM, whose inversion is less exact for as many steps. The
    official code runs the passes one after another; here they are three rows of one batch. How the object's picture is
    continued around the object (its edge is repeated), and that it keeps its proportions, is our reconstruction. The
    survey calls the exceptional prompt an extra prompt that lets self-attention invert; it is the latents that it lets
    invert, by keeping text out of cross-attention.

    Args:
        guidance_scale: w of the composite; the paper has 5, and 2.5 with domain="same".
        reference: Picture of the object: PIL picture, array, or file.
        reference_mask: Its segmentation, as large as the picture: greyscale picture, array in [0, 1], or file.
        box: Where the object shall be: (left, top, right, bottom) in fractions of the picture. None is the box around
            the edit's `mask`, and without a mask the object's place in its own picture.
        domain: "cross" starts the object from its own inversion; "same" pastes it into the background's pixels first
            and inverts that, for pictures of one style.
        background_until: The background's scores are used in this first fraction of the steps.
        tau_a: The object's and the mixed scores, likewise.
        tau_b: Outside the box the composite is the background in this first fraction; the rest lets seams heal.
        token: Of the exceptional prompt; None is the default, see `exceptional_embedding`.

    A `mask` says which cells may change; without one, those of the box may.
    """

    card: ClassVar[Card] = Card(
        id="tf-icon",
        title="TF-ICON: Diffusion-Based Training-Free Cross-Domain Image Composition",
        authors="Lu, Liu, Kong",
        year=2023,
        venue="ICCV",
        paper="2307.12493",
        branch="tuning_free/attention",
        inputs=("target prompt", "reference image", "mask (optional)"),
        edit_types=("object addition",),
    )
    guidance_scale: float = 5.0
    reference: Any = None
    reference_mask: Any = None
    box: tuple[float, float, float, float] | None = None
    domain: str = option("cross", among=("cross", "same"))
    background_until: float = fraction(0.4)
    tau_a: float = fraction(0.4)
    tau_b: float = fraction(0.8)
    token: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.box is not None:
            self.box = check_box(self.box)

    def __call__(self, model: Model, request: Request) -> Edit:
        """Place the object, invert both pictures, assemble, sample."""
        if request.image is None or self.reference is None or self.reference_mask is None:
            raise EditbookError(
                "tf-icon needs a picture, reference= (of the object) and reference_mask= (where it is)."
            )
        condition, nothing = model.embed(request.target), exceptional_embedding(model, self.token)
        schedule = Schedule(model.scheduler, self.steps)
        reference = as_image(self.reference)
        segmentation = object_mask(self.reference_mask, reference)
        area = mask_array(request.mask)
        goal = self.box or box_of(segmentation if area is None else area)
        thing_image, thing_mask = place(reference, segmentation, goal, model.image_size)
        background = paste(request.image, thing_image, thing_mask) if self.domain == "same" else request.image

        z_0 = model.encode([background, thing_image])
        cells = latent_mask(box_mask(goal, model.image_size), z_0) if request.mask is None else request.mask
        box = cells > 0
        covered = functional.adaptive_avg_pool2d(torch.from_numpy(thing_mask)[None, None], model.latent_shape[1:])
        thing = (covered.to(z_0) >= 0.5) & box
        if not thing.any():
            raise EditbookError("The object covers no cell of the latent inside the box: give a larger box.")

        both = exceptional_inversion(
            model, z_0, schedule, token=self.token, prompt=request.source, callbacks=request.callbacks
        )
        own = both.z_T[BACKGROUND if self.domain == "same" else OBJECT]
        fresh = torch.where(box, model.random_latent(request.seed), both.z_T[:1])
        start = torch.where(thing, own[None], fresh)
        stops = [whole_steps(share, self.steps) for share in (self.background_until, self.tau_a, self.tau_b)]
        inversion = replace(
            both,
            latents=[z[:1] for z in both.latents],
            noises=[eps[:1] for eps in both.noises],
            sampled=Trajectory(rows=1),
        )
        assert inversion.sampled is not None
        z = follow(
            model,
            torch.cat([both.z_T, start]),
            both.moves,
            ClassifierFreeGuidance(
                torch.cat([nothing, nothing, condition]), model.embed(""), [1.0, 1.0, self.guidance_scale]
            ),
            attention=ComposeScores(box, thing, *stops[:2]),
            blend=KeepOutside(box, stops[2]),
            callbacks=[inversion.sampled, *request.callbacks],
        )
        reconstruction, image = model.decode_batch(z[[BACKGROUND, COMPOSITE]])
        mask = mask_array(box.to(z))
        return Edit(image, request.image, reconstruction=reconstruction, mask=mask, inversion=inversion)
