"""BARET: the target prompt is tuned into the picture, and walked back into the edit (Qiao et al. 2024)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch

from ....attention import Capture, Chain, Control, Projected, Site, heights
from ....errors import EditbookError
from ....inversion.embedding_tuning import EmbeddingTuning, TunedInversion, TuningInverter
from ....masks import PasteSourceRow
from ....model import Model
from ....options import fraction, option
from ....result import Edit
from ....sampling import Callback, Schedule, whole_steps
from ...base import Card, InvertingMethod, Request, finish, sample_back

Embed = Callable[[Model, Sequence[str]], torch.Tensor]
PROCESSES = ("reconstruction", "transition", "edit")


class TargetTextTuning(EmbeddingTuning):
    """Tunes the prompt's embedding; that of the empty prompt stays."""

    tunes: ClassVar[str] = "condition"


@dataclass
class FirstRow:
    """An inversion's way to embed prompts: the first row's is known for each step, all others are embedded as usual.

    Args:
        embeddings: Of row 0, (N, 1, tokens, width), in sampling order.
    """

    embeddings: torch.Tensor

    def __call__(self, model: Model, prompts: Sequence[str]) -> torch.Tensor:
        """(N, n, tokens, width)."""
        rows = model.embed(list(prompts)).repeat(len(self.embeddings), 1, 1, 1)
        rows[:, :1] = self.embeddings
        return rows


@dataclass
class TargetText(TuningInverter):
    """Target-text inversion (TTIS): Null-text Inversion with the roles of the two texts exchanged.

    The embedding of the *prompt* is tuned, for every timestep, until one guided step with it ends on the path of an
    unguided inversion. So any text can be made to say what the picture shows; BARET takes the target prompt, and needs
    no description of the source. The list holds for this w, this number of steps and this prompt: a new edit of the
    same picture needs a new tuning. Row 0 samples with it, other rows with their own prompts.

    Our reconstruction: the paper's rates were not seen. Options are those of Null-text Inversion, see `TuningInverter`.
    """

    id: ClassVar[str] = "target-text-inversion"
    tuning: ClassVar[type[EmbeddingTuning]] = TargetTextTuning

    def __call__(
        self,
        model: Model,
        z_0: torch.Tensor,
        prompt: str,
        schedule: Schedule,
        *,
        guidance_scale: float = 7.5,
        callbacks: Iterable[Callback] = (),
        **_: Any,
    ) -> TunedInversion:
        """Up by DDIM inversion, down once with tuning.

        Raises:
            EditbookError: The model computes in a half precision; or w is 0, with which no prompt acts.
        """
        if guidance_scale == 0:
            raise EditbookError(f"{self.id} tunes what guidance_scale=0 leaves out; 7.5 is usual.")
        pivot, tuned = self.tune(model, z_0, prompt, schedule, guidance_scale, callbacks)
        return TunedInversion(
            pivot.latents,
            pivot.noises,
            pivot.moves,
            prompt,
            source_scale=guidance_scale,
            embed=FirstRow(torch.stack(tuned.embeddings)),
            losses=tuned.losses,
        )


@dataclass
class Transition:
    """Embeds the rows [reconstruction, transition, edit]: e_tr = eta_t e_tgt + (1 - eta_t) e_opt for the middle one.

    Args:
        embed: Embeds row 0 as the inversion prescribes; None is `Model.embed`.
        etas: eta of each step.
    """

    embed: Embed | None
    etas: torch.Tensor

    def __call__(self, model: Model, prompts: Sequence[str]) -> torch.Tensor:
        """(N, 3, tokens, width)."""
        rows = self.embed(model, prompts) if self.embed else model.embed(list(prompts))
        rows = rows.expand(len(self.etas), -1, -1, -1).clone()
        rows[:, 1] = torch.lerp(rows[:, 0], rows[:, 2], self.etas.to(rows).view(-1, 1, 1))
        return rows


class BalancedAttention(Control):
    """The balanced attention module: the edit looks where the other two look, and sees its own values there.

    An attention map is made of queries and keys and nothing else, so handing those over hands over the map, and
    attention stays one fused call. All rows have the same tokens: column j goes to column j. Unconditional rows keep
    theirs.

    Args:
        self_replace: tau_s, the first fraction of the steps in which self-attention is taken over.
        cross_replace: tau_c, the same for cross-attention.
        self_limit: Self-attention is taken over where the feature map has at most this height.
        self_from: The conditional row whose self-attention it is.
        cross_from: The same for cross-attention.
    """

    reads_probabilities: ClassVar[bool] = False

    def __init__(
        self, self_replace: float, cross_replace: float, self_limit: int, self_from: int = 0, cross_from: int = 1
    ) -> None:
        self.until = {"self": self_replace, "cross": cross_replace}
        self.origin = {"self": self_from, "cross": cross_from}
        self.self_limit = self_limit

    def wants(self, site: Site) -> bool:
        """All cross-attention; self-attention up to the limit."""
        return site.kind == "cross" or site.resolution <= self.self_limit

    def active(self, site: Site) -> bool:
        """In the first steps."""
        return self.step < whole_steps(self.until[site.kind], self.total)

    def exchange(self, projected: Projected, site: Site, rows: int) -> Projected:
        """The last row gets another row's queries and keys."""
        order = list(range(len(projected.query)))
        order[-1] = len(order) - rows + self.origin[site.kind]
        return projected._replace(query=projected.query[order], key=projected.key[order])


