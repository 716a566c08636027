"""Scores from CLIP: agreement with a text, likeness of pictures, direction of an edit (the survey's section 4.2)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional

from ..errors import EditbookError
from ..images import Picture, as_image
from .towers import ImageTower, Score, TextTower, read_pair


def clip_score(image: Picture, text: str, tower: TextTower) -> Score:
    """max(100 cos, 0) of a picture and a text, in [0, 100], as the survey and torchmetrics have it.

    Hessel et al. (2021) scale by 2.5 instead. Values of different towers cannot be compared.

    Args:
        image: A picture. Of one that is not square the towers of this package see the middle square.
        text: What it should show.
        tower: CLIP.

    Raises:
        EditbookError: The picture cannot be read, or the text is too long for the tower.
    """
    cosine = functional.cosine_similarity(tower.images([as_image(image, "image")]), tower.texts([text]))
    return Score(max(100 * float(cosine), 0.0), tower.name)


def clip_image_similarity(image: Picture, reference: Picture, tower: ImageTower) -> Score:
    """Cosine of the features of two pictures, in [-1, 1]. With a `Dino` tower it is EditVal's and MagicBrush's DINO.

    Args:
        image: A picture, looked at as in `clip_score`.
        reference: Another one, of the same size.
        tower: Where features come from.

    Raises:
        EditbookError: A picture cannot be read, or their sizes differ.
    """
    a, b = tower.images(read_pair(image, reference, ("image", "reference")))
    return Score(float(functional.cosine_similarity(a, b, dim=0)), tower.name)


@dataclass(frozen=True)
class Direction:
    """A directional similarity.

    Args:
        value: The cosine, in [-1, 1]; 0 where it is undefined.
        defined: False where the picture did not change, so that it has no direction.
        tower: What the embeddings come from; directions of different towers cannot be compared.
    """

    value: float
    defined: bool
    tower: str


def directional_similarity(
    source: Picture,
    edited: Picture,
    source_prompt: str,
    target_prompt: str,
    tower: TextTower,
    *,
    normalise: bool = True,
) -> Direction:
    """Whether the picture moved as the text did (the survey's Eq. 6; Gal et al. 2021, StyleGAN-NADA).

    The cosine of E_I(edited) - E_I(source) with E_T(target) - E_T(source). The loss of the survey is 1 minus this.

    Args:
        source: The picture before.
        edited: The picture after, of the same size.
        source_prompt: Describes the picture before.
        target_prompt: Describes the picture wanted.
        tower: CLIP.
        normalise: Whether the four embeddings are brought to length 1 first, as InstructPix2Pix does; False takes them
            raw, as Wu et al.'s code does.

    Raises:
        EditbookError: A picture cannot be read or their sizes differ; both prompts have the same embedding: nothing
            was asked for.
    """
    images = tower.images(read_pair(source, edited, ("source", "edited")))
    texts = tower.texts([source_prompt, target_prompt])
    if normalise:
        images, texts = functional.normalize(images, dim=-1), functional.normalize(texts, dim=-1)
    picture, text = images[1] - images[0], texts[1] - texts[0]
    if not _moved(text, texts):
        raise EditbookError("source_prompt and target_prompt say the same to this tower: the edit has no direction.")
    if not _moved(picture, images):
        return Direction(0.0, False, tower.name)
    return Direction(float(functional.cosine_similarity(picture, text, dim=0)), True, tower.name)


def _moved(difference: torch.Tensor, pair: torch.Tensor) -> bool:
    """Whether a difference is more than rounding."""
    return float(difference.norm()) > 1e-5 * float(pair.norm())
