"""Boxes from words: the pocket segmenter asked with phrases, which stands in for Grounding DINO, and the real one."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import ndimage

from ..images import as_image
from .base import Grounder, Picture, box_of, loaded, phrases_of
from .segmenter import MAPS, SIDE, Canvas, SegmenterNetwork, embed_phrases, load_network


class PocketGrounder:
    """A stand-in for Grounding DINO (Liu et al. 2023) that knows the words of the pocket world only.

    The segmenter's network is asked with CLIP's features of a phrase; each connected piece of its mask is given a box.
    It was trained to say that something is not there, which the real one hardly does: then there is no box. Words of
    which it never heard may be taken for anything.

    Args:
        network: A trained `SegmenterNetwork`.
        threshold: Of the probability that what the phrase names is there, in [0, 1].
        smallest: Pieces smaller than this share of a phrase's largest are dropped, as crumbs of the mask.
    """

    name = "pocket grounder (stand-in for Grounding DINO)"

    def __init__(self, network: SegmenterNetwork, threshold: float = 0.5, smallest: float = 0.3) -> None:
        self.network = network.eval().requires_grad_(False)
        self.threshold, self.smallest = threshold, smallest

    @torch.no_grad()
    def heat(self, image: Picture, text: str) -> tuple[np.ndarray, np.ndarray, list[str]]:
        """What boxes are made of: for each phrase of a text its mask at the picture's size, and its probability.

        Args:
            image: The picture, of any size.
            text: See `Grounder.ground`.

        Returns:
            Masks, bool (phrases, height, width); probabilities that it is there, (phrases,); the phrases.
        """
        canvas, phrases = Canvas(image), phrases_of(text)
        seen = {name: value.expand(len(phrases), -1, -1, -1) for name, value in canvas.seen().items()}
        texts = embed_phrases([phrase.lower() for phrase in phrases])
        answers = self.network(seen, torch.zeros(len(phrases), MAPS, SIDE, SIDE), texts)
        return canvas.back(answers["masks"][:, 1]), answers["presence"].sigmoid().numpy(), phrases

    def ground(self, image: Picture, text: str) -> tuple[np.ndarray, np.ndarray, list[str]]:
        """See `Grounder.ground`."""
        found = []
        for mask, score, phrase in zip(*self.heat(image, text), strict=True):
            if score <= self.threshold:
                continue
            pieces, count = ndimage.label(mask)
            sizes = np.bincount(pieces.ravel(), minlength=1)[1:]
            for piece in range(count):
                if sizes[piece] >= self.smallest * sizes.max():
                    found.append((float(score), box_of(pieces == piece + 1), phrase))
        found.sort(key=lambda one: -one[0])
        boxes = np.array([box for _, box, _ in found], np.float32).reshape(-1, 4)
        return boxes, np.array([score for score, _, _ in found], np.float32), [phrase for _, _, phrase in found]


def _detector(name: str) -> tuple[Any, Any]:
    from transformers import AutoModelForZeroShotObjectDetection, AutoProcessor

    model = AutoModelForZeroShotObjectDetection.from_pretrained(name, local_files_only=True)
    return model, AutoProcessor.from_pretrained(name, local_files_only=True)


class DinoGrounder:
    """Grounding DINO itself (or another zero-shot detector), through transformers.

    Args:
        model: A `GroundingDinoForObjectDetection`.
        processor: Its processor.
        name: What numbers that come from it are labelled with.
        threshold: Of a box's score, 0.3 as in InstructEdit and Grounded-SAM.
        text_threshold: Of the words that a box is said to show.
    """

    def __init__(
        self, model: Any, processor: Any, name: str, threshold: float = 0.3, text_threshold: float = 0.25
    ) -> None:
        self.model, self.processor, self.name = model.eval().requires_grad_(False), processor, name
        self.threshold, self.text_threshold = threshold, text_threshold

    @classmethod
    def load(cls, name: str | Path, device: str = "cpu") -> DinoGrounder:
        """From a folder, or from the hub's cache by id ("IDEA-Research/grounding-dino-tiny"). Nothing is downloaded.

        Raises:
            EditbookError: It is not there.
        """
        model, processor = loaded("Grounding DINO", name, lambda: _detector(str(name)))
        return cls(model.to(device), processor, f"Grounding DINO {name}")

    @torch.no_grad()
    def ground(self, image: Picture, text: str) -> tuple[np.ndarray, np.ndarray, list[str]]:
        """See `Grounder.ground`."""
        picture = as_image(image)
        asked = ". ".join(phrase.lower() for phrase in phrases_of(text)) + "."
        inputs = self.processor(images=picture, text=asked, return_tensors="pt").to(self.model.device)
        found = self.processor.post_process_grounded_object_detection(
            self.model(**inputs),
            inputs["input_ids"],
            threshold=self.threshold,
            text_threshold=self.text_threshold,
            target_sizes=[(picture.height, picture.width)],
        )[0]
        phrases = found["text_labels"] if "text_labels" in found else found["labels"]
        scores = found["scores"].float().cpu().numpy()
        boxes = found["boxes"].float().cpu().numpy().reshape(-1, 4)
        width, height = picture.size
        boxes = boxes.clip(0, np.array([width, height, width, height], np.float32))
        good = (boxes[:, 0] < boxes[:, 2]) & (boxes[:, 1] < boxes[:, 3])
        order = [k for k in np.argsort(-scores, kind="stable") if good[k]]
        return boxes[order], scores[order], [str(phrases[k]) for k in order]


@lru_cache(maxsize=2)  # a method asks for it by name at each edit; the stand-in, and a real one
def load_grounder(name: str | Path = "pocket", device: str = "cpu") -> Grounder:
    """A grounder by name.

    Args:
        name: "pocket", the stand-in that ships with the package; a folder, or the hub id of a Grounding DINO that was
            downloaded before; or the folder of a run of `editbook train segmenter`.
        device: Where the real one computes.

    Raises:
        EditbookError: There is none of that name.
    """
    if name == "pocket":
        return PocketGrounder(load_network())
    folder = Path(name)
    if (folder / "model.safetensors").is_file() and not (folder / "config.json").is_file():
        return PocketGrounder(load_network(folder))
    return DinoGrounder.load(name, device)
