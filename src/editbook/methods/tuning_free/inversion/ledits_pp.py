"""LEDITS++: several edits at once, each a guidance direction inside its own mask (Brack et al. 2024)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import torch
from torch.nn import functional

from ....attention import Capture, map_height, smooth, tokens_of
from ....errors import EditbookError, unknown
from ....inversion import Inversion, Inverter
from ....inversion.stochastic import SecondOrder, extract_noise, independent_noisings, source_guidance, with_sigma
from ....model import Model
from ....options import check_fields, option
from ....result import Edit
from ....sampling import Callback, Guidance, Schedule
from ...base import Card, Method, Request, finish, sample_back


@dataclass
class LEDITS(Inverter):
    """Edit-friendly inversion for a second-order stochastic solver (SDE-DPM-Solver++ 2M), made without a prompt.

    The noise maps belong to the unconditional estimate, so no source prompt is needed, and sampling back without a
    prompt repeats the picture to rounding.

    Args:
        skip: The fraction of the timesteps above which the walk begins, in [0, 1). The steps are spread over the rest.
        order: 2 is the paper's solver, 1 the DDPM sampler of Edit Friendly DDPM.
        final_first_order: See `SecondOrder`. The official code has 0, and with 20 or 30 steps its extrapolation to
            timestep 1 shows in the edit; reconstruction is exact either way.
        inversion_scale: w under the source prompt when the maps are made. The repository takes 3.5 if it is given a
            source prompt, and then edits without one: that does not repeat the picture.
    """

    id: ClassVar[str] = "ledits-pp"
    skip: float = option(0.15, low=0, below=1, what="a fraction of the timesteps")
    order: int = option(2, low=1, high=2)
    final_first_order: int = option(2, low=0)
    inversion_scale: float = option(0.0, low=0)

    @property
    def needs_prompt(self) -> bool:
        """None, but for maps that are made under guidance."""
        return self.inversion_scale > 0

    def __call__(
        self,
        model: Model,
        z_0: torch.Tensor,
        prompt: str,
        schedule: Schedule,
        *,
        seed: int = 0,
        callbacks: Iterable[Callback] = (),
        **_: Any,
    ) -> Inversion:
        """Noise the picture independently for each level, then extract the solver's noise maps."""
        moves = with_sigma(schedule.spread(1 - self.skip))

        def guide(guidance: Guidance) -> Guidance:
            return SecondOrder(guidance, moves, self.final_first_order) if self.order == 2 else guidance

        guidance = guide(source_guidance(model, prompt, self.inversion_scale))
        latents = independent_noisings(z_0, moves, seed)
        inversion = extract_noise(model, latents, moves, guidance, prompt=prompt, callbacks=callbacks)
        inversion.source_scale, inversion.guide = self.inversion_scale, guide
        return inversion


@dataclass(frozen=True)
class EditPrompt:
    """One of the edits.

    Args:
        prompt: What to edit towards, e.g. "a crown"; or away from, if reversed.
        scale: s, the strength.
        threshold: lambda in [0, 1): the share of the latent that the edit leaves alone.
        reverse: Move away from the prompt: removes what it names.
        words: The words of the prompt whose attention is M1; None takes all of them, as the paper does.
        warmup: The edit begins after so many steps.
        cooldown: It ends before this step, which comes after `warmup`; None never ends.
    """

    prompt: str
    scale: float = option(5.0, low=0)
    threshold: float = option(0.9, low=0, below=1, hint="0.9 opens a tenth of the latent")
    reverse: bool = False
    words: str | None = None
    warmup: int = option(0, low=0, what="a number of steps")
    cooldown: int | None = option(None, low=1, what="a step", hint="None never ends")

    def __post_init__(self) -> None:
        check_fields("an edit", self)
        if self.cooldown is not None and self.cooldown <= self.warmup:
            raise EditbookError(
                f"cooldown of an edit must lie after its warmup of {self.warmup} steps, got {self.cooldown}."
            )

    def acts(self, i: int) -> bool:
        """Whether it takes part in step i."""
        return self.warmup <= i and (self.cooldown is None or i < self.cooldown)


