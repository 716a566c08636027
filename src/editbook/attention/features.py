"""Residual features: what the U-Net's residual blocks add, read or exchanged where asked.

A block computes shortcut(x) + branch(x). The branch of a decoder block holds where the parts of things are, in much the
same way for pictures of different looks (Tumanyan et al. 2023, Plug-and-Play). A forward hook on the branch's last
convolution sees exactly this, before the shortcut is added, and no forward of diffusers has to be rewritten.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from ..errors import EditbookError
from .control import heights, source_of


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


class Features:
    """Reads or changes residual features, beside controls of attention in a `Chain`, or alone.

    It sees the *whole* batch: null rows first, then the n conditional rows, of which the first is the source. `step`
    and `total` are set by the sampler.
    """

    step: int = 0
    total: int = 1

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

    def begin_step(self, i: int, total: int) -> None:
        """Called by the sampler before step i of `total`."""
        self.step, self.total = i, total

    @contextmanager
    def attached(self, unet: Any, latent_size: tuple[int, int], rows: int) -> Iterator[None]:
        """A context in which the blocks that this control wants report to it.

        Raises:
            EditbookError: No block of the U-Net matches.
        """
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
    """The source's features for everyone: Plug-and-Play's first half.

    Args:
        resolution: Height of the feature map.
        side: "down", "mid" or "up".
        index: Which of the blocks there; the paper's is the second of the decoder's blocks, 1.
        stop: The step before which it ends; None goes to the last.
        row: The conditional row that is read; null rows read its null row, where each row has one.
    """

    def __init__(
        self, resolution: int, side: str = "up", index: int = 1, stop: int | None = None, row: int = 0
    ) -> None:
        self.resolution, self.side, self.index, self.stop, self.row = resolution, side, index, stop, row

    def wants(self, block: Block) -> bool:
        """The one block."""
        return (block.side, block.resolution, block.index) == (self.side, self.resolution, self.index)

    def active(self, block: Block) -> bool:
        """Until it ends."""
        return self.stop is None or self.step < self.stop

    def apply(self, features: torch.Tensor, block: Block, rows: int) -> torch.Tensor:
        """Every row gets the features of the source."""
        return features[[row + self.row for row in source_of(len(features), rows)]]
