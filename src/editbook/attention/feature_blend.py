"""Running features: what one block of the U-Net hands to the next, blended with the source's outside a mask.

A latent of noise has no meaning yet that two pictures could share; the features on its way through the U-Net have. So
PFB-Diff (Huang, Tu and Xu 2025) blends these, at the coarse levels, and lets the decoder make one picture of the two.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from ..errors import EditbookError, unknown
from .control import Control, Projected, Site, Watcher, heights, null_of, source_of

MASK_GRIDS = ("max", "area", "bicubic")
"""How `mask_at` can bring a mask to a coarser grid."""


def mask_at(mask: torch.Tensor, size: tuple[int, int], how: str = "max") -> torch.Tensor:
    """A mask at the grid of a feature map, (1, 1, height, width) in [0, 1].

    Args:
        mask: (1, 1, h, w) in [0, 1].
        size: (height, width), not larger.
        how: "max": a cell is as open as its most open part, so nothing small is lost; "area": the mean; "bicubic", cut
            to [0, 1], which it overshoots.
    """
    if how not in MASK_GRIDS:
        raise unknown("way to resize a mask", how, MASK_GRIDS)
    if how == "max":
        return functional.adaptive_max_pool2d(mask, size)
    if how == "area":
        return functional.adaptive_avg_pool2d(mask, size)
    # On the CPU there is no bicubic interpolation in half precision.
    return functional.interpolate(mask.float(), size, mode="bicubic", align_corners=False).clamp(0, 1).to(mask)


@dataclass(frozen=True)
class Passage:
    """Where a running feature goes into a block: a residual block with its transformer, a downsampler, the middle.

    Args:
        side: Of the block: "down", "mid" or "up".
        resolution: Height of the feature map, in cells.
        index: Its place among those of the same side and resolution, in the order of execution, from 0.
    """

    side: str
    resolution: int
    index: int


def passages(unet: Any, latent_size: tuple[int, int]) -> dict[Passage, tuple[str, bool]]:
    """All passages in the order of execution, each with a module, and whether it is the module's input (or output).

    In the encoder a feature is taken where it goes in: what was there before is kept aside for the decoder and stays as
    it is. A decoder block gets it together with what was kept aside, so there it is taken where it came out.

    Raises:
        EditbookError: The U-Net is not shaped like Stable Diffusion's.
    """
    if not all(hasattr(unet, part) for part in ("down_blocks", "mid_block", "up_blocks")) or unet.mid_block is None:
        raise EditbookError("This U-Net is not shaped like Stable Diffusion's: it has no down, mid and up blocks.")
    rows = heights(unet, latent_size[0])
    places: list[tuple[str, int, str, bool]] = []
    for depth, part in enumerate(unet.down_blocks):
        name = f"down_blocks.{depth}"
        places += [("down", rows[depth], f"{name}.resnets.{k}", True) for k in range(len(part.resnets))]
        if part.downsamplers is not None:
            places.append(("down", rows[depth], f"{name}.downsamplers.0", True))
    places += [("mid", rows[-1], "mid_block", True), ("up", rows[-1], "mid_block", False)]
    for block, part in enumerate(unet.up_blocks):
        name, depth = f"up_blocks.{block}", len(rows) - 1 - block
        last = len(part.resnets) - 1
        kind = "attentions" if getattr(part, "attentions", None) else "resnets"
        places += [("up", rows[depth], f"{name}.{kind}.{k}", False) for k in range(last)]
        if part.upsamplers is not None:  # behind the last one the picture is done
            places.append(("up", rows[depth - 1], f"{name}.upsamplers.0", False))
    found: dict[Passage, tuple[str, bool]] = {}
    for side, resolution, module, enters in places:
        index = sum((passage.side, passage.resolution) == (side, resolution) for passage in found)
        found[Passage(side, resolution, index)] = module, enters
    return found


class BlendFeatures(Watcher):
    """h <- h M + h_source (1 - M) at some passages: inside the mask a row's own features, outside those of the source.

    It stands beside controls of attention in a `Chain`, or alone. The source is the first conditional row, and stays
    as it is; a null row reads what `control.source_of` says.

    Args:
        mask: M, (1, 1, h, w) in [0, 1], at the latent's size.
        places: The passages.
        stop: The step before which it ends; None goes to the last.
        how: See `mask_at`.
    """

    def __init__(
        self, mask: torch.Tensor, places: Collection[Passage], stop: int | None = None, how: str = "max"
    ) -> None:
        self.mask, self.places, self.stop, self.how = mask, set(places), stop, how

    def apply(self, features: torch.Tensor, rows: int) -> torch.Tensor:
        """The blended features of the whole batch, (batch, channels, height, width)."""
        mask = mask_at(self.mask, (features.shape[-2], features.shape[-1]), self.how).to(features)
        return torch.lerp(features[source_of(len(features), rows)], features, mask)

    @contextmanager
    def attached(self, unet: Any, latent_size: tuple[int, int], rows: int) -> Iterator[None]:
        """As `Watcher.attached`, for its passages."""
        known = passages(unet, latent_size)
        missing = self.places - set(known)
        if missing or not self.places:
            raise EditbookError(
                f"{type(self).__name__} needs passages of this U-Net, got {sorted(missing, key=repr)}; they are at "
                f"{sorted({(place.side, place.resolution) for place in known})}."
            )

        def enter(module: Any, inputs: tuple[Any, ...]) -> Any:
            return (self.apply(inputs[0], rows), *inputs[1:]) if self.active else None

        def leave(module: Any, inputs: Any, output: Any) -> Any:
            if not self.active:
                return None
            if isinstance(output, tuple):  # a transformer's
                return (self.apply(output[0], rows), *output[1:])
            return self.apply(output, rows)

        with ExitStack() as stack:
            for place in self.places:
                name, enters = known[place]
                module = unet.get_submodule(name)
                handle = module.register_forward_pre_hook(enter) if enters else module.register_forward_hook(leave)
                stack.callback(handle.remove)
            yield

    @property
    def active(self) -> bool:
        """Until it ends."""
        return self.stop is None or self.step < self.stop


class MaskWords(Control):
    """Words that act only inside a mask, or only outside: elsewhere, pixels do not attend to them.

    Scores of these columns become minus infinity before the softmax, so the other tokens share what they had. Null rows
    of the targets are masked at the same positions, as the official code does; the source row is left alone. It stays
    one fused call.

    Args:
        mask: (1, 1, h, w) in [0, 1], at the latent's size.
        inside: Tokens that act inside.
        outside: Tokens that act outside.
        layers: The transformer blocks, by `Site.index`.
        stop: The step before which it ends; None goes to the last.
        how: See `mask_at`; above one half is inside. Where no cell of a grid would be inside, or outside, those are
            that have a part of that side: a word that acts somewhere acts at every level.

    Raises:
        EditbookError: The start token is among them: a pixel with nothing to attend to would be NaN.
    """

    reads_probabilities = False

    def __init__(
        self,
        mask: torch.Tensor,
        inside: Collection[int],
        outside: Collection[int],
        layers: Collection[int],
        stop: int | None = None,
        how: str = "max",
    ) -> None:
        if 0 in (*inside, *outside):
            raise EditbookError("The start token (position 0) cannot be masked: some pixel would see nothing.")
        self.mask, self.layers, self.stop, self.how = mask, set(layers), stop, how
        self.inside, self.outside = sorted(inside), sorted(outside)

    def wants(self, site: Site) -> bool:
        """Cross-attention of the layers."""
        return site.kind == "cross" and site.index in self.layers

    def active(self, site: Site) -> bool:
        """Until it ends."""
        return self.stop is None or self.step < self.stop

    def cells(self, size: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Which cells of a grid are inside, and which outside, bool (cells,) each."""
        open_ = mask_at(self.mask, size, self.how).flatten()
        inside, outside = open_ > 0.5, open_ <= 0.5
        if not inside.any():
            inside = mask_at(self.mask, size, "max").flatten() > 0.5
        if not outside.any():
            outside = mask_at(1 - self.mask, size, "max").flatten() > 0.5
        return inside, outside

    def exchange(self, projected: Projected, site: Site, rows: int) -> Projected:
        """The same queries, keys and values, and a mask."""
        batch = len(projected.query)
        inside, outside = (part.to(projected.query.device)[:, None] for part in self.cells((site.height, site.width)))
        seen = torch.ones(batch, 1, len(inside), projected.key.shape[2], dtype=torch.bool, device=inside.device)
        nulls = (null_of(row, batch, rows) for row in range(1, rows))
        for row in (*range(batch - rows + 1, batch), *(null for null in nulls if null is not None)):
            seen[row, 0, :, self.inside] = inside
            seen[row, 0, :, self.outside] &= outside
        given = projected.mask
        if given is None or given.dtype == torch.bool:
            return projected._replace(mask=seen if given is None else seen & given)
        return projected._replace(mask=given.expand_as(seen).masked_fill(~seen, -torch.inf))