@dataclass
class Baret(InvertingMethod):
    """Qiao, Wang, Su, Zhang, Yu, Wu and Qi 2024.

    Target-text inversion makes the target prompt reproduce the photo. Then three processes run side by side from the
    same noise: the reconstruction with the tuned embedding, a transition with an embedding that moves from the tuned to
    the plain one, and the edit with the plain one. The edit borrows its self-attention from the reconstruction (how the
    picture hangs together) and its cross-attention from the transition (where the words go in *this* picture).

    Our reconstruction: of the paper the abstract, the start of the introduction and the project page were read, and no
    code was found. Certain are the three processes, what is tuned and what is borrowed; the schedule of eta, the
    fractions of the steps, the layers and the rates are ours. The survey calls the third process "excessive", which is
    a typing error for "transition".

    With another inversion the reconstruction has that inversion's embeddings: the plain ones if it tunes none, and then
    the transition is the edit without borrowed attention. In any case the picture is inverted under the target prompt;
    a source prompt is not used.

    Args:
        eta_start: eta in the first step, in [0, 1]: 0 is the tuned embedding, 1 the plain one.
        eta_end: eta in the last step, reached linearly.
        self_replace: tau_s in [0, 1], the first fraction of the steps in which self-attention is borrowed.
        cross_replace: tau_c in [0, 1], the same for cross-attention.
        self_limit: Height of the largest feature map whose self-attention is borrowed; None is the second finest, 32 in
            Stable Diffusion.
        self_from: The process that lends self-attention, "reconstruction" or "transition".
        cross_from: The process that lends cross-attention.
    """

    card: ClassVar[Card] = Card(
        id="baret",
        title="BARET: Balanced Attention based Real image Editing driven by Target-text Inversion",
        authors="Qiao, Wang, Su, Zhang, Yu, Wu, Qi",
        year=2024,
        venue="AAAI",
        paper="2312.05482",
        branch="tuning_free/attention",
        inputs=("target prompt",),
        edit_types=("texture", "shape", "style", "non-rigid"),
    )
    inversion: str = "target-text-inversion"
    eta_start: float = option(0.0, low=0, high=1)
    eta_end: float = option(0.8, low=0, high=1)
    self_replace: float = fraction(0.4)
    cross_replace: float = fraction(0.8)
    self_limit: int | None = None
    self_from: str = option("reconstruction", among=PROCESSES[:2])
    cross_from: str = option("transition", among=PROCESSES[:2])

    def __call__(self, model: Model, request: Request) -> Edit:
        """Tune the target prompt into the picture, then sample the three processes together."""
        prompts = [request.target] * len(PROCESSES)
        target = model.embed(request.target)  # before the inversion: a prompt that cannot be used should cost no walk
        levels = heights(model.unet, model.latent_shape[1])
        balance = BalancedAttention(
            self.self_replace,
            self.cross_replace,
            levels[1] if self.self_limit is None else self.self_limit,
            PROCESSES.index(self.self_from),
            PROCESSES.index(self.cross_from),
        )
        capture = Capture(resolutions=[r for r in levels if r <= 32][:2] or levels[-1:])

        schedule = Schedule(model.scheduler, self.steps)
        inversion = self.invert(model, replace(request, source=request.target), schedule)
        embed = Transition(inversion.embed, torch.linspace(self.eta_start, self.eta_end, len(inversion.moves)))
        rows = embed(model, prompts)
        guided_alike = inversion.source_scale in (None, self.guidance_scale)
        no_direction = inversion.null is not None and not (inversion.null - target).any()
        if torch.equal(rows[:, 0], rows[:, 2]) and (guided_alike or no_direction):
            raise EditbookError(
                f"baret cannot follow {self.inversion} at guidance_scale={self.guidance_scale:g}: all rows sample "
                "with the target prompt alike, and nothing would change. Take inversion='target-text-inversion'."
            )
        three = replace(inversion, embed=embed)
        z_0 = sample_back(
            model,
            three,
            prompts,
            self.guidance_scale,
            attention=Chain([balance, capture]),
            blends=[] if request.mask is None else [PasteSourceRow(request.mask)],
            callbacks=request.callbacks,
        )
        inversion.sampled = three.sampled
        return finish(model, request, inversion, z_0, attention=capture.maps(model.tokenizer, prompts))
