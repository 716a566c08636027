"""Inversions: what turns a picture into a trajectory of latents from which the sampler can come back."""

from .ddim import Gap, Inversion, ddim_inversion

INVERSIONS = {"ddim-inversion": ddim_inversion}
"""Inversions by the name that `editbook.edit(..., inversion=...)` takes."""

__all__ = ["INVERSIONS", "Gap", "Inversion", "ddim_inversion"]
