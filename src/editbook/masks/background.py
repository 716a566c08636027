"""The background that an autoencoder loses, put back: a last step behind any editor with a mask.

A latent that is pasted exactly still comes out of the decoder as the decoder's picture, and an edited cell changes its
neighbours' pixels. Blended Latent Diffusion (Avrahami et al. 2023) compares four ways to repair that.
"""

from __future__ import annotations

import copy

import numpy as np
import torch
from PIL import Image
from scipy import sparse
from scipy.sparse import linalg

from ..errors import EditbookError, unknown
from ..model import Model
from .place import paste

BACKGROUNDS = ("none", "paste", "poisson", "decoder", "latents")
"""What `restore_background` knows."""


def restore_background(
    model: Model,
    edited: Image.Image,
    source: Image.Image,
    mask: np.ndarray,
    how: str = "decoder",
    *,
    steps: int = 75,
    weight: float = 100.0,
) -> Image.Image:
    """An edited picture with the source's background.

    Args:
        model: Whose autoencoder made the edited picture; it is left as it was.
        edited: The result of any editor.
        source: The picture before.
        mask: 1 where the edit is to be seen, float (H, W) in [0, 1], at the pictures' size.
        how: "none"; "paste", pixel by pixel; "poisson", see `poisson_blend`; "decoder" or "latents", see `fit_picture`.
        steps: Of the optimisation.
        weight: Of the background in it.

    Raises:
        EditbookError: Another way, or sizes that do not fit.
    """
    if how not in BACKGROUNDS:
        raise unknown("background", how, BACKGROUNDS)
    if edited.size != source.size or mask.shape != (source.height, source.width):
        raise EditbookError(
            f"The edited picture is {edited.width} x {edited.height} pixels, its source {source.width} x "
            f"{source.height}, and the mask {mask.shape[1]} x {mask.shape[0]}: they must be the same."
        )
    if how == "paste":
        return paste(source, edited, mask)
    if how == "poisson":
        return poisson_blend(source, edited, mask)
    if how in ("decoder", "latents"):
        return fit_picture(model, edited, source, mask, how, steps=steps, weight=weight)
    return edited


def poisson_blend(source: Image.Image, edited: Image.Image, mask: np.ndarray) -> Image.Image:
    """Seamless cloning (Perez, Gangnet and Blake 2003): the edit's gradients inside, the source's values around them.

    Inside, where the mask is above one half, the result is the picture whose differences between neighbours are nearest
    to the edit's, given that it meets the source at the border. So there is no seam; but where the two disagree on the
    colour of the border, the disagreement is spread over the whole inside, as a tint.

    A mask that covers all has no border to meet: the edit comes back.
    """
    inside = mask > 0.5
    count = int(inside.sum())
    if count in (0, inside.size):
        return edited if count else source
    index = np.full(inside.shape, -1)
    index[inside] = np.arange(count)
    known, drawn = (np.asarray(image.convert("RGB"), np.float64) for image in (source, edited))
    rows, columns, values = [], [], []
    right = np.zeros((count, 3))
    degree = np.zeros(count)
    for axis in (0, 1):
        for here, there in (((0, -1), (1, None)), ((1, None), (0, -1))):  # every pixel and its neighbour, both ways
            p, q = (tuple(slice(*span) if k == axis else slice(None) for k in (0, 1)) for span in (here, there))
            pairs = inside[p]
            own, other = index[p][pairs], index[q][pairs]
            degree[own] += 1
            right[own] += drawn[p][pairs] - drawn[q][pairs]
            border = other < 0
            right[own[border]] += known[q][pairs][border]
            rows.append(own[~border])
            columns.append(other[~border])
            values.append(np.full(int((~border).sum()), -1.0))
    everyone = np.arange(count)
    matrix = sparse.csc_matrix(
        (np.concatenate([*values, degree]), (np.concatenate([*rows, everyone]), np.concatenate([*columns, everyone])))
    )
    result = known.copy()
    result[inside] = linalg.splu(matrix).solve(right)
    return Image.fromarray(result.round().clip(0, 255).astype(np.uint8))


def fit_picture(
    model: Model,
    edited: Image.Image,
    source: Image.Image,
    mask: np.ndarray,
    what: str = "decoder",
    *,
    steps: int = 75,
    weight: float = 100.0,
) -> Image.Image:
    """What the decoder makes of the edit once it, or the latent, is fitted to this one picture.

    Minimises MSE(m D(z), m edit) + `weight` MSE((1 - m) D(z), (1 - m) source), from the encoded edit on. Either the
    weights of a copy of the decoder move (Adam, 1e-4; the official default), or the latent does (Adam, 0.1).

    Args:
        model: Whose autoencoder; it is left as it was.
        edited: The result of any editor.
        source: The picture before.
        mask: 1 where the edit is to be seen, float (H, W) in [0, 1].
        what: "decoder" or "latents".
        steps: Of Adam, at least 0.
        weight: Of the background.
    """
    if not isinstance(steps, int) or steps < 0:
        raise EditbookError(f"steps of the background's optimisation is a whole number of at least 0, got {steps!r}.")
    dtype = torch.promote_types(model.dtype, torch.float32)  # in half precision Adam's steps of 1e-4 would be lost
    vae = copy.deepcopy(model.vae).requires_grad_(False)
    if model.dtype != dtype:
        vae = vae.to(dtype)
    new, old = (
        (torch.from_numpy(np.asarray(image.convert("RGB"), np.float32)) / 127.5 - 1)
        .permute(2, 0, 1)[None]
        .to(model.device, dtype)
        for image in (edited, source)
    )
    inside = torch.from_numpy(np.asarray(mask, np.float32))[None, None].to(new)
    with torch.no_grad():
        z = vae.encode(new).latent_dist.mode()
    if what == "decoder":
        free, rate = list(vae.decoder.requires_grad_(True).parameters()), 1e-4
    else:
        free, rate = [z.requires_grad_(True)], 0.1
    adam = torch.optim.Adam(free, rate)
    with torch.enable_grad():
        for _ in range(steps):
            picture = vae.decode(z).sample
            loss = (inside * (picture - new)).square().mean()
            loss = loss + weight * ((1 - inside) * (picture - old)).square().mean()
            adam.zero_grad()
            loss.backward()
            adam.step()
    with torch.no_grad():
        array = ((vae.decode(z).sample[0] + 1) * 127.5).round().clamp(0, 255).byte()
    return Image.fromarray(array.permute(1, 2, 0).cpu().numpy())


def seam(image: Image.Image, reference: Image.Image, mask: np.ndarray) -> float:
    """How visible the border of a mask is: the error of the differences between neighbours across it.

    Root mean square over colours and pairs of neighbours of which one is inside and one outside. The outline of a thing
    is a large difference that belongs there, so a reference says what it should be: the exact truth where it is
    known.

    Args:
        image: A picture.
        reference: What it should be.
        mask: (H, W) in [0, 1]; above one half is inside.

    Returns:
        At least 0; 1 is the difference of black and white.

    Raises:
        EditbookError: The mask has no border.
    """
    error = np.asarray(image, np.float64) / 255 - np.asarray(reference, np.float64) / 255
    inside = (mask > 0.5).astype(np.int8)
    across = [np.diff(error, axis=axis)[np.diff(inside, axis=axis) != 0].ravel() for axis in (0, 1)]
    jumps = np.concatenate(across)
    if not jumps.size:
        raise EditbookError("The mask has no border inside the picture: it is all or nothing.")
    return float(np.sqrt(np.square(jumps).mean()))
