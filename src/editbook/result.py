"""What an edit returns: pictures, and everything that explains them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .attention import AttentionMaps
from .images import save_image, save_json, writable_folder
from .inversion import Inversion


@dataclass
class Edit:
    """One edited picture.

    Args:
        image: The result.
        source_image: What was edited, at the model's size (or generated, if no picture was given).
        reconstruction: What the method makes of the source without an edit; None if it makes none.
        mask: Where it acted, float32 (height, width) in [0, 1] at the latent's size; None if it uses no mask.
        inversion: The trajectory from picture to noise, with the walk back if one was recorded; None without inversion.
        attention: Maps captured on the way; None if none were.
        nfe: U-Net evaluations, one for each row of a batch.
        seconds: Wall-clock time.
        settings: All that is needed to repeat it: method, options, prompts, seed, model, versions.
    """

    image: Image.Image
    source_image: Image.Image
    reconstruction: Image.Image | None = None
    mask: np.ndarray | None = None
    inversion: Inversion | None = None
    attention: AttentionMaps | None = None
    nfe: int = 0
    seconds: float = 0.0
    settings: dict[str, Any] = field(default_factory=dict)

    def show(self, truth: Image.Image | None = None) -> Any:
        """Source, reconstruction, mask and result in a row, with the exact truth beside it where it is known."""
        from .plot import edit_row

        return edit_row(self, truth)

    def save(self, folder: str | Path) -> Path:
        """Write edited.png, source.png, reconstruction.png, mask.png (those there are) and settings.json."""
        path = writable_folder(folder)
        save_image(self.image, path / "edited.png")
        save_image(self.source_image, path / "source.png")
        if self.reconstruction is not None:
            save_image(self.reconstruction, path / "reconstruction.png")
        if self.mask is not None:
            mask = Image.fromarray((self.mask * 255).round().astype(np.uint8))
            save_image(mask.resize(self.image.size, Image.Resampling.NEAREST), path / "mask.png")
        save_json({**self.settings, "nfe": self.nfe, "seconds": round(self.seconds, 3)}, path / "settings.json")
        return path
