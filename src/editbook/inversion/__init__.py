"""Inversions: what turns a picture into a trajectory of latents from which the sampler can come back."""

from .base import INVERSIONS, Gap, Inversion, Inverter, make_inverter
from .ddim import DDIM, ddim_inversion

__all__ = ["DDIM", "INVERSIONS", "Gap", "Inversion", "Inverter", "ddim_inversion", "make_inverter"]
