"""A network that reads pictures of the pocket world: which objects, where, of what, in which place and style.

It stands where other benchmarks ask a large detector or a person. It is trained on rendered scenes only (`editbook
train reader`), so it has never seen what it judges: pictures that the diffusion model made.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional

from ..errors import EditbookError
from ..images import Picture, image_batches
from ..model import SHIPPED
from ..pocket import ACCESSORIES, BACKGROUNDS, COLOURS, MATERIALS, OBJECTS, POSES, STYLES
from ..pocket.scene import MAX_OBJECTS
from .layers import Residual, doubled, mean_under

SLOTS = MAX_OBJECTS  # from left to right
SIDE = 64  # pixels
OWN = "own"  # an object in its own colours
NONE = "none"  # no object in this slot, no accessory
FACINGS = ("left", "right")
HEADS: dict[str, tuple[str, ...]] = {
    "word": (NONE, *OBJECTS),
    "look": (OWN, *COLOURS, *MATERIALS),
    "pose": POSES,
    "facing": FACINGS,
    "accessory": (NONE, *ACCESSORIES),
}
"""What is read of each object, with its possible answers."""
SCENE_HEADS: dict[str, tuple[str, ...]] = {"background": BACKGROUNDS, "style": STYLES}
"""What is read of the whole picture."""


class ReaderNetwork(nn.Module):
    """A small U-Net that segments the objects, and reads each one from the features under its mask.

    Args:
        widths: Channels at 32, 16 and 8 cells.
    """

    def __init__(self, widths: tuple[int, int, int] = (48, 96, 160)) -> None:
        super().__init__()
        fine, middle, coarse = widths
        self.stem = nn.Conv2d(3, fine, 4, stride=2, padding=1)
        self.fine = nn.Sequential(Residual(fine), Residual(fine))
        self.middle = nn.Sequential(nn.Conv2d(fine, middle, 2, stride=2), Residual(middle), Residual(middle))
        self.coarse = nn.Sequential(
            nn.Conv2d(middle, coarse, 2, stride=2), Residual(coarse), Residual(coarse), Residual(coarse)
        )
        self.up_middle = nn.Sequential(nn.Conv2d(coarse + middle, middle, 1), Residual(middle))
        self.up_fine = nn.Sequential(nn.Conv2d(middle + fine, fine, 1), Residual(fine))
        self.pixels = nn.Sequential(
            nn.Conv2d(fine // 4 + 3, 32, 3, padding=1), Residual(32), nn.SiLU(), nn.Conv2d(32, 1 + SLOTS, 1)
        )
        pooled = 2 * middle + coarse
        self.objects = nn.Sequential(nn.Linear(pooled, 256), nn.SiLU())
        self.heads = nn.ModuleDict({name: nn.Linear(256, len(answers)) for name, answers in HEADS.items()})
        self.scene = nn.Sequential(nn.Linear(fine + middle + coarse, 256), nn.SiLU())
        self.scene_heads = nn.ModuleDict({name: nn.Linear(256, len(answers)) for name, answers in SCENE_HEADS.items()})

    def forward(self, x: torch.Tensor, masks: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        """Logits.

        Args:
            x: Pictures (n, 3, 64, 64) in [-1, 1].
            masks: Masks to read the objects under, (n, 2, 64, 64) in [0, 1]; None takes the network's own.

        Returns:
            "masks" (n, 3, 64, 64): nothing, first, second object; each of `HEADS` (n, 2, answers); each of
            `SCENE_HEADS` (n, answers).
        """
        fine = self.fine(self.stem(x))
        middle = self.middle(fine)
        coarse = self.coarse(middle)
        up_middle = self.up_middle(torch.cat([doubled(coarse), middle], 1))
        up_fine = self.up_fine(torch.cat([doubled(up_middle), fine], 1))
        pixels = self.pixels(torch.cat([functional.pixel_shuffle(up_fine, 2), x], 1))
        if masks is None:
            masks = pixels.float().softmax(1)[:, 1:].detach()
        read = self.objects(torch.cat([_under(level, masks) for level in (middle, up_middle, coarse)], -1))
        whole = self.scene(torch.cat([level.mean((2, 3)) for level in (fine, middle, coarse)], -1))
        return {
            "masks": pixels,
            **{name: head(read) for name, head in self.heads.items()},
            **{name: head(whole) for name, head in self.scene_heads.items()},
        }


def _under(features: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Mean features under each mask, (n, slots, channels); the mean over the picture where a mask is empty."""
    return mean_under(features, functional.adaptive_avg_pool2d(masks, features.shape[-1]).to(features) + 1e-3)


