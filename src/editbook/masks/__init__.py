"""Masks: where they come from, and how latents are blended with them."""

from .adain import AdaIN, adain
from .blend import KeepSource, PasteSourceRow, latent_mask, mask_array, paste_source_row
from .local_blend import LocalBlend

__all__ = [
    "AdaIN",
    "KeepSource",
    "LocalBlend",
    "PasteSourceRow",
    "adain",
    "latent_mask",
    "mask_array",
    "paste_source_row",
]
