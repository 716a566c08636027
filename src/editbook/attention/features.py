"""Residual features: what the U-Net's residual blocks add, read or exchanged where asked.

A block computes shortcut(x) + branch(x). The branch of a decoder block holds where the parts of things are, in much the
same way for pictures of different looks (Tumanyan et al. 2023, Plug-and-Play). A forward hook on the branch's last
convolution sees exactly this, before the shortcut is added, and no forward of diffusers has to be rewritten.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..errors import EditbookError
from .control import Watcher, heights, null_of, source_of


@dataclass(frozen=True)
class Block:
    """One residual block of a U-Net.

    Args:
        side: "down", "mid" or "up".
        resolution: Height of its feature map, in cells.
        index: Its place among the blocks of the same side and resolution, in the order of execution, from 0.
        height: As `resolution`.
        width: Width of the feature map, in cells.
    """

    side: str
    resolution: int
    index: int
    height: int
    width: int


def blocks(unet: Any, latent_size: tuple[int, int]) -> dict[str, Block]:
    """All residual blocks by the name of their module, in the order of execution.

    Raises:
        EditbookError: The U-Net is not shaped like Stable Diffusion's.
    """
    rows, columns = (heights(unet, length) for length in latent_size)
    levels = len(rows)
    if not all(hasattr(unet, part) for part in ("down_blocks", "mid_block", "up_blocks")) or unet.mid_block is None:
        raise EditbookError("This U-Net is not shaped like Stable Diffusion's: it has no down, mid and up blocks.")
    parts = [
        *((f"down_blocks.{k}", "down", k, part) for k, part in enumerate(unet.down_blocks)),
        ("mid_block", "mid", levels - 1, unet.mid_block),
        *((f"up_blocks.{k}", "up", levels - 1 - k, part) for k, part in enumerate(unet.up_blocks)),
    ]
    return {
        f"{name}.resnets.{index}": Block(side, rows[depth], index, rows[depth], columns[depth])
        for name, side, depth, part in parts
        for index in range(len(part.resnets))
    }


class Features(Watcher):
    """Reads or changes residual features, beside controls of attention in a `Chain`, or alone.

    It sees the *whole* batch: null rows first, then the n conditional rows, of which the first is the source.
    """

    def wants(self, block: Block) -> bool:
        """Whether it ever acts at a block; at least one block must match."""
        raise NotImplementedError

    def active(self, block: Block) -> bool:
        """Whether it acts there in the current step."""
        return True

    def apply(self, features: torch.Tensor, block: Block, rows: int) -> torch.Tensor:
        """What the branch is to add.

        Args:
            features: (batch, channels, height, width). Not to be changed in place.
            block: Where.
            rows: n, the number of conditional rows, which are the last ones.
        """
        raise NotImplementedError

    @contextmanager
    def attached(self, unet: Any, latent_size: tuple[int, int], rows: int) -> Iterator[None]:
        """As `Watcher.attached`, for the blocks that it wants."""
        known = blocks(unet, latent_size)
        wanted = {name: block for name, block in known.items() if self.wants(block)}
        if not wanted:
            found = sorted({(block.side, block.resolution) for block in known.values()})
            raise EditbookError(f"{type(self).__name__} matches none of the residual blocks; they are at {found}.")
        with ExitStack() as stack:
            for name, block in wanted.items():
                hook = self._hook(block, rows)
                stack.callback(unet.get_submodule(name).conv2.register_forward_hook(hook).remove)
            yield

    def _hook(self, block: Block, rows: int) -> Any:
        def hook(module: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
            if not self.active(block):
                return output
            changed = self.apply(output, block, rows)
            if changed.shape != output.shape:
                raise EditbookError(f"A control changed the shape of features at {block} to {tuple(changed.shape)}.")
            return changed

        return hook


class InjectFeatures(Features):
    """The source's features for everyone, or for one row: Plug-and-Play's first half.

    Args:
        resolution: Height of the feature map.
        side: "down", "mid" or "up".
        index: Which of the blocks there; the paper's is the second of the decoder's blocks, 1.
        stop: The step before which it ends; None goes to the last.
        row: The conditional row that is read; null rows read its null row, where it has one.
        into: The one conditional row that gets them, with its null row; None is every row.
    """

    def __init__(
        self,
        resolution: int,
        side: str = "up",
        index: int = 1,
        stop: int | None = None,
        row: int = 0,
        into: int | None = None,
    ) -> None:
        self.resolution, self.side, self.index, self.stop, self.row = resolution, side, index, stop, row
        self.into = into

    def wants(self, block: Block) -> bool:
        """The one block."""
        return (block.side, block.resolution, block.index) == (self.side, self.resolution, self.index)

    def active(self, block: Block) -> bool:
        """Until it ends."""
        return self.stop is None or self.step < self.stop

    def apply(self, features: torch.Tensor, block: Block, rows: int) -> torch.Tensor:
        """The source's features in the rows that get them."""
        batch = len(features)
        if self.into is None:
            return features[[row + self.row for row in source_of(batch, rows)]]
        order = list(range(batch))
        order[batch - rows + self.into] = batch - rows + self.row
        null, read = null_of(self.into, batch, rows), null_of(self.row, batch, rows)
        if null is not None:
            order[null] = batch - rows + self.row if read is None else read
        return features[order]