@dataclass(frozen=True)
class ReadObject:
    """One object as read.

    Args:
        word: One of `pocket.OBJECTS`.
        look: "own", a colour or a material.
        pose: One of `pocket.POSES`.
        facing: "left" or "right"; means nothing for objects without a front.
        accessory: One of `pocket.ACCESSORIES`, or None.
        mask: Its visible part, float32 (64, 64) in [0, 1].
        confidence: Probability of the word, in [0, 1].
    """

    word: str
    look: str
    pose: str
    facing: str
    accessory: str | None
    mask: np.ndarray
    confidence: float

    @property
    def centre(self) -> tuple[float, float]:
        """Centre of mass (x, y) as fractions of the picture."""
        total = max(float(self.mask.sum()), 1e-9)
        at = (np.arange(SIDE) + 0.5) / SIDE
        return float(self.mask.sum(0) @ at) / total, float(self.mask.sum(1) @ at) / total


@dataclass(frozen=True)
class Reading:
    """A picture as read: its place, its style, and its objects from left to right."""

    background: str
    style: str
    objects: tuple[ReadObject, ...]


class Reader:
    """Reads pictures with a trained `ReaderNetwork`."""

    def __init__(self, network: ReaderNetwork) -> None:
        self.network = network.eval().requires_grad_(False)

    @torch.no_grad()
    def __call__(self, pictures: Iterable[Picture]) -> list[Reading]:
        """One reading for each picture.

        Args:
            pictures: A list, or anything else that holds pictures. One that is not 64 x 64 pixels is resampled, and
                one that is not square is squeezed for it, not cropped.

        Raises:
            EditbookError: It is a single picture, or one of them cannot be read; the message names it.
        """
        return [reading for batch in image_batches(pictures, "pictures") for reading in self._batch(batch)]

    def _batch(self, images: list[Image.Image]) -> list[Reading]:
        arrays = []
        for image in images:
            if image.size != (SIDE, SIDE):
                image = image.resize((SIDE, SIDE), Image.Resampling.BOX)
            arrays.append(np.asarray(image, np.float32))
        x = torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2) / 127.5 - 1
        device = next(self.network.parameters()).device
        logits = self.network(x.to(device))
        answers = {name: value.float().softmax(1 if name == "masks" else -1).cpu() for name, value in logits.items()}
        return [_reading({name: value[k].numpy() for name, value in answers.items()}) for k in range(len(arrays))]


def _reading(answers: dict[str, np.ndarray]) -> Reading:
    def best(name: str, row: np.ndarray) -> str:
        return {**HEADS, **SCENE_HEADS}[name][int(row.argmax())]

    objects = []
    for slot in range(SLOTS):
        read = {name: best(name, answers[name][slot]) for name in HEADS}
        if read["word"] == NONE:
            continue
        objects.append(
            ReadObject(
                read["word"],
                read["look"],
                read["pose"],
                read["facing"],
                None if read["accessory"] == NONE else read["accessory"],
                answers["masks"][1 + slot],
                float(answers["word"][slot].max()),
            )
        )
    return Reading(best("background", answers["background"]), best("style", answers["style"]), tuple(objects))


@cache
def load_reader(folder: Path = SHIPPED / "reader") -> Reader:
    """The shipped reader, or one that was trained by `editbook train reader`.

    Raises:
        EditbookError: There is none in the folder, or its file does not fit this network.
    """
    path = Path(folder) / "model.safetensors"
    if not path.is_file():
        raise EditbookError(f"{path} is missing: train it with `editbook train reader`, or reinstall editbook.")
    network = ReaderNetwork()
    try:
        network.load_state_dict({name: value.float() for name, value in load_file(path).items()})
    except (SafetensorError, RuntimeError, OSError) as error:
        raise EditbookError(f"{path} does not hold this version's reader: {error}".splitlines()[0]) from None
    return Reader(network)
