"""One noise estimate with a control attached: what tests of swaps and of features compare."""

from __future__ import annotations

import torch

PROMPTS = ["a photo of a cat on the beach", "a golden fox", "a pencil sketch of a castle at night"]


def noise(model, control=None, rows=3, null=0, t=500):
    """One estimate of the prompts, each of another latent, with as many null rows (of other latents) before them."""
    z = torch.cat([model.random_latent(seed) for seed in range(null + rows)])
    text = torch.cat([model.embed("").expand(null, -1, -1), model.embed(PROMPTS[:rows])])
    with torch.no_grad():
        if control is None:
            return model.noise(z, t, text)
        with control.attached(model.unet, tuple(z.shape[-2:]), rows):
            return model.noise(z, t, text)
