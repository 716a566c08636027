"""The pocket inpainter: trained to fill holes in rendered scenes, and to take objects out of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from safetensors.torch import save_file
from scipy import ndimage
from torch.nn import functional

from ..perception.inpainter import BorderInpainter, PocketInpainter, PocketLaMa, load_network
from ..perception.reader import ReaderNetwork, load_reader
from ..pocket import Scene, sample, sample_held_out
from ..pocket.edits import Change, remove_object
from .loop import Plan, Recipe, compiled, train
from .start import network_to_train, summed
from .stream import SceneStream

_SHARES = {"removal": 0.4, "other silhouette": 0.2, "box": 0.15, "stroke": 0.25}


def removal(scene: Scene, index: int, size: int = 64) -> np.ndarray:
    """The picture, the picture without one object, and that object's masks: uint8 (3, size, size, 3).

    Of the masks red is what can be seen of the object, and green where anything differs, its shadow too.
    """
    drawn = np.zeros((3, size, size, 3), np.uint8)
    drawn[0], drawn[1] = scene.array(size), remove_object(scene, index).array(size)
    drawn[2, ..., 0] = (scene.masks(size)[index] > 0.05) * np.uint8(255)
    drawn[2, ..., 1] = (Change("remove object", index=index).mask(scene, size) > 0.05) * np.uint8(255)
    return drawn


def _draw_removal(number: int, size: int) -> tuple[np.ndarray, list[Any]]:
    rng = np.random.default_rng([number, 31])
    scene = sample(number)
    while not scene.objects:
        scene = sample(int(rng.integers(1 << 62)))
    return removal(scene, int(rng.integers(len(scene.objects))), size), []


def widened(mask: np.ndarray, pixels: int) -> np.ndarray:
    """A bool mask, wider by so many pixels on each side."""
    return ndimage.maximum_filter(mask, 2 * pixels + 1, mode="nearest") if pixels else mask


def box_mask(rng: np.random.Generator, size: int = 64) -> np.ndarray:
    """One to three boxes, bool (size, size)."""
    mask = np.zeros((size, size), bool)
    for _ in range(int(rng.integers(1, 4))):
        height, width = rng.integers(size // 8, size // 2 + 1, 2)
        top, left = rng.integers(0, size - height + 1), rng.integers(0, size - width + 1)
        mask[top : top + height, left : left + width] = True
    return mask


def stroke_mask(rng: np.random.Generator, size: int = 64) -> np.ndarray:
    """One to three strokes of a wide brush with round ends, bool (size, size)."""
    canvas = Image.new("L", (size, size))
    draw = ImageDraw.Draw(canvas)
    for _ in range(int(rng.integers(1, 4))):
        at = rng.uniform(0, size, 2)
        width, angle = int(rng.integers(size // 16, size // 5)), rng.uniform(0, 2 * np.pi)
        for _ in range(int(rng.integers(2, 6))):
            angle += rng.normal(0, 0.8)
            to = (at + rng.uniform(size / 10, size / 3) * np.array([np.cos(angle), np.sin(angle)])).clip(0, size - 1)
            draw.line([*at, *to], fill=255, width=width)
            draw.ellipse([*(to - width / 2), *(to + width / 2)], fill=255)
            at = to
    return np.asarray(canvas) > 127


class RemovalStream(SceneStream):
    """Removals: pictures are triples as `removal` makes them."""

    _draw = staticmethod(_draw_removal)
    _shape = (3,)
    _rng_key = 30

    def holes(self, slots: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """What the network sees, what it should answer (n, 3, 64, 64) in [0, 1], and the holes (n, 1, 64, 64).

        A removal has its object's silhouette, mostly with its shadow, mostly dilated, as the hole. All other holes are
        in scenes from which the object was taken, but for half of the strokes.
        """
        drawn = self._pictures[slots]
        before, after = drawn[:, 0].float() / 255, drawn[:, 1].float() / 255
        seen, right = after.clone(), after.clone()
        holes = np.zeros((len(slots), 64, 64), bool)
        kinds = self._rng.choice(list(_SHARES), size=len(slots), p=list(_SHARES.values()))
        for row, kind in enumerate(kinds):
            if kind == "box":
                holes[row] = box_mask(self._rng)
            elif kind == "stroke":
                holes[row] = stroke_mask(self._rng)
                if self._rng.random() < 0.5:
                    seen[row] = right[row] = before[row]
            else:
                own = kind == "removal"
                of = row if own else int(self._rng.integers(len(slots)))
                with_shadow = self._rng.random() < 0.8
                silhouette = drawn[of, 2, int(with_shadow)].numpy() > 127
                holes[row] = widened(silhouette, int(self._rng.integers(0, 5)))
                if own:
                    seen[row] = before[row]
                elif self._rng.random() < 0.5:
                    holes[row] = holes[row][:, ::-1]
        hole = torch.from_numpy(holes)[:, None].float()
        # Outside the hole the picture stays as it is, a shadow that the hole leaves out as well.
        return seen, hole * right + (1 - hole) * seen, hole


def features(reader: ReaderNetwork, x: torch.Tensor) -> list[torch.Tensor]:
    """What the reader's first layers see, at 32 and 16 cells: textures and edges.

    Args:
        reader: The shipped one.
        x: Pictures (n, 3, 64, 64) in [0, 1].
    """
    fine = reader.fine(reader.stem(2 * x - 1))
    return [fine, reader.middle(fine)]


def filling_loss(reader: ReaderNetwork, made: torch.Tensor, right: torch.Tensor, hole: torch.Tensor) -> torch.Tensor:
    """L1 in the hole and, with less weight, outside it, and of the reader's features of the filled picture.

    LaMa adds an adversary, which this one goes without: it is what would make its guesses sharp. The features, which
    cost more than the network itself, are taken of every fourth picture.
    """
    wrong = (made - right).abs()
    inside = (wrong * hole).sum() / (3 * hole.sum().clamp(min=1))
    outside = (wrong * (1 - hole)).sum() / (3 * (1 - hole).sum().clamp(min=1))
    filled = (hole * made + (1 - hole) * right)[::4]
    with torch.no_grad():
        wanted = features(reader, right[::4])
    far = sum(
        functional.l1_loss(ours.float(), theirs.float()) / theirs.float().abs().mean().clamp(min=1e-3)
        for ours, theirs in zip(features(reader, filled), wanted, strict=True)
    )
    return 4 * inside + outside + 0.3 * far


def hole_psnr(made: np.ndarray, truth: np.ndarray, hole: np.ndarray) -> float:
    """PSNR in dB of the pixels in the hole alone, of pictures in [0, 255]."""
    error = np.square(made[hole].astype(np.float64) - truth[hole]).mean()
    return float(10 * np.log10(255**2 / max(error, 1e-3)))


def measure_inpainter(network: PocketLaMa, count: int = 256, dilate: int = 1) -> dict[str, float]:
    """Mean PSNR in the hole when an object and its shadow are removed from held-out scenes.

    "removal": of the network, against the exact picture without the object; "border": of a fill with the mean colour
    along the hole's border; "better": share of the scenes in which the network's is higher; "object": of the picture
    as it was.
    """
    rng = np.random.default_rng(32)
    scenes = [scene for seed in range(count) if (scene := sample_held_out(44_000_000 + seed)).objects]
    found: dict[str, list[float]] = {"removal": [], "border": [], "object": []}
    ours, theirs = PocketInpainter(network), BorderInpainter()
    for scene in scenes:
        before, truth, masks = removal(scene, int(rng.integers(len(scene.objects))))
        hole = widened(masks[..., 1] > 127, dilate)
        for name, picture in (
            ("removal", np.asarray(ours.inpaint(before, hole))),
            ("border", np.asarray(theirs.inpaint(before, hole))),
            ("object", before),
        ):
            found[name].append(hole_psnr(picture, truth, hole))
    better = float(np.mean(np.array(found["removal"]) > np.array(found["border"])))
    return {name: round(float(np.mean(values)), 2) for name, values in found.items()} | {"better": round(better, 4)}


def train_inpainter(plan: Plan, *, batch_size: int = 32, fourier: bool = True) -> dict[str, Any]:
    """Train the pocket inpainter; saves `run/inpainter`."""
    torch.manual_seed(11)
    network, before = network_to_train(plan.run, PocketLaMa(fourier=fourier), load_network)
    reader = load_reader().network.to(plan.device)
    # Other scenes than those that the former run saw.
    stream = RemovalStream(10 + before["samples"], batch_size, reuse=8, pool=2048, workers=plan.workers)

    def objective(seen: torch.Tensor, right: torch.Tensor, hole: torch.Tensor) -> torch.Tensor:
        return filling_loss(reader, network(seen, hole), right, hole)

    fast = compiled(objective, plan)

    def loss() -> torch.Tensor:
        stream.advance()
        return fast(*(value.to(plan.device) for value in stream.holes(stream.choose())))

    def show(folder: Path) -> None:
        seen, right, hole = stream.holes(torch.arange(8))
        with torch.no_grad():
            made = network(seen.to(plan.device), hole.to(plan.device)).cpu()
        rows = [seen, seen * (1 - hole), hole * made + (1 - hole) * right, right]
        sheet = torch.cat([torch.cat(list(row), -1) for row in rows], -2).permute(1, 2, 0)
        Image.fromarray((sheet * 255).byte().numpy()).resize((1024, 512), Image.Resampling.NEAREST).save(
            folder / "samples.png"
        )

    recipe = Recipe("inpainter", {"inpainter": network}, stream, loss, learning_rate=2e-3, decay_from=0.4, show=show)
    record = train(recipe, plan)
    network.to("cpu")
    record = summed(record, before)
    record["held_out"] = measure_inpainter(network)
    save_inpainter(network, record, plan.run / "inpainter")
    return record


def save_inpainter(network: PocketLaMa, record: dict[str, Any], folder: Path) -> None:
    """Write the weights as float16 and what was measured."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(
        {name: value.half().contiguous() for name, value in network.state_dict().items()}, folder / "model.safetensors"
    )
    (folder / "record.json").write_text(json.dumps(record, indent=2) + "\n")
