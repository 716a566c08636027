"""TIC: sampling attends to the keys and values that the inversion saw (Duan et al. 2024)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from ....attention import (
    Chain,
    Control,
    MaskedConcatenation,
    Pairs,
    Recorder,
    Site,
    StoredAttention,
    WordForeground,
    at_grid,
    finest_levels,
)
from ....inversion import Inversion, Inverter, ddim_inversion
from ....masks import KeepSource, PasteSourceRow
from ....model import Model
from ....options import fraction, option
from ....result import Edit
from ....sampling import Callback, ClassifierFreeGuidance, Move, Schedule, follow, whole_steps
from ...base import Card, InvertingMethod, Request, finish, sample_back


@dataclass
class TIC(Inverter):
    """DDIM inversion that keeps what its self-attention saw, for the way back to attend to.

    A reconstruction branch drifts from the picture, and so do the keys and values that MasaCtrl reads from it. Those of
    the walk up come from the picture itself. On the way back the source row asks with its own queries, and they answer,
    which pulls its noise estimates towards those of the inversion (the bracket of Eq. 9).

    No official code is known. Layers and first step are those of a third party's re-implementation of the
    reconstruction (wmchen/diffusion-inversion, whose test `i > 4` begins one step later).

    Args:
        start: The fraction of steps of the way back after which they are read; 0.08 is 4 of 50. 1 never.
        levels: The so many finest levels whose self-attention is kept; 2 are layers 10 to 15 of SD's decoder.
        side: "decoder", or "all" for the encoder and the middle as well.
        inversion_prompt: "empty", as in the re-implementation: the source row then takes the unconditional estimate,
            whatever its prompt. Or "source", for a row with its prompt and w = 1.
    """

    id: ClassVar[str] = "tic-inversion"
    start: float = fraction(0.08)
    levels: int = 2
    side: str = option("decoder", among=("decoder", "all"))
    inversion_prompt: str = option("empty", among=("empty", "source"))

    def first_step(self, steps: int) -> int:
        """The step of the way back from which on they are read."""
        return whole_steps(self.start, steps, nearest=True)

    def recorder(self, model: Model, steps: int) -> Recorder:
        """What keeps keys and values at the chosen places."""
        sides = ("up",) if self.side == "decoder" else ("down", "mid", "up")
        levels = finest_levels(model.unet, model.latent_shape[1], self.levels)
        return Recorder(levels, sides, self.first_step(steps))

    def attention(self, pairs: Pairs, steps: int) -> StoredAttention | None:
        """What lets the source row read them; None if no step asks for any."""
        return StoredAttention(pairs, self.first_step(steps), serves="source") if pairs else None

    def __call__(
        self,
        model: Model,
        z_0: torch.Tensor,
        prompt: str,
        schedule: Schedule,
        *,
        callbacks: Iterable[Callback] = (),
        **_: Any,
    ) -> Inversion:
        """Up by DDIM inversion, recording."""
        empty = self.inversion_prompt == "empty"
        recorder = self.recorder(model, schedule.steps)
        inversion = ddim_inversion(
            model, z_0, "" if empty else prompt, schedule, attention=recorder, callbacks=callbacks
        )
        inversion.attention = self.attention(recorder.pairs, schedule.steps)
        inversion.source_scale = 0.0 if empty else 1.0
        return inversion


def record(model: Model, inversion: Inversion, prompt: str, recorder: Recorder) -> Pairs:
    """What the network sees along the path of an inversion that kept nothing: one more walk up, on its latents.

    Args:
        model: The model.
        inversion: Of one picture.
        prompt: Under which it is seen.
        recorder: Keeps it.
    """
    up = [Move(move.t, move.alpha_to, move.alpha_from) for move in reversed(inversion.moves)]
    path = inversion.latents[::-1]
    guidance = ClassifierFreeGuidance(model.embed(prompt))
    follow(model, path[0], up, guidance, attention=recorder, blend=KeepSource(path[1:], 0.0))
    return recorder.pairs


@dataclass
class TICInversion(InvertingMethod):
    """Duan, Cui, Kang, Zhang, Fei, Fan and Huang 2024: tuning-free inversion-enhanced control.

    MasaCtrl without the branch: the edited row asks with its own queries, and the keys and values that were recorded
    during inversion answer, in both guidance halves. The target prompt and w lay out the new pose, the picture itself
    fills it. The source row is sampled for the reconstruction only; the edit does not read it.

    What the picture does not have cannot be found among its keys. For edits that add something, a plain row with the
    target prompt is sampled as well, and the edited row attends to both, see `MaskedConcatenation`: the mask M comes
    from the request, which as everywhere also keeps the source outside it, or from the cross-attention of `word`.

    The editing half is our reconstruction: we read the abstract and the survey, and no code for it is known. The knobs
    of attention are options of the inversion (`TIC`); under an inversion that stores nothing, one more walk along its
    latents records the keys and values of the source prompt.

    Args:
        word: A word, or run of words, of the target prompt that names what is new, for an automatic M.
        mask_threshold: Above this share of its range a cell of the word's map belongs to M.
    """

    card: ClassVar[Card] = Card(
        id="tic-inversion",
        title="Tuning-Free Inversion-Enhanced Control for Consistent Image Editing",
        authors="Duan, Cui, Kang, Zhang, Fei, Fan, Huang",
        year=2024,
        venue="AAAI",
        paper="2312.14611",
        branch="tuning_free/attention",
        inputs=("source prompt", "target prompt"),
        edit_types=("non-rigid",),
    )
    inversion: str = "tic-inversion"
    word: str | None = None
    mask_threshold: float = option(0.1, above=0, below=1)

    def stored(self, model: Model, inversion: Inversion, prompt: str) -> StoredAttention | None:
        """What the inversion stored, or what its path has to show; None if no step shall read it."""
        if isinstance(self.inverter, TIC):
            assert inversion.attention is None or isinstance(inversion.attention, StoredAttention)
            return inversion.attention
        options, steps = TIC(), len(inversion.moves)
        return options.attention(record(model, inversion, prompt, options.recorder(model, steps)), steps)

    def controls(self, request: Request, stored: StoredAttention, found: WordForeground | None) -> Sequence[Control]:
        """What the edited row attends to, as the last of two or three rows.

        Args:
            request: Its mask, if it has one, is M.
            stored: The picture's keys and values.
            found: Where the word acts, else.
        """
        if request.mask is not None:
            mask = request.mask[0]
            return [
                MaskedConcatenation(stored.pairs, stored.start, lambda site: at_grid(mask, site)[0], share=stored.share)
            ]
        if found is None:
            return [stored.serving("edits")]

        def inside(site: Site) -> torch.Tensor:
            """The word's region in the plain row; nowhere, while no map is known."""
            known = found(site)
            return torch.zeros(site.height * site.width) if known is None else known[1]

        return [found, MaskedConcatenation(stored.pairs, stored.start, inside, share=stored.share)]

    def __call__(self, model: Model, request: Request) -> Edit:
        """Invert and record; sample the target with what was recorded."""
        plain = [request.target] if request.mask is not None or self.word is not None else []
        model.embed([request.source, request.target])  # before the inversion: bad prompts should cost no walk
        found = None
        if self.word is not None:  # where it acts in the plain row
            prompts, words = [request.source, *plain, request.target], [None, self.word, None]
            found = WordForeground.of(model, prompts, words, self.mask_threshold)
        schedule = Schedule(model.scheduler, self.steps)
        inversion = self.invert(model, request, schedule)
        stored = self.stored(model, inversion, request.source)
        # The unconditional estimate is the one under the empty prompt, which costs no second evaluation.
        unconditional = inversion.prompt == "" and inversion.null is None
        z_0 = sample_back(
            model,
            inversion,
            ["" if unconditional else request.source, *plain, request.target],
            self.guidance_scale,
            source_scale=1.0 if unconditional else None,
            attention=Chain(self.controls(request, stored, found)) if stored else None,
            blends=[] if request.mask is None else [PasteSourceRow(request.mask)],
            callbacks=request.callbacks,
        )
        return finish(model, request, inversion, z_0)
