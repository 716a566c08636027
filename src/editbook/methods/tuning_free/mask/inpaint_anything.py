"""Inpaint Anything: click on a thing, and remove it, draw another in its place, or redraw what is around it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from ....errors import EditbookError, unknown
from ....masks import MaskShape, ground_and_segment
from ....masks.place import paste
from ....masks.segment import outside_model
from ....model import Model
from ....result import Edit
from ...base import Card, Method, Request
from .blended_latent_diffusion import BlendedLatentDiffusion

Paint = Callable[[Image.Image, np.ndarray], Image.Image]
"""From a square picture and a mask, 1 where it is to be drawn, float32 (side, side), to the picture drawn anew."""

_DILATE = {"remove": 1 / 64, "fill": 2 / 64, "replace": 0.0}  # on each side, of the picture's longer side


@dataclass(frozen=True)
class Segments:
    """What a click, a box or a phrase may mean.

    Args:
        masks: bool (k, height, width); three of different extent for a click. Some may be empty.
        scores: How good the segmenter holds them to be, (k,) in [0, 1].
    """

    masks: np.ndarray
    scores: np.ndarray


@dataclass
class InpaintAnything(Method):
    """Yu et al. 2023: three tools behind one click, of which a segmenter makes a mask.

    - "remove": an inpainter (LaMa) fills the dilated mask from what is around. No diffusion, no text.
    - "fill": a diffusion model draws what the target prompt says into the dilated mask.
    - "replace": it draws the *background* anew, around the object, which is pasted back pixel by pixel. So light and
      shadow do not fit, and a wide mask keeps a halo: it is not dilated, and `dilate=-1` narrows it.

    The paper draws with the inpainting U-Net of Stable Diffusion 2, which sees mask and masked picture in five further
    channels (its weights cannot be downloaded any more). Here the plain U-Net draws, by Blended Latent Diffusion;
    `settings["running"]` says which model did the work.

    A click is ambiguous, and the mask with the highest score is often a part instead of the whole. The paper edits with
    all three masks and lets a person pick; here `segments` shows all three, and `which` picks.

    `edit` brings the picture to the model's size. `remove`, `fill` and `replace` can be called with pictures of any
    size. Two errors of the official code are not repeated: it clamps the crop by the sizes before padding, and leaves
    what is inside the mask but outside the crop undrawn.

    Args:
        task: "remove", "fill" or "replace".
        point: A click (x, y), in pixels of the picture that is edited.
        box: (x0, y0, x1, y1) in pixels, around the thing.
        phrase: Or a name for it, as `mask="segment:..."` takes; everything that is found is one mask.
        which: Of a click's masks: the "largest", or 0, 1, 2 in the segmenter's order; the pocket segmenter's are
            accessory, object, object with its shadow.
        dilate: Widens the mask by so many pixels on each side; None is the task's: 1/64 of the picture's side to remove
            (else the outline stays), 2/64 to fill, nothing to replace.
        soften: Standard deviation in pixels of the edge along which "replace" pastes the object; 0 is a hard edge.
        segmenter: A name that `perception.load_segmenter` knows, or an object with `segment(image, points=, boxes=)`.
        grounder: For a phrase: a name that `perception.load_grounder` knows, or an object with `ground(image, text)`.
        inpainter: A name that `perception.load_inpainter` knows, or an object with `inpaint(image, mask)`.
    """

    card: ClassVar[Card] = Card(
        id="inpaint-anything",
        title="Inpaint Anything: Segment Anything Meets Image Inpainting",
        authors="Yu, Feng, Feng, Liu, Jin, Zeng, Chen",
        year=2023,
        venue="arXiv",
        paper="2304.06790",
        branch="tuning_free/mask",
        inputs=("mask (optional)", "target prompt (optional)"),
        edit_types=("object addition",),
    )
    task: str = "remove"
    point: Any = None
    box: Any = None
    phrase: str = ""
    which: Any = "largest"
    dilate: Any = None
    soften: float = 0.0
    segmenter: Any = None
    grounder: Any = None
    inpainter: Any = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.task not in _DILATE:
            raise unknown("task of inpaint-anything", self.task, _DILATE)
        if self.which != "largest" and (isinstance(self.which, bool) or self.which not in (0, 1, 2)):
            raise EditbookError(f"which of inpaint-anything is 'largest', 0, 1 or 2, got {self.which!r}.")
        if (self.point is not None) + (self.box is not None) + bool(self.phrase.strip()) > 1:
            raise EditbookError("inpaint-anything takes one of point, box and phrase.")
        MaskShape(dilate=0 if self.dilate is None else self.dilate, blur=self.soften)  # checks both

    def segments(self, image: Image.Image) -> Segments:
        """All masks that the click, the box or the phrase may mean.

        Raises:
            EditbookError: None of them was given.
        """
        if self.phrase.strip():
            found = ground_and_segment(image, self.phrase, self.grounder, self.segmenter)
            union = np.asarray(found.masks.any(0))[None]
            return Segments(union, found.scores[:1] if len(found.scores) else np.zeros(1))
        if self.point is None and self.box is None:
            raise EditbookError("inpaint-anything needs a mask, or one of its options point=(x, y), box and phrase.")
        shown = {"points": [self.point]} if self.box is None else {"boxes": [self.box]}
        masks, scores = outside_model("segmenter", self.segmenter).segment(image, **shown)
        return Segments(np.asarray(masks, bool), np.asarray(scores))

    def choose(self, segments: Segments) -> int:
        """Which mask is meant, by `which`.

        Raises:
            EditbookError: It is empty, or there is no such mask.
        """
        areas = segments.masks.sum((1, 2))
        index = int(areas.argmax()) if self.which == "largest" else self.which
        if index >= len(areas) or not areas[index]:
            raise EditbookError(
                "inpaint-anything found nothing there: click elsewhere, take another mask (which=), or draw one."
            )
        return index

    def shaped(self, mask: np.ndarray) -> np.ndarray:
        """A mask (height, width), dilated as the task needs."""
        share = round(_DILATE[self.task] * max(mask.shape))
        return MaskShape(dilate=share if self.dilate is None else self.dilate)(mask.astype(np.float32))

    def remove(self, image: Image.Image, mask: np.ndarray) -> Image.Image:
        """Fill the hole: what is above 0 in the mask. Everything else stays to the last bit."""
        filled: Image.Image = outside_model("inpainter", self.inpainter).inpaint(image, mask)
        return filled

    def painter(self, model: Model, request: Request) -> tuple[BlendedLatentDiffusion, Paint]:
        """Blended Latent Diffusion, and it as a function of picture and mask at the model's size."""
        blended = BlendedLatentDiffusion(steps=self.steps, guidance_scale=self.guidance_scale)

        def paint(image: Image.Image, mask: np.ndarray) -> Image.Image:
            return blended.draw(model, replace(request, image=image, pixel_mask=mask))[0]

        return blended, paint

    def __call__(self, model: Model, request: Request) -> Edit:
        """Find the mask, then do the task; the edit's settings hold all masks' scores and what was running."""
        image = request.image
        if image is None:
            raise EditbookError("inpaint-anything needs a picture.")
        if self.task != "remove" and not request.target.strip():
            raise EditbookError(f"task={self.task!r} of inpaint-anything draws what a target prompt says: give one.")
        found: dict[str, Any] = {}
        if request.pixel_mask is None:
            segments = self.segments(image)
            index = self.choose(segments)
            mask = segments.masks[index].astype(np.float32)
            found = {"scores": [round(float(score), 4) for score in segments.scores], "chosen": index}
        elif self.point is not None or self.box is not None or self.phrase.strip():
            raise EditbookError("inpaint-anything takes a mask or one of point, box and phrase, not both.")
        else:
            mask = request.pixel_mask
        mask = self.shaped(mask)
        if self.task == "remove":
            edit = Edit(self.remove(image, mask), image, mask=mask)
            running = outside_model("inpainter", self.inpainter)
            edit.settings["running"] = getattr(running, "name", type(running).__name__)
        else:
            blended, paint = self.painter(model, request)
            size = model.image_size
            if self.task == "fill":
                result = fill(image, mask, paint, size)
            else:
                result = redraw_around(image, mask, paint, size, self.soften)
            edit = Edit(result, image, reconstruction=model.decode(model.encode(image)), mask=mask)
            edit.settings["running"] = f"{blended.card.id} on the plain U-Net of {model.name}"
        if found:
            edit.settings["segments"] = found
        return edit


