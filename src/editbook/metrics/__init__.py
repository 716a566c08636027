"""How far one picture is from another. More metrics join with the chapter on evaluation."""

from .pixels import mse, peak_inside, psnr

__all__ = ["mse", "peak_inside", "psnr"]
