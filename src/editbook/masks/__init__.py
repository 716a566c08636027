"""Masks: where they come from, and how latents are blended with them."""

from .adain import AdaIN, adain
from .blend import KeepSource, PasteSourceRow, at_side, latent_mask, mask_array, paste_source_row, square_mask
from .difference import clamped_by_mean, noise_difference, without_outliers
from .find import MASKS, FoundMask, MaskSource, Subject, find_mask
from .local_blend import LocalBlend
from .shape import MaskShape

__all__ = [
    "MASKS",
    "AdaIN",
    "FoundMask",
    "KeepSource",
    "LocalBlend",
    "MaskShape",
    "MaskSource",
    "PasteSourceRow",
    "Subject",
    "adain",
    "at_side",
    "clamped_by_mean",
    "find_mask",
    "latent_mask",
    "mask_array",
    "noise_difference",
    "paste_source_row",
    "square_mask",
    "without_outliers",
]