class EditGuidance:
    """The unconditional estimate, plus for each edit its masked direction: eps + sum of M_i g_i.

    g_i = +-s_i (eps(e_i) - eps(null)), and M_i is where two masks agree: M1, where the edit's words attend most, and
    M2, where g_i is largest. Only the last row of the batch is edited; rows before it get the unconditional estimate.

    Args:
        model: The model.
        edits: In any order, the result is the same.
        masks: "intersect" takes M1 M2, "attention" M1 alone, "guidance" M2 alone, "none" edits everywhere.
        side: Height of the feature maps whose attention makes M1.
        mask: A user's mask, (1, 1, h, w), multiplied into every g_i before M2 is made.
    """

    def __init__(
        self,
        model: Model,
        edits: Sequence[EditPrompt],
        *,
        masks: str = "intersect",
        side: int | None = None,
        mask: torch.Tensor | None = None,
    ) -> None:
        if masks not in MASKS:
            raise unknown("kind of masks", masks, MASKS)
        self.edits, self.kind, self.side, self.mask = (
            list(edits),
            masks,
            map_height(model.unet, model.latent_shape[1]) if side is None else side,
            mask,
        )
        self._null = model.embed("")
        self._embeddings = model.embed([edit.prompt for edit in edits]) if edits else self._null[:0]
        self._tokens = [
            tokens_of(model.tokenizer, edit.prompt, edit.words)
            if edit.words is not None
            else list(range(1, len(model.tokenizer(edit.prompt).input_ids) - 1))
            for edit in edits
        ]
        self.masks: list[dict[str, torch.Tensor]] = []
        """For each step "attention" (M1), "guidance" (M2) and "used", (edits, 1, h, w) of 0 and 1."""

    def __call__(self, model: Model, z_t: torch.Tensor, t: int, i: int) -> torch.Tensor:
        """The noise estimate at step i, shaped like z_t."""
        if i == 0:
            self.masks = []
        active = [k for k, edit in enumerate(self.edits) if edit.acts(i)]
        rows, size = len(z_t), (z_t.shape[-2], z_t.shape[-1])
        capture = Capture(resolutions=[self.side])
        reads = bool(active) and self.kind in ("intersect", "attention")
        with capture.attached(model.unet, size, len(active)) if reads else nullcontext():
            eps = model.noise(
                torch.cat([z_t, z_t[-1:].repeat(len(active), 1, 1, 1)]),
                t,
                torch.cat([self._null.expand(rows, -1, -1), self._embeddings[active]]),
            )
        base = eps[:rows].clone()
        signed = [self.edits[k].scale * (-1 if self.edits[k].reverse else 1) for k in active]
        g = torch.tensor(signed).view(-1, 1, 1, 1).to(z_t) * (eps[rows:] - base[-1:])
        if self.mask is not None:
            g = g * self.mask
        every = z_t.new_ones(len(self.edits), 1, *size)
        made = {"attention": every.clone(), "guidance": every.clone()}
        if reads:
            heat = capture.maps(model.tokenizer, [self.edits[k].prompt for k in active]).mean(sides=("down", "up"))
        for row, k in enumerate(active):
            threshold = self.edits[k].threshold
            if reads:
                cells = above(smooth(heat[row][:, :, self._tokens[k]].sum(-1)[None])[0], threshold)
                made["attention"][k, 0] = functional.interpolate(cells[None, None], size).to(z_t)[0, 0]
            if self.kind in ("intersect", "guidance"):
                made["guidance"][k, 0] = above(g[row].abs().sum(0), threshold)
        made["used"] = made["attention"] * made["guidance"]
        made["used"][[k for k in range(len(self.edits)) if k not in active]] = 0
        self.masks.append(made)
        base[-1] += (made["used"][active] * g).sum(0)
        return base

    def area(self) -> torch.Tensor | None:
        """Where it acted, (1, 1, h, w): the share of the steps in which some edit was let through."""
        if not self.edits or not self.masks:
            return None
        area = torch.stack([made["used"].amax(0, keepdim=True) for made in self.masks]).mean(0)
        return area if self.mask is None else area * self.mask


MASKS = ("intersect", "attention", "guidance", "none")


def above(values: torch.Tensor, threshold: float) -> torch.Tensor:
    """1 where a map (h, w) reaches its quantile of that threshold, else 0."""
    exact = values.to(torch.promote_types(values.dtype, torch.float32))  # quantile knows no half precision
    return (exact >= torch.quantile(exact.flatten(), threshold)).to(values)


