"""The relevance map of Watch Your Steps, as a source of masks: where an instruction changes the noise estimate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from ..errors import EditbookError
from ..guidance import InstructGuidance
from ..model import Model
from ..sampling import Schedule
from .difference import noise_difference, without_outliers
from .find import MaskSource, Subject


@dataclass
class RelevanceMask(MaskSource):
    """Where eps(c, T) and eps(c, 0) of a model that takes a picture differ (Mirzaei et al. 2023).

    Both see the source c; only the instruction T is there or not. Outliers are cut, and the rest is stretched to
    [0, 1]: the map is relative, and an instruction that means nothing here has a full one, too. `difference` keeps the
    size.

    Args:
        threshold: Of the map; the paper's 0.5.
        maps: Noises that are averaged; the paper takes 1.
        strength: Noise level, as a fraction of the training timesteps in (0, 1).
    """

    name: ClassVar[str] = "relevance"
    maps: int = 1
    strength: float = 0.8

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.strength < 1:
            raise EditbookError(f"strength of the mask 'relevance' must lie between 0 and 1, got {self.strength!r}.")
        if self.maps < 1:
            raise EditbookError(f"maps of the mask 'relevance' must be at least 1, got {self.maps!r}.")

    def difference(self, model: Model, subject: Subject) -> torch.Tensor:
        """The difference before it is normalised, (h, w).

        Raises:
            EditbookError: The model takes no picture.
        """
        texts = model.embed(subject.instruction), model.embed("")
        guidance = InstructGuidance(model.condition(subject.image), *texts)
        t = round(self.strength * model.scheduler.config.num_train_timesteps)

        def pair(z_t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            without, instructed = guidance.with_image(model, z_t, t)
            return instructed, without

        alpha = Schedule(model.scheduler, 1).alpha(t)
        return noise_difference(pair, model.encode(subject.image), alpha, maps=self.maps, seed=subject.seed)

    def __call__(self, model: Model, subject: Subject, argument: str) -> np.ndarray:
        """The difference, cut and stretched; all 0 where the instruction is empty."""
        return without_outliers(self.difference(model, subject)).float().cpu().numpy()
