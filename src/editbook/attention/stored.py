"""Keys and values that one walk leaves behind and another one attends to, by layer and step (TIC, KV Inversion)."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch

from ..errors import EditbookError, unknown
from .control import Projected, Site
from .swap import Swap

Pairs = dict[tuple[Site, int], tuple[torch.Tensor, torch.Tensor]]
"""(layer, step of *sampling*) -> keys and values of one picture, (1, heads, pixels, width) each."""


class Recorder(Swap):
    """Keeps keys and values of the first conditional row on the way up; changes nothing.

    The step that walks up between two levels and the one that samples down between them are the same step of the two
    walks, and both tell the U-Net the same timestep (`Schedule.inversion` with "next"). So what is recorded while the
    latent leaves z_{t-1} is filed under the sampling step that leaves z_t.

    Args:
        resolutions: As in `Swap`.
        sides: As in `Swap`.
        start: The first *sampling* step that is of interest; earlier ones, the last on the way up, are not kept.
    """

    def __init__(
        self,
        resolutions: Iterable[int] | None = None,
        sides: Iterable[str] = ("down", "mid", "up"),
        start: int = 0,
    ) -> None:
        super().__init__(resolutions, sides, start)
        self.pairs: Pairs = {}

    @property
    def sampling_step(self) -> int:
        """The step of the way down that the present one of the way up belongs to."""
        return self.total - 1 - self.step

    def active(self, site: Site) -> bool:
        """Where the way down will ask for it."""
        return self.sampling_step >= self.start

    def exchange(self, projected: Projected, site: Site, rows: int) -> Projected:
        """Keep copies of the first conditional row's keys and values."""
        row = slice(len(projected.key) - rows, len(projected.key) - rows + 1)
        self.pairs[site, self.sampling_step] = projected.key[row].clone(), projected.value[row].clone()
        return projected


class StoredAttention(Swap):
    """Rows ask with their own queries, and stored keys and values answer.

    Args:
        pairs: What was stored. They may be replaced between steps (KV Inversion tunes them).
        start: The first step in which they are used; all from there to the last must be there.
        serves: The "source" (the first conditional row, and its null row where every row has one), the "edits" (all
            other rows), or "all".
        share: beta in [0, 1]: keys and values are beta stored + (1 - beta) own, pixel by pixel. 1 uses the stored ones
            alone.

    Raises:
        EditbookError: There are no pairs, `serves` is unknown, or share is outside [0, 1].
    """

    def __init__(self, pairs: Pairs, start: int = 0, *, serves: str = "all", share: float = 1.0) -> None:
        super().__init__(start=start)
        if not pairs:
            raise EditbookError("No keys and values are stored: nothing was recorded.")
        if serves not in ("source", "edits", "all"):
            raise unknown("rows to serve", serves, ("source", "edits", "all"))
        if not 0 <= share <= 1:
            raise EditbookError(f"share must lie in [0, 1], got {share!r}.")
        self.pairs, self.serves, self.share = pairs, serves, share
        self._places = {site for site, _ in pairs}
        self._steps = 1 + max(step for _, step in pairs)

    def serving(self, serves: str) -> StoredAttention:
        """The same for other rows."""
        return StoredAttention(self.pairs, self.start, serves=serves, share=self.share)

    def wants(self, site: Site) -> bool:
        """The layers for which something is stored, at the same size."""
        return site in self._places

    def stored(self, projected: Projected, site: Site) -> tuple[torch.Tensor, torch.Tensor]:
        """What is stored for this step, blended with each row's own: keys and values of the whole batch.

        Raises:
            EditbookError: Nothing is stored for this step, or the walk has another number of steps.
        """
        if (site, self.step) not in self.pairs or self.total != self._steps:
            first = min(step for _, step in self.pairs)
            raise EditbookError(
                f"Keys and values are stored for {self._steps} steps, the first of them {first}; this "
                f"is step {self.step} of {self.total}. Sample with the steps of the inversion."
            )
        key, value = self.pairs[site, self.step]
        return torch.lerp(projected.key, key, self.share), torch.lerp(projected.value, value, self.share)

    def exchange(self, projected: Projected, site: Site, rows: int) -> Projected:
        """Stored keys and values for the rows that are served."""
        batch = len(projected.key)
        source = [batch - rows, *([0] if batch == 2 * rows else [])]
        chosen = [self.serves == "all" or (row in source) == (self.serves == "source") for row in range(batch)]
        mask = torch.tensor(chosen, device=projected.key.device).view(-1, 1, 1, 1)
        key, value = self.stored(projected, site)
        return projected._replace(
            key=torch.where(mask, key, projected.key), value=torch.where(mask, value, projected.value)
        )


class MaskedConcatenation(StoredAttention):
    """The last row attends to the stored picture and to the row before it at once, each where a mask lets it.

    softmax([Q K_stored^T + log(1 - M); Q K_plain^T + log M]) [V_stored; V_plain], with M on the keys: M = 0 leaves what
    is stored, M = 1 the plain row. Our reading of TIC's "mask-guided attention concatenation", which only its abstract
    and the survey describe to us.

    Args:
        pairs: As in `StoredAttention`.
        start: As there.
        share: As there.
        mask: M at a layer's grid, (pixels,) in [0, 1].
    """

    def __init__(self, pairs: Pairs, start: int, mask: Callable[[Site], torch.Tensor], *, share: float = 1.0) -> None:
        super().__init__(pairs, start, serves="edits", share=share)
        self.mask = mask

    def exchange(self, projected: Projected, site: Site, rows: int) -> Projected:
        """Twice as many keys for all; rows but the last see their own twice, which changes no average."""
        batch = len(projected.key)
        # Of two or more null rows the last one is the last row's; a single one would be the source's.
        edits = [batch - 1, *([batch - rows - 1] if batch - rows >= 2 else [])]
        key, value = (torch.cat([part, part], dim=2) for part in projected[1:3])
        stored = self.stored(projected, site)
        for whole, kept, own in zip((key, value), stored, projected[1:3], strict=True):
            for row in edits:
                whole[row] = torch.cat([kept[row], own[row - 1]], dim=1)
        inside = self.mask(site).to(key)
        added = key.new_zeros(batch, 1, 1, key.shape[2])
        added[edits] = torch.cat([1 - inside, inside]).log()
        return projected._replace(key=key, value=value, mask=added)
