"""A mask that shrinks on the way: room for a thin object to begin in, and the mask itself at the end."""

from __future__ import annotations

import torch

from ..errors import EditbookError
from .shape import MaskShape


def shrinking_masks(mask: torch.Tensor, dilations: int, steps: int) -> list[torch.Tensor]:
    """A mask for each step: dilated by squares of side 2n + 1, ..., 5, 3, at last as it is, for equally many steps.

    Blended Latent Diffusion's answer to thin masks (Avrahami et al. 2023): in the noisy steps the model decides what
    will be there, and of a region a cell wide it hardly sees anything. The official stage of step i of S is
    floor(i / (floor(S / (n + 1)) + 1)), which for few steps never comes to the last stages (n = 3 and S = 8); here it
    is floor(i (n + 1) / S), so every stage gets its share.

    Args:
        mask: (1, 1, h, w) in [0, 1].
        dilations: n, at least 0; 0 gives the mask in every step.
        steps: S, at least n + 1.

    Raises:
        EditbookError: There are more stages than steps, or n is no such number.
    """
    if not isinstance(dilations, int) or isinstance(dilations, bool) or dilations < 0:
        raise EditbookError(f"dilations is a whole number of at least 0, got {dilations!r}.")
    if dilations >= steps:
        raise EditbookError(
            f"dilations={dilations} makes {dilations + 1} stages, more than the {steps} steps: lower it, or take more."
        )
    flat = mask[0, 0].float().cpu().numpy()
    wide = [MaskShape(dilate=cells)(flat) for cells in range(dilations, 0, -1)]
    stages = [*(torch.from_numpy(one)[None, None].to(mask) for one in wide), mask]
    return [stages[i * len(stages) // steps] for i in range(steps)]
