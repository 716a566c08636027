"""Fine-tuned weights as a small difference from the weights they began as: low-rank where that is smaller.

A tuned network is stored beside its base as one safetensors file. Of every matrix, and of every convolution seen as a
matrix (output channels x the rest), the largest singular values of the difference are kept; vectors keep their whole
difference, and layers whose shape has changed are stored as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from .errors import EditbookError

FULL, DIFFERENCE, UP, DOWN = "full", "difference", "up", "down"
"""What stands before the name of a weight in a delta's file."""

Weights = Mapping[str, torch.Tensor]


def compress(base: Weights, tuned: Weights, size: int) -> dict[str, torch.Tensor]:
    """The difference of two networks' weights in float16, within a size.

    Layers whose shape differs, and vectors, are stored whole. What is left of the size goes to the singular vectors of
    the other layers' differences, those first that take away most squared error for their numbers: a rank of its own
    for every layer.

    Args:
        base: Weights to begin with.
        tuned: Weights to come to: the same names.
        size: Bytes of the result, at most.

    Raises:
        EditbookError: Other names, or what has to be stored whole is larger than that.
    """
    if base.keys() != tuned.keys():
        raise EditbookError("A delta needs two networks with the same layers.")
    kept: dict[str, torch.Tensor] = {}
    parts: dict[str, tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = {}
    for name, weight in tuned.items():
        if weight.shape != base[name].shape:
            kept[f"{FULL}.{name}"] = weight
        elif weight.ndim < 2:
            kept[f"{DIFFERENCE}.{name}"] = weight - base[name]
        else:
            u, s, v = torch.linalg.svd((weight - base[name]).float().flatten(1), full_matrices=False)
            parts[name] = (u, s, v)
    left = size // 2 - sum(weight.numel() for weight in kept.values())
    if left < 0:
        raise EditbookError(f"A delta of {size} bytes cannot hold what is stored whole: allow {size - 2 * left}.")
    gains = [
        (float(value) ** 2 / (len(u) + v.shape[1]), name, len(u) + v.shape[1])
        for name, (u, s, v) in parts.items()
        for value in s
        if value > 0
    ]
    ranks = dict.fromkeys(parts, 0)
    for _, name, cost in sorted(gains, reverse=True):
        if cost > left:
            break
        ranks[name] += 1
        left -= cost
    for name, (u, s, v) in parts.items():
        rank = ranks[name]
        if rank:
            root = s[:rank].sqrt()
            kept[f"{UP}.{name}"], kept[f"{DOWN}.{name}"] = u[:, :rank] * root, root[:, None] * v[:rank]
    return {name: weight.to(torch.float16).contiguous() for name, weight in kept.items()}


@torch.no_grad()
def apply(network: nn.Module, delta: Weights) -> None:
    """Turn the base network into the tuned one, in place; the result is float16 close to what `compress` kept.

    Args:
        network: The base; layers whose shape differs must have been given their new shape.
        delta: From `compress`.

    Raises:
        EditbookError: The delta belongs to another network.
    """
    weights = network.state_dict()
    for key, value in delta.items():
        kind, _, name = key.partition(".")
        if name not in weights:
            raise EditbookError(f"The delta changes {name!r}, which this network does not have: it has another base.")
        weight = weights[name]
        value = value.to(weight)
        if kind == UP:
            value = (value @ delta[f"{DOWN}.{name}"].to(weight)).view(-1, *weight.shape[1:])
        elif kind == DOWN:
            continue
        if value.shape != weight.shape:
            raise EditbookError(
                f"The delta's {name!r} has the shape {tuple(value.shape)}, this network's {tuple(weight.shape)}."
            )
        weight.copy_(value if kind == FULL else weight + value)


@torch.no_grad()
def widen_input(unet: Any, channels: int) -> None:
    """Give a U-Net further input channels, in place; their weights are zero, so at first they change nothing.

    InstructPix2Pix (Brooks et al. 2023, section 3.2) goes from 4 to 8: the noisy latent and the source picture's.

    Args:
        unet: A diffusers U-Net with a convolution `conv_in`.
        channels: How many it shall have, at least as many as it has.
    """
    old = unet.conv_in
    if channels < old.in_channels:
        raise EditbookError(f"This U-Net has {old.in_channels} input channels; it can be given more, not {channels}.")
    new = nn.Conv2d(channels, old.out_channels, old.kernel_size, old.stride, old.padding).to(old.weight)
    new.weight.zero_()
    new.weight[:, : old.in_channels] = old.weight
    new.bias = old.bias
    unet.conv_in = new.requires_grad_(old.weight.requires_grad)
    unet.register_to_config(in_channels=channels)
