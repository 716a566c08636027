"""Attention processors: read or rewrite attention probabilities where asked, leave the fused path alone elsewhere.

Survey Eq. 5: A = softmax(Q K^T / sqrt(d)), with Q from the picture's features and K, V from the text (cross) or from
the picture itself (self). diffusers computes A V in one fused call and never forms A, so a layer that a `Control`
wants gets a processor that forms it; all other layers keep theirs. A control that only changes Q, K and V needs no A
and stays on the fused call: see `swap.Swap`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch.nn import functional

from ..errors import EditbookError
from ..sampling import Attention


@dataclass(frozen=True)
class Site:
    """One attention layer of a U-Net.

    Args:
        kind: "cross" or "self".
        side: "down", "mid" or "up".
        resolution: Height of the layer's feature map, in cells (64, 32, 16, 8 in SD 1.x at 512 px).
        index: Transformer block, numbered in the order of execution: down, mid, up.
        height: As `resolution`.
        width: Width of the feature map, in cells.
    """

    kind: str
    side: str
    resolution: int
    index: int
    height: int
    width: int


class Projected(NamedTuple):
    """What goes into one attention call, for the whole batch.

    Args:
        query: (batch, heads, pixels, width).
        key: (batch, heads, tokens, width); in self-attention the tokens are pixels.
        value: As `key`.
        mask: Which tokens a pixel may attend to (bool), or what is added to its scores: anything that broadcasts to
            (batch, heads, pixels, tokens). None lets it attend to all.
    """

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    mask: torch.Tensor | None = None


def heights(unet: Any, latent_height: int) -> list[int]:
    """Heights of the U-Net's feature maps, finest first: 64, 32, 16, 8 in SD 1.x at 512 px."""
    return [-(-latent_height // 2**depth) for depth in range(len(unet.config.block_out_channels))]


def finest_levels(unet: Any, latent_height: int, levels: int) -> list[int]:
    """Heights of the so many finest levels, finest first.

    Raises:
        EditbookError: The U-Net has fewer, or none is asked for.
    """
    found = heights(unet, latent_height)
    if not 1 <= levels <= len(found):
        raise EditbookError(f"levels must be from 1 to {len(found)}, the levels of this U-Net, got {levels!r}.")
    return found[:levels]


def map_height(unet: Any, latent_height: int, *, limit: int = 16, below_finest: bool = False) -> int:
    """The height at which maps of words are read: the largest of at most 16 cells, else the smallest there is.

    Args:
        unet: The U-Net.
        latent_height: Of the latent, in cells.
        limit: Largest height.
        below_finest: Leave the finest level out, as every choice does on Stable Diffusion, where it has 64 cells.
    """
    found = heights(unet, latent_height)
    return next((height for height in found[1 if below_finest else 0 :] if height <= limit), found[-1])


def source_of(batch: int, rows: int) -> list[int]:
    """For each row of the U-Net's batch the row that holds the source, where targets read from it.

    The null rows come first. A null row reads from the null row of the source where there is one, else from the
    conditional source row: the source then has w = 1 (see `ClassifierFreeGuidance`).

    Args:
        batch: Rows of the batch.
        rows: The conditional ones, which are the last; the first of them is the source.
    """
    nulls = batch - rows
    return [0 if nulls == rows else nulls] * nulls + [nulls] * rows


def null_of(row: int, batch: int, rows: int) -> int | None:
    """The null row of a conditional row, or None if it has none.

    Null rows are those of the guided rows, in order; rows without guidance come first, so they are the last rows'.

    Args:
        row: Which of the conditional rows.
        batch: Rows of the batch.
        rows: The conditional ones, which are the last.
    """
    place = row - (2 * rows - batch)
    return place if place >= 0 else None


def sites(unet: Any, latent_size: tuple[int, int]) -> dict[str, Site]:
    """All attention layers by the name of their processor, in the order of execution.

    diffusers registers down, up, mid; the numbers here follow execution instead.
    """
    found: dict[str, Site] = {}
    blocks: dict[str, int] = {}
    for name, side, depth in _layers(unet):
        # Odd sizes round up where a stride-2 convolution halves them.
        height, width = (-(-length // 2**depth) for length in latent_size)
        transformer, _, layer = name.removesuffix(".processor").rpartition(".")
        index = blocks.setdefault(transformer, len(blocks))
        found[name] = Site("self" if layer == "attn1" else "cross", side, height, index, height, width)
    return found


# Some methods attach a control in each step, and a walk over all modules takes a fiftieth of a small U-Net's step.
_KNOWN: WeakKeyDictionary[Any, list[tuple[str, str, int]]] = WeakKeyDictionary()


def _layers(unet: Any) -> list[tuple[str, str, int]]:
    """Each attention layer's name, side, and how often the latent was halved there; in the order of execution."""
    if unet in _KNOWN:
        return _KNOWN[unet]
    levels = len(unet.config.block_out_channels)
    order = {"down": 0, "mid": 1, "up": 2}

    def place(name: str) -> tuple[str, int]:
        parts = name.split(".")
        side = parts[0].removesuffix("_blocks").removesuffix("_block")
        if side not in order:
            raise EditbookError(f"The attention layer {name!r} is not of a Stable-Diffusion-shaped U-Net.")
        block = int(parts[1]) if side != "mid" else levels - 1
        return side, block if side != "up" else levels - 1 - block

    def key(name: str) -> tuple[int, list[int]]:
        return order[place(name)[0]], [int(part) for part in name.split(".") if part.isdigit()]

    _KNOWN[unet] = [(name, *place(name)) for name in sorted(unet.attn_processors, key=key)]
    return _KNOWN[unet]


class Watcher:
    """What parts of a U-Net report to while it runs: its attention layers (`Control`), or its features.

    `step` and `total` are set by the sampler, never counted from calls.
    """

    step: int = 0
    total: int = 1

    def begin_step(self, i: int, total: int) -> None:
        """Called by the sampler before step i of `total`."""
        self.step, self.total = i, total

    def attached(self, unet: Any, latent_size: tuple[int, int], rows: int) -> AbstractContextManager[None]:
        """A context in which the parts that are wanted report here; what was set before comes back after.

        Args:
            unet: The U-Net.
            latent_size: (height, width) of the latent, in cells.
            rows: n, the number of conditional rows, which are the last ones of a batch.

        Raises:
            EditbookError: No part of the U-Net matches.
        """
        raise NotImplementedError


class Control(Watcher):
    """Reads or changes attention. Subclasses say which layers they want, and what they do there.

    A control sees the conditional rows only: with guidance the unconditional ones attend to the empty prompt, and
    methods leave them alone (`exchange`, which gets the whole batch, is the exception).

    At a layer there are four places to step in. Each is offered to all active controls in order before the next one:
    `exchange` what goes into attention, `rescore` before the softmax, `apply` after it, and `observe` what comes out.
    """

    reads_scores: ClassVar[bool] = False
    """Whether `rescore` is called, which forms the scores."""
    reads_probabilities: ClassVar[bool] = True
    """Whether `apply` is called; a control that reads neither leaves the layer on fused attention."""
    reads_outputs: ClassVar[bool] = False
    """Whether `observe` is called."""

    def wants(self, site: Site) -> bool:
        """Whether this control ever acts at a layer; at least one layer must match."""
        raise NotImplementedError

    def active(self, site: Site) -> bool:
        """Whether it acts there in the current step; if not, the layer runs fused."""
        return True

    def exchange(self, projected: Projected, site: Site, rows: int) -> Projected:
        """The query, key and value to go on with; see `swap.Swap`."""
        return projected

    def rescore(self, scores: torch.Tensor, site: Site) -> torch.Tensor:
        """The scores Q K^T / sqrt(d) to go on with.

        Args:
            scores: (rows, heads, pixels, tokens), conditional rows only. Not to be changed in place.
            site: The layer.
        """
        raise NotImplementedError

    def observe(self, output: torch.Tensor, site: Site) -> torch.Tensor:
        """The layer's output to go on with, behind its output projection.

        Args:
            output: (rows, pixels, channels), conditional rows only. Not to be changed in place.
            site: The layer.
        """
        raise NotImplementedError

    def apply(self, probabilities: torch.Tensor, site: Site) -> torch.Tensor:
        """The attention probabilities to go on with.

        Args:
            probabilities: (rows, heads, pixels, tokens), conditional rows only; each row over tokens sums to 1.
                Not to be changed in place.
            site: The layer.
        """
        raise NotImplementedError

    def attached(self, unet: Any, latent_size: tuple[int, int], rows: int) -> AbstractContextManager[None]:
        """As `Watcher.attached`, for the layers that it wants."""
        return _processors(unet, latent_size, rows, [self])


class Chain:
    """Several controls on one U-Net, applied in order at each layer; each must match some layer.

    Args:
        controls: Controls of attention, of residual features, and other chains.
    """

    def __init__(self, controls: Sequence[Attention]) -> None:
        self.controls: list[Attention] = []
        for control in controls:
            self.controls += control.controls if isinstance(control, Chain) else [control]

    def begin_step(self, i: int, total: int) -> None:
        """Pass the step on to every control."""
        for control in self.controls:
            control.begin_step(i, total)

    @contextmanager
    def attached(self, unet: Any, latent_size: tuple[int, int], rows: int) -> Iterator[None]:
        """As `Control.attached`, for all of them together."""
        of_attention = [control for control in self.controls if isinstance(control, Control)]
        with ExitStack() as stack:
            if of_attention:
                stack.enter_context(_processors(unet, latent_size, rows, of_attention))
            for control in self.controls:
                if not isinstance(control, Control):
                    stack.enter_context(control.attached(unet, latent_size, rows))
            yield


@contextmanager
def _processors(unet: Any, latent_size: tuple[int, int], rows: int, controls: Sequence[Control]) -> Iterator[None]:
    layers = sites(unet, latent_size)
    for control in controls:
        if not any(control.wants(site) for site in layers.values()):
            raise EditbookError(
                f"{type(control).__name__} matches none of the {len(layers)} attention layers; their resolutions are "
                f"{sorted({site.resolution for site in layers.values()}, reverse=True)}."
            )
    # Only layers that are wanted are touched: `set_attn_processor` walks over the whole U-Net, and score distillation
    # attaches a control twice in each of its updates.
    with ExitStack() as stack:
        for name, site in layers.items():
            wanted = [control for control in controls if control.wants(site)]
            if wanted:
                layer = unet.get_submodule(name.removesuffix(".processor"))
                stack.callback(layer.set_processor, layer.processor)
                layer.set_processor(_Controlled(site, wanted, layer.processor, rows))
        yield


class _Controlled:
    """A diffusers attention processor that shows its layer to controls, and forms probabilities if one reads them."""

    def __init__(self, site: Site, controls: Sequence[Control], fused: Any, rows: int) -> None:
        self.site, self.controls, self.fused, self.rows = site, controls, fused, rows

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> torch.Tensor:
        active = [control for control in self.controls if control.active(self.site)]
        if not active:
            return self.fused(attn, hidden_states, encoder_hidden_states, attention_mask, *args, **kwargs)
        if attention_mask is not None or attn.norm_cross is not None or attn.group_norm is not None:
            raise EditbookError("Attention control supports plain Stable Diffusion 1.x layers, without masks or norms.")
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query, key, value = (
            projection.unflatten(-1, (attn.heads, -1)).transpose(1, 2)
            for projection in (attn.to_q(hidden_states), attn.to_k(context), attn.to_v(context))
        )
        projected = Projected(query, key, value)
        for control in active:
            projected = control.exchange(projected, self.site, self.rows)
        _check(projected, query, self.site)
        if any(control.reads_scores or control.reads_probabilities for control in active):
            out = self._explicit(projected, active, attn.scale)
        else:
            out = functional.scaled_dot_product_attention(
                projected.query, projected.key, projected.value, projected.mask, scale=attn.scale
            )
        out = out.transpose(1, 2).flatten(2)
        out = attn.to_out[1](attn.to_out[0](out))
        observers = [control for control in active if control.reads_outputs]
        if observers:
            out = self._conditional(out, [control.observe for control in observers])
        return out / attn.rescale_output_factor

    def _conditional(self, whole: torch.Tensor, parts: Sequence[Callable[[torch.Tensor, Site], torch.Tensor]]) -> Any:
        """What the parts make, in order, of the conditional rows, behind the other rows."""
        given = edited = whole[-self.rows :]
        for part in parts:
            edited = part(edited, self.site)
        if edited is given:  # they only looked
            return whole
        if edited.shape != given.shape:
            raise EditbookError(f"A control changed the shape of attention at {self.site} to {tuple(edited.shape)}.")
        return torch.cat([whole[: -self.rows], edited.to(whole)])

    def _explicit(self, projected: Projected, controls: Sequence[Control], scale: float) -> torch.Tensor:
        """A V, with A shown to the controls that read it, or the scores that it is made of."""
        query, key, value, mask = projected
        scores = query @ key.transpose(-1, -2) * scale
        scores = self._conditional(scores, [control.rescore for control in controls if control.reads_scores])
        if mask is not None:
            scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
        # A softmax in half precision is too coarse; float64 stays what it is.
        probabilities = scores.to(torch.promote_types(scores.dtype, torch.float32)).softmax(-1).to(query.dtype)
        readers = [control.apply for control in controls if control.reads_probabilities]
        return self._conditional(probabilities, readers) @ value


def _check(projected: Projected, query: torch.Tensor, site: Site) -> None:
    """Queries keep their shape; there may be more or fewer keys, each with its value."""
    changed = projected.query, projected.key, projected.value
    batch, heads, _, width = query.shape
    fits = changed[0].shape == query.shape and changed[1].shape == changed[2].shape
    if not fits or changed[1].shape[:2] != (batch, heads) or changed[1].shape[-1] != width:
        shapes = ", ".join(str(tuple(part.shape)) for part in changed)
        raise EditbookError(f"A control changed query, key and value at {site} to the shapes {shapes}.")
