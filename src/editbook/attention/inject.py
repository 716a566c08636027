"""Queries and keys of the source for every row: the layout of one picture, the values of another."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ..errors import EditbookError
from .control import Projected, Site, map_height, sites, source_of
from .features import blocks
from .swap import Swap


class InjectQueriesKeys(Swap):
    """Plug-and-Play's second half: every row mixes its own values with the source's attention map.

    softmax(Q_s K_s^T / sqrt(d)) V_t: which places belong together is decided by the source, what stands there is the
    row's own. Queries and keys are exchanged before the layer runs, so it stays one fused call.

    Args:
        resolutions: As in `Swap`.
        sides: As in `Swap`.
        first: The first transformer block, by `Site.index`; earlier ones are left alone.
        start: As in `Swap`.
        stop: As in `Swap`.
    """

    def __init__(
        self,
        resolutions: Iterable[int] | None = None,
        sides: Iterable[str] = ("up",),
        first: int = 0,
        start: int = 0,
        stop: int | None = None,
    ) -> None:
        super().__init__(resolutions, sides, start, stop)
        self.first = first

    def wants(self, site: Site) -> bool:
        """Self-attention at the places asked for, from the first block on."""
        return super().wants(site) and site.index >= self.first

    def exchange(self, projected: Projected, site: Site, rows: int) -> Projected:
        """The source's queries and keys, each row's own values."""
        source = source_of(len(projected.query), rows)
        return projected._replace(query=projected.query[source], key=projected.key[source])


def injection_place(unet: Any, latent_size: tuple[int, int], resolution: int | None = None) -> tuple[int, int]:
    """Where Plug-and-Play injects: the height of the features' level, and the first transformer block, by `Site.index`.

    Features go into the second block of a decoder level, queries and keys into its self-attention and all behind it.

    Args:
        unet: The U-Net.
        latent_size: (height, width) of the latent, in cells.
        resolution: Height of the level's feature map; None is the largest of at most 16 cells that is not the finest,
            the 16 of the paper in Stable Diffusion.

    Raises:
        EditbookError: The decoder has no second block with attention at this resolution.
    """
    height = map_height(unet, latent_size[0], below_finest=True) if resolution is None else resolution
    here: dict[int, list[int]] = {}
    for site in sites(unet, latent_size).values():
        if site.side == "up" and site.kind == "self":
            here.setdefault(site.resolution, []).append(site.index)
    second = {
        block.resolution for block in blocks(unet, latent_size).values() if (block.side, block.index) == ("up", 1)
    }
    known = sorted(level for level, found in here.items() if len(found) > 1 and level in second)
    if height not in known:
        raise EditbookError(f"resolution must be one of {known}, the decoder's levels with attention, got {height!r}.")
    return height, here[height][1]
