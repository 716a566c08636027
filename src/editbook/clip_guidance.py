"""CLIP as a guide: how far a picture is from a text, through random warps, with a gradient."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from .errors import EditbookError
from .model import SHIPPED

_OPENAI = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
_POCKET = (0.5,) * 3, (0.5,) * 3


def spherical_distance(u: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Half of the squared angle between unit vectors (..., width): 2 arcsin^2(|u - v| / 2), finite gradient at 0."""
    length = ((u - v).square().sum(-1) + 1e-12).sqrt()
    return 2 * (length / 2).clamp(max=1 - 1e-6).arcsin().square()


class ClipDistance:
    """Distance of pictures from a text, in float32, with gradients to the pictures.

    Args:
        clip: A transformers `CLIPModel`.
        tokenizer: Its tokenizer.
        pixels: Mean and standard deviation of its pictures' normalisation.
    """

    def __init__(
        self, clip: Any, tokenizer: Any, pixels: tuple[tuple[float, ...], tuple[float, ...]] = _OPENAI
    ) -> None:
        self.clip, self.tokenizer = clip.eval().requires_grad_(False), tokenizer
        self._mean, self._std = (torch.tensor(values).view(1, 3, 1, 1) for values in pixels)

    @torch.no_grad()
    def embed(self, text: str) -> torch.Tensor:
        """A text as a unit vector (1, width)."""
        limit = self.clip.config.text_config.max_position_embeddings
        if (length := len(self.tokenizer(text, verbose=False).input_ids)) > limit:
            raise EditbookError(f"The prompt {text[:60]!r} has {length} tokens; the limit is {limit}. Shorten it.")
        tokens = self.tokenizer([text], padding="max_length", max_length=limit, return_tensors="pt").input_ids
        output = self.clip.text_model(tokens.to(self.clip.device)).pooler_output
        return functional.normalize(self.clip.text_projection(output), dim=-1)

    def fit(self, pictures: torch.Tensor) -> torch.Tensor:
        """Pictures (n, 3, H, W) averaged down to CLIP's size."""
        side = self.clip.config.vision_config.image_size
        if pictures.shape[-2:] == (side, side):  # torch would average every pixel with itself, and go back through it
            return pictures
        return functional.adaptive_avg_pool2d(pictures, side)

    def __call__(self, pictures: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        """The distance of each picture, (n,).

        Args:
            pictures: (n, 3, H, W) in [-1, 1].
            text: From `embed`.
        """
        pixels = (self.fit(pictures).to(text) + 1) / 2
        pixels = (pixels - self._mean.to(text)) / self._std.to(text)
        output = self.clip.vision_model(pixels).pooler_output
        return spherical_distance(functional.normalize(self.clip.visual_projection(output), dim=-1), text)


@cache
def load_clip_distance(name: str = "pocket", device: str = "cpu") -> ClipDistance:
    """CLIP's towers as a guide: "pocket" (the world's own), a folder, or a hub id.

    Raises:
        EditbookError: Nothing can be loaded under that name.
    """
    from transformers import CLIPModel, CLIPTokenizer

    folder = SHIPPED / name if name == "pocket" else Path(name)
    parts = (folder / "clip", folder / "tokenizer") if (folder / "clip").is_dir() else (name, name)
    try:
        clip = CLIPModel.from_pretrained(parts[0], dtype=torch.float32)
        tokenizer = CLIPTokenizer.from_pretrained(parts[1])
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise EditbookError(
            f"Could not load the CLIP {name!r}: {reason} Use 'pocket', a folder, or a hub id."
        ) from error
    return ClipDistance(clip.to(device), tokenizer, _POCKET if parts[0] != name else _OPENAI)


def homography(start: torch.Tensor, end: torch.Tensor) -> torch.Tensor:
    """The projective maps (n, 3, 3) that take four points to four others, (n, 4, 2) each."""
    x, y = start.unbind(-1)
    one, zero = torch.ones_like(x), torch.zeros_like(x)
    rows = [
        torch.stack([*left, -target * x, -target * y], -1)
        for left, target in (((x, y, one, zero, zero, zero), end[..., 0]), ((zero, zero, zero, x, y, one), end[..., 1]))
    ]
    solved = torch.linalg.solve(torch.cat(rows, 1), torch.cat([end[..., 0], end[..., 1]], 1))
    return torch.cat([solved, torch.ones_like(solved[:, :1])], 1).view(-1, 3, 3)


class Warps:
    """Random affine, then random perspective views of pictures: Blended Diffusion's "extending augmentations".

    Args:
        degrees: Largest rotation.
        shift: Largest shift, as a fraction of the side.
        distortion: How far the corners may come in, as a fraction of half of the side.
        chance: Of each of the two to happen.
    """

    def __init__(self, degrees: float = 15.0, shift: float = 0.1, distortion: float = 0.7, chance: float = 0.7) -> None:
        self.degrees, self.shift, self.distortion, self.chance = degrees, shift, distortion, chance

    def draw(self, count: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """Where each of `count` views reads the picture: affine maps (count, 2, 3), projective maps (count, 3, 3)."""
        chance, angle, shifts, inward = (
            torch.rand(count, size, generator=generator).squeeze(1) for size in (2, 1, 2, 8)
        )
        angle = (2 * angle - 1) * self.degrees * torch.pi / 180
        turn = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], -1).view(count, 2, 2)
        affine = torch.cat([turn, 2 * self.shift * (2 * shifts - 1)[..., None]], 2)
        affine[chance[:, 0] >= self.chance] = torch.eye(2, 3)
        corners = torch.tensor([[-1.0, -1.0], [1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]]).expand(count, 4, 2)
        projective = homography(corners * (1 - self.distortion * inward.view(count, 4, 2)), corners)
        projective[chance[:, 1] >= self.chance] = torch.eye(3)
        return affine, projective

    @staticmethod
    def apply(pictures: torch.Tensor, affine: torch.Tensor, projective: torch.Tensor) -> torch.Tensor:
        """One view of each picture (n, 3, s, s): edges are repeated by the first map, mid-grey (0) by the second."""
        shape = list(pictures.shape)
        grid = functional.affine_grid(affine.to(pictures), shape, align_corners=False)
        turned = functional.grid_sample(pictures, grid, padding_mode="border", align_corners=False)
        plane = functional.affine_grid(torch.eye(2, 3).to(pictures)[None], [1, *shape[1:]], align_corners=False)
        points = functional.pad(plane, (0, 1), value=1.0) @ projective.to(pictures)[:, None].mT
        depth = points[..., 2:].clamp(min=1e-3)  # behind the viewer there is nothing to see
        return functional.grid_sample(turned, points[..., :2] / depth, align_corners=False)