class CaptureFeatures(Features):
    """Keeps residual features, as float32 on the CPU; changes nothing.

    In a `Chain`, one before an injection keeps a block's own features, one behind it the injected ones.

    Args:
        resolutions: Heights of feature maps to keep; None keeps all.
        sides: Parts of the U-Net: "down", "mid", "up".
        index: Which of the blocks of a side and resolution; None keeps all.
        steps: Indices of the steps to keep; None keeps all.
    """

    def __init__(
        self,
        resolutions: Iterable[int] | None = None,
        sides: Iterable[str] = ("up",),
        index: int | None = 1,
        steps: Iterable[int] | None = None,
    ) -> None:
        self.resolutions = None if resolutions is None else set(resolutions)
        self.sides, self.index = set(sides), index
        self.steps = None if steps is None else set(steps)
        self.records: dict[tuple[Block, int], torch.Tensor] = {}
        """(block, step) -> (rows, channels, height, width), of the conditional rows."""

    def wants(self, block: Block) -> bool:
        """The blocks asked for."""
        fits = self.resolutions is None or block.resolution in self.resolutions
        return fits and block.side in self.sides and self.index in (None, block.index)

    def active(self, block: Block) -> bool:
        """Only in the steps asked for."""
        return self.steps is None or self.step in self.steps

    def apply(self, features: torch.Tensor, block: Block, rows: int) -> torch.Tensor:
        """Keep the conditional rows; change nothing."""
        self.records[block, self.step] = features[-rows:].float().cpu().clone()
        return features


def components(features: Sequence[torch.Tensor] | torch.Tensor, count: int = 3) -> np.ndarray:
    """The first principal components of feature maps, fitted to all of them together: like features, like colours.

    Args:
        features: n maps (channels, height, width), of one size; every cell of every map is one sample.
        count: How many components; 3 make a picture.

    Returns:
        float32 (n, height, width, count), each component stretched to [0, 1] over all maps. Where the maps are all
        alike it is 0. The sign of a component, which is arbitrary, makes its largest channel weight positive.

    Raises:
        EditbookError: There are fewer channels or samples than components.
    """
    maps = torch.stack(list(features)).double()
    n, channels, height, width = maps.shape
    samples = maps.permute(0, 2, 3, 1).reshape(-1, channels)
    if not 1 <= count <= min(samples.shape):
        raise EditbookError(f"count must be from 1 to {min(samples.shape)}, got {count!r}.")
    samples = samples - samples.mean(0)
    axes = torch.linalg.svd(samples, full_matrices=False).Vh[:count]
    axes = axes * axes.gather(1, axes.abs().argmax(1, keepdim=True)).sign()
    projected = samples @ axes.T
    low, high = projected.amin(0), projected.amax(0)
    stretched = (projected - low) / (high - low).clamp_min(1e-12)
    return stretched.reshape(n, height, width, count).float().numpy()