def crop_window(mask: np.ndarray, size: int) -> tuple[int, int, int]:
    """The square that a model of this size draws in: left, top and side, around the middle of the mask's box.

    It lies inside the picture, unless the box is longer than the picture's shorter side. Its side is the model's, or
    the picture's shorter side where that is less (so the crop is enlarged), or the box's longer side where that is more
    (so it is reduced).
    """
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    side = max(min(size, *mask.shape), int(np.ptp(rows)) + 1, int(np.ptp(columns)) + 1)

    def start(inside: np.ndarray, length: int) -> int:
        middle = (int(inside[0]) + int(inside[-1]) + 1 - side) // 2
        return min(max(middle, 0), length - side) if side <= length else (length - side) // 2

    return start(columns, mask.shape[1]), start(rows, mask.shape[0]), side


def fill(image: Image.Image, mask: np.ndarray, paint: Paint, size: int) -> Image.Image:
    """Crop around the mask, draw, and paste back where the mask is above one half; all else stays to the last bit.

    Args:
        image: The picture, of any size.
        mask: Where to draw, float (height, width) in [0, 1].
        paint: Draws at the model's size.
        size: The model's size in pixels.
    """
    inside = mask > 0.5
    if not inside.any():
        return image
    left, top, side = crop_window(inside, size)
    pixels = np.asarray(image)
    # Of a box that is longer than the picture is wide, the window hangs over: the picture's edge goes on there.
    rows = np.arange(top, top + side).clip(0, image.height - 1)
    columns = np.arange(left, left + side).clip(0, image.width - 1)
    crop = Image.fromarray(pixels[np.ix_(rows, columns)])
    hole = inside[np.ix_(rows, columns)].astype(np.float32)
    drawn = np.asarray(_resized(paint(_resized(crop, size), _mask_resized(hole, size)), side))
    whole = pixels.copy()
    there = slice(max(top, 0), min(top + side, image.height)), slice(max(left, 0), min(left + side, image.width))
    whole[there] = drawn[there[0].start - top : there[0].stop - top, there[1].start - left : there[1].stop - left]
    return paste(image, Image.fromarray(whole), inside.astype(np.float32))


