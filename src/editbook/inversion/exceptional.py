"""The exceptional prompt: the same token at every position says nothing, and disturbs no inversion (TF-ICON)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from ..errors import EditbookError
from ..model import Model
from ..sampling import Callback, ClassifierFreeGuidance, Schedule, Trajectory, follow
from .base import Inversion, Inverter

TOKEN = 7788
"""The official token id; which one it is should matter little. A smaller vocabulary gives its middle one."""


@contextmanager
def without_positions(text_encoder: Any) -> Iterator[None]:
    """A context in which a CLIP text tower adds no position embeddings; its weights are not touched.

    Raises:
        EditbookError: It has none that could be found.
    """
    found = [module for name, module in text_encoder.named_modules() if name.endswith("position_embedding")]
    if not found:
        raise EditbookError("The exceptional prompt needs a text encoder with a position_embedding, as CLIP's has.")
    hooks = [module.register_forward_hook(lambda _, __, out: torch.zeros_like(out)) for module in found]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def exceptional_embedding(model: Model, token: int | None = None) -> torch.Tensor:
    """One ordinary token at every position, without start, end and positions: (1, tokens, width), all tokens alike.

    Queries find every key equally good, so each row of cross-attention is uniform, and its output is one vector for all
    pixels: the text steers no pixel (Lu et al. 2023, Section 3.2). A causal tower changes nothing about that: each
    position sees more copies of the same.

    Args:
        model: The model.
        token: Its id; None is `TOKEN`.

    Raises:
        EditbookError: The vocabulary has no such token, or it is a special one.
    """
    size, special = len(model.tokenizer), set(model.tokenizer.all_special_ids)
    chosen = token if token is not None else TOKEN if size > TOKEN else size // 2
    if not 0 <= chosen < size or chosen in special:
        raise EditbookError(f"token must be the id of an ordinary token, 0 to {size - 1}, got {token!r}.")
    ids = torch.full((1, model.tokenizer.model_max_length), chosen, device=model.text_encoder.device)
    with without_positions(model.text_encoder):
        return model.text_encoder(ids)[0].to(model.dtype)


def exceptional_inversion(
    model: Model,
    z_0: torch.Tensor,
    schedule: Schedule,
    *,
    token: int | None = None,
    prompt: str = "",
    callbacks: Iterable[Callback] = (),
) -> Inversion:
    """DDIM inversion under the exceptional prompt. The paper's solver is DPM-Solver++ of order 2; this is DDIM.

    Args:
        model: The model.
        z_0: Latents of pictures, (n, channels, height, width).
        schedule: The steps.
        token: See `exceptional_embedding`.
        prompt: The pictures' own, for the record.
        callbacks: Get each `Step`.

    Returns:
        An inversion whose row 0 comes back under the exceptional prompt, whatever its prompt says.
    """
    walked, nothing = Trajectory(), exceptional_embedding(model, token)
    guidance = ClassifierFreeGuidance(nothing.expand(len(z_0), -1, -1))
    follow(model, z_0, schedule.inversion(), guidance, callbacks=[walked, *callbacks])

    def embed(model: Model, prompts: Sequence[str]) -> torch.Tensor:
        return torch.cat([nothing, model.embed(list(prompts[1:]))]) if len(prompts) > 1 else nothing

    return Inversion(walked.latents[::-1], walked.noises[::-1], schedule.sampling(), prompt, embed=embed)


@dataclass
class ExceptionalPrompt(Inverter):
    """`exceptional_inversion` as a part of any editor: the source row repeats the picture without any text.

    As condition and as empty prompt at once, it makes guidance cancel: eps + w (eps - eps) = eps for every w. So its
    row is sampled with w = 1. The other rows keep their prompts and the empty one. An editor that reads the source's
    *cross*-attention (Prompt-to-Prompt) finds uniform maps there, which say nothing of where a word acts.

    Args:
        token: Id of the token; -1 is the default of `exceptional_embedding`.
    """

    id: ClassVar[str] = "exceptional-prompt"
    takes_batch: ClassVar[bool] = True
    token: int = -1

    def __call__(
        self, model: Model, z_0: torch.Tensor, prompt: str, schedule: Schedule, *, callbacks: Any = (), **_: Any
    ) -> Inversion:
        """Invert; the source prompt is not read."""
        token = None if self.token == -1 else self.token
        return exceptional_inversion(model, z_0, schedule, token=token, prompt=prompt, callbacks=callbacks)