@dataclass
class LEDITSPP(Method):
    """Brack, Friedrich, Kornmeier, Tsaban, Schramowski, Kersting and Passos 2024.

    The picture is inverted without a prompt, and described by none: there are only edit prompts, as many as wanted,
    each with its strength, its sign and its mask. `target` is one of them, `edits` are more; without any the picture
    comes back. `guidance_scale` is s of the target.

    The mask is M1 M2 in every step, as in the paper; diffusers takes M1 alone above timestep 800, and the repository M2
    alone by default.

    Cost: 4 N evaluations with one edit, and N for each one more: up one, then the source row, the unconditional
    estimate, and a row for each edit. The paper's are 3 N; the source row is ours, and shows the reconstruction.

    Args:
        skip: As in `LEDITS`: the fraction of the timesteps that is left out; less of it changes more.
        order: As in `LEDITS`: 2 is the paper's solver, 1 that of Edit Friendly DDPM.
        final_first_order: As in `LEDITS`; 0 is the official code.
        inversion_scale: As in `LEDITS`; above 0 it needs a source prompt and spoils the reconstruction.
        threshold: lambda of the target: the share of the latent that it leaves alone, in [0, 1).
        reverse: Move away from the target: removes what it names.
        words: The words of the target whose attention is M1; None takes all, as the paper does.
        edits: More edits, each a mapping with "prompt" and any of the fields of `EditPrompt`, whose defaults are the
            paper's, e.g. [{"prompt": "a crown", "threshold": 0.8}, {"prompt": "clouds", "reverse": True}].
        masks: "intersect", "attention" (M1), "guidance" (M2) or "none".
        side: Height of the feature maps whose attention makes M1; None is the largest of at most 16.
    """

    card: ClassVar[Card] = Card(
        id="ledits-pp",
        title="LEDITS++: Limitless Image Editing using Text-to-Image Models",
        authors="Brack, Friedrich, Kornmeier, Tsaban, Schramowski, Kersting, Passos",
        year=2024,
        venue="CVPR",
        paper="2311.16711",
        branch="tuning_free/inversion",
        inputs=("edit prompts",),
        edit_types=("texture", "style", "object addition", "object removal"),
    )
    steps: int = 30
    guidance_scale: float = 5.0
    skip: float = 0.15
    order: int = 2
    final_first_order: int = 2
    inversion_scale: float = 0.0
    threshold: float = 0.9
    reverse: bool = False
    words: str | None = None
    edits: Sequence[Mapping[str, Any]] = ()
    masks: str = option("intersect", among=MASKS)
    side: int | None = option(None, low=1, what="the height of a feature map")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.inverter()
        self.prompts("")

    def inverter(self) -> LEDITS:
        """The inversion with these options."""
        return LEDITS(self.skip, self.order, self.final_first_order, self.inversion_scale)

    def prompts(self, target: str) -> list[EditPrompt]:
        """The target, if there is one, and the further edits."""
        known = [item.name for item in fields(EditPrompt)]
        is_list = isinstance(self.edits, Sequence) and not isinstance(self.edits, str)
        if not is_list or not all(isinstance(edit, Mapping) for edit in self.edits):
            raise EditbookError(
                f"edits is a list of mappings, e.g. edits=[{{'prompt': 'a crown'}}], got {self.edits!r}."
            )
        for edit in self.edits:
            for key in edit:
                if key not in known:
                    raise unknown("key of an edit", key, known)
            if not str(edit.get("prompt", "")).strip():
                raise EditbookError(f"Every one of edits needs a 'prompt', got {dict(edit)!r}.")
        first = EditPrompt(target, self.guidance_scale, self.threshold, self.reverse, self.words)
        further = [EditPrompt(**edit) for edit in self.edits]
        late = [edit.warmup for edit in further if edit.warmup >= self.steps]
        if late:
            raise EditbookError(f"warmup of an edit must be below the {self.steps} steps of the walk, got {late[0]}.")
        return [*([first] if target.strip() else []), *further]

    def guidance(self, model: Model, target: str, mask: torch.Tensor | None = None) -> EditGuidance:
        """The guidance of the way back; it keeps the masks of every step."""
        return EditGuidance(model, self.prompts(target), masks=self.masks, side=self.side, mask=mask)

    def __call__(self, model: Model, request: Request) -> Edit:
        """Invert without a prompt, then sample with the masked directions; row 0 repeats the picture."""
        if request.image is None:
            raise EditbookError("An inversion needs a picture.")
        inverter = self.inverter()
        inverter.check_prompt(request.source)
        guidance = self.guidance(model, request.target, request.mask)
        schedule, z_0 = Schedule(model.scheduler, self.steps), model.encode(request.image)
        inversion = inverter(model, z_0, request.source, schedule, seed=request.seed, callbacks=request.callbacks)
        prompts = [request.source, request.target]
        z_0 = sample_back(model, inversion, prompts, 1.0, guidance=guidance, callbacks=request.callbacks)
        return finish(model, request, inversion, z_0, mask=guidance.area())
