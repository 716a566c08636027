"""InstructEdit: an instruction becomes two prompts and something to segment, and DiffEdit edits inside that."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image

from ....errors import EditbookError, unknown
from ....masks import MaskShape, at_side, ground_and_segment
from ....masks.segment import outside_model
from ....model import Model
from ....result import Edit
from ...base import Card, InvertingMethod, Request
from .diffedit import encode_and_decode


@dataclass(frozen=True)
class Plan:
    """What the stages made of an instruction.

    Args:
        caption: What the picture shows; "" where nobody was asked.
        segment: What to look for.
        source: Prompt of the picture ("editing prompt 1").
        target: Prompt of the result ("editing prompt 2").
        boxes: Where it was found, (k, 4): x0, y0, x1, y1 in pixels, the best first; None where nobody looked.
        scores: Of the boxes, (k,) in [0, 1].
        mask: Where the edit may act, float32 (height, width) in [0, 1] at the picture's size.
    """

    caption: str
    segment: str
    source: str
    target: str
    boxes: np.ndarray | None = None
    scores: np.ndarray | None = None
    mask: np.ndarray | None = None


@dataclass
class InstructEdit(InvertingMethod):
    """Wang, Zhang, Birsak and Wonka 2023: DiffEdit whose mask and prompts come from an instruction.

    1. A captioner says what the picture shows.
    2. A parser makes three texts of instruction and caption: what to segment, a source and a target prompt.
    3. A grounded detector finds boxes for the first, a segmenter makes masks of the boxes.
    4. DiffEdit's encoding, under the source prompt here and half-way up, and decoding under the target prompt.

    The paper's stages are BLIP-2, gpt-3.5-turbo, Grounding DINO and Segment Anything. Here each is an option, so that
    nothing leaves this machine unless you send it. A prompt that is given to `edit` takes the place of the one that
    would have been made, and a mask that of stage 3.

    The target prompt should say what is to be seen *inside the mask*: with a caption of what is left after a removal,
    the decoder draws a second one of that into the hole.

    The official code crashes where no box is found, and takes only the first box by default, so that of "remove the box
    and the phone" one stays. It cuts the language model's answer at 40 tokens, and then finds no prompts in it. The
    survey calls the language model "GPT", and cites the Grounding DINO paper for Grounded Segment Anything.

    Args:
        encoding_ratio: How far up the picture is encoded, as a fraction of the steps in (0, 1]; higher edits more.
        captioner: An object with `caption(image)`; "" goes without. A source prompt that is given is the caption.
        parser: An object with `parse(instruction, caption)`, which returns what to segment, source and target prompt.
        grounder: An object with `ground(image, text)`, see `masks.ground_and_segment`.
        segmenter: An object with `segment(image, boxes=)`.
        mask_mode: "first" edits in the best box only (official), "merge" in all of them.
        dilate: Widens the mask by so many pixels on each side, e.g. to take a shadow in.
    """

    card: ClassVar[Card] = Card(
        id="instructedit",
        title="InstructEdit: Improving Automatic Masks for Diffusion-based Image Editing With User Instructions",
        authors="Wang, Zhang, Birsak, Wonka",
        year=2023,
        venue="arXiv",
        paper="2305.18047",
        branch="tuning_free/mask",
        inputs=("instruction", "source prompt (optional)", "target prompt (optional)", "mask (optional)"),
        edit_types=("style", "object addition"),
    )
    encoding_ratio: float = 0.5
    captioner: Any = None
    parser: Any = None
    grounder: Any = None
    segmenter: Any = None
    mask_mode: str = "first"
    dilate: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mask_mode not in ("first", "merge"):
            raise unknown("mask_mode of instructedit", self.mask_mode, ("first", "merge"))
        if not 0 < self.encoding_ratio <= 1:
            raise EditbookError(f"encoding_ratio is a fraction of the steps in (0, 1], got {self.encoding_ratio!r}.")
        self.shape = MaskShape(0.5, self.dilate)

    def read(self, image: Image.Image, instruction: str, *, source: str = "", target: str = "") -> Plan:
        """Stages 1 and 2, the texts.

        Args:
            image: The picture.
            instruction: What to do.
            source: Given instead of the caption and of the parser's.
            target: Given instead of the parser's.
        """
        caption = source or ("" if self.captioner == "" else outside_model("captioner", self.captioner).caption(image))
        segment, before, after = outside_model("parser", self.parser).parse(instruction, caption or None)
        return Plan(caption, segment, source or before, target or after)

    def find(self, image: Image.Image, plan: Plan) -> Plan:
        """Stage 3: the plan with its boxes and its mask.

        Raises:
            EditbookError: Nothing was found.
        """
        found = ground_and_segment(image, plan.segment, self.grounder, self.segmenter)
        if not len(found.boxes):
            raise EditbookError(
                f"instructedit looked for {plan.segment!r} in the picture and found nothing: "
                "say it in other words, or give a mask."
            )
        chosen = found.masks[:1] if self.mask_mode == "first" else found.masks
        mask = self.shape(chosen.max(0).astype(np.float32))
        return replace(plan, boxes=found.boxes, scores=found.scores, mask=mask)

    def plan(self, image: Image.Image, instruction: str, *, source: str = "", target: str = "") -> Plan:
        """All that is decided before the picture is edited; no diffusion model is asked."""
        return self.find(image, self.read(image, instruction, source=source, target=target))

    def __call__(self, model: Model, request: Request) -> Edit:
        """Plan, encode, decode; the edit's settings hold the plan."""
        if request.image is None:
            raise EditbookError("instructedit needs a picture.")
        image = request.image
        plan = Plan(request.source, "", request.source, request.target)
        if request.mask is None or not (plan.source and plan.target):  # else there is nothing to be asked
            plan = self.read(image, request.instruction, source=request.source, target=request.target)

        def mask() -> torch.Tensor:
            nonlocal plan
            plan = self.find(image, plan)
            assert plan.mask is not None
            return torch.from_numpy(at_side(plan.mask, model.latent_shape[1]))[None, None].to(model.random_latent(0))

        texts = replace(request, source=plan.source, target=plan.target)
        edit = encode_and_decode(self, model, texts, mask, encoding_ratio=self.encoding_ratio)
        edit.settings["plan"] = {
            name: value.tolist() if isinstance(value, np.ndarray) else value
            for name, value in vars(plan).items()
            if name != "mask" and value is not None
        }
        return edit

    def revised(self, answer: str) -> InstructEdit:
        """The same with another encoding ratio: that of a language model's answer to a user's complaint (stage 6).

        Args:
            answer: Holds "Encoding ratio: 0.7"; higher edits more.
        """
        found = re.search(r"encoding ratio[^\d.]{0,5}(\d*\.?\d+)", answer, re.IGNORECASE)
        if not found:
            raise EditbookError(f"No line 'Encoding ratio: x' is in the answer {answer!r}.")
        return replace(self, encoding_ratio=float(found[1]))