def redraw_around(image: Image.Image, mask: np.ndarray, paint: Paint, size: int, soften: float = 0.0) -> Image.Image:
    """Draw everything outside the mask anew, and paste the object back with the mask as its opacity.

    The picture's longer side is brought to the model's size, and the rest of the square is black; it is drawn, too, and
    cut off.

    Args:
        image: The picture, of any size.
        mask: The object, float (height, width) in [0, 1].
        paint: Draws at the model's size.
        size: The model's size in pixels.
        soften: Standard deviation, in pixels, of the mask's edge.
    """
    scale = size / max(image.size)
    width, height = (max(1, round(scale * side)) for side in image.size)
    small = Image.new("RGB", (size, size))
    small.paste(image if image.size == (width, height) else image.resize((width, height), Image.Resampling.LANCZOS))
    around = np.ones((size, size), np.float32)
    around[:height, :width] = 1 - _mask_resized(mask, width, height)
    drawn = paint(small, around).crop((0, 0, width, height))
    if drawn.size != image.size:
        drawn = drawn.resize(image.size, Image.Resampling.LANCZOS)
    return paste(drawn, image, MaskShape(blur=soften)(mask.astype(np.float32)))


def _resized(image: Image.Image, side: int) -> Image.Image:
    return image if image.size == (side, side) else image.resize((side, side), Image.Resampling.LANCZOS)


def _mask_resized(mask: np.ndarray, width: int, height: int | None = None) -> np.ndarray:
    """At another size, above 0 wherever anything of the mask is."""
    size = (width, height or width)
    if mask.shape == (size[1], size[0]):
        return mask.astype(np.float32)
    soft = np.asarray(Image.fromarray(mask.astype(np.float32)).resize(size, Image.Resampling.BILINEAR))
    return soft.clip(0, 1)
