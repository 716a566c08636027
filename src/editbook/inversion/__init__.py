"""Inversions: what turns a picture into a trajectory of latents from which the sampler can come back."""

from .base import INVERSIONS, Gap, Inversion, Inverter, make_inverter
from .ddim import DDIM, ddim_inversion
from .stochastic import SecondOrder, chained_noisings, extract_noise, independent_noisings, with_sigma

__all__ = [
    "DDIM",
    "INVERSIONS",
    "Gap",
    "Inversion",
    "Inverter",
    "SecondOrder",
    "chained_noisings",
    "ddim_inversion",
    "extract_noise",
    "independent_noisings",
    "make_inverter",
    "with_sigma",
]
