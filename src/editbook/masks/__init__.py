"""Masks: where they come from, and how latents are blended with them."""

from .adain import AdaIN, adain
from .background import BACKGROUNDS, restore_background, seam
from .blend import (
    KeepSource,
    PasteSourceRow,
    at_side,
    latent_mask,
    mask_array,
    noised_path,
    paste_source_row,
    square_mask,
)
from .difference import clamped_by_mean, noise_difference, without_outliers
from .find import MASKS, AttentionMask, DiffEditMask, FoundMask, MaskSource, Subject, find_mask
from .local_blend import LocalBlend
from .relevance import RelevanceMask
from .schedule import shrinking_masks
from .segment import SegmentMask, ground_and_segment
from .shape import MaskShape

__all__ = [
    "BACKGROUNDS",
    "MASKS",
    "AdaIN",
    "AttentionMask",
    "DiffEditMask",
    "FoundMask",
    "KeepSource",
    "LocalBlend",
    "MaskShape",
    "MaskSource",
    "PasteSourceRow",
    "RelevanceMask",
    "SegmentMask",
    "Subject",
    "adain",
    "at_side",
    "clamped_by_mean",
    "find_mask",
    "ground_and_segment",
    "latent_mask",
    "mask_array",
    "noise_difference",
    "noised_path",
    "paste_source_row",
    "restore_background",
    "seam",
    "shrinking_masks",
    "square_mask",
    "without_outliers",
]
