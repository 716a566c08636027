"""Structure distance: do two pictures have the same layout, whatever their colours? (Splice, Tumanyan et al. 2022)."""

from __future__ import annotations

import torch
from torch.nn import functional

from ..images import Picture
from .towers import KeyTower, Score, read_pair


def self_similarity(keys: torch.Tensor) -> torch.Tensor:
    """Cosine of every token's key with every other's: (n, tokens, width) to (n, tokens, tokens)."""
    unit = functional.normalize(keys, dim=-1)
    return unit @ unit.transpose(1, 2)


def structure_distance(image: Picture, reference: Picture, tower: KeyTower, *, official: bool = False) -> Score:
    """Mean squared difference of two pictures' key self-similarities, from 0 (the same layout) to 4.

    Papers report it times 1000, with DINO ViT-B/8 (`Dino.load()`).

    Args:
        image: A picture. Of one that is not square the towers of this package see the middle square.
        reference: Another one, of the same size.
        tower: Whose keys are compared; the class token is included.
        official: Whether to feed pixels of 0 to 255 into the normalisation, as PIE-Bench's evaluator does by mistake;
            needed to meet published numbers.

    Raises:
        EditbookError: A picture cannot be read, or their sizes differ.
    """
    pictures = read_pair(image, reference, ("image", "reference"))
    a, b = self_similarity(tower.keys(pictures, 255.0 if official else 1.0))
    return Score(float(functional.mse_loss(a, b)), tower.name)
