"""The reader of `editbook.perception`: trained on rendered scenes to name and segment what they show."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch.nn import functional

from ..perception.reader import HEADS, NONE, OWN, SCENE_HEADS, SLOTS, ReaderNetwork, load_reader
from ..pocket import STYLES, Scene, sample, sample_held_out
from ..pocket.sprites import sprite
from ..pocket.styles import COLOURLESS
from .clip import spoil
from .loop import Plan, Recipe, compiled, train
from .start import network_to_train, summed
from .stream import SceneStream

_IGNORED = -100  # what torch's cross-entropy passes over


def labels(scene: Scene) -> dict[str, np.ndarray]:
    """The right answers for a scene: an index into each of `HEADS`, (2,), and of `SCENE_HEADS`, ().

    Objects stand from left to right. What cannot be seen (all of an absent object but its absence; which way a thing
    without a front faces; colours and materials in a pencil sketch) is -100.
    """
    answers = {name: np.full(SLOTS, _IGNORED) for name in HEADS}
    answers["word"][:] = HEADS["word"].index(NONE)
    for slot, thing in enumerate(scene.objects):
        said = {
            "word": thing.word,
            "look": thing.colour or thing.material or OWN,
            "pose": thing.pose,
            "accessory": thing.accessory or NONE,
        }
        if sprite(thing.word).facing:
            said["facing"] = thing.facing or "left"
        if scene.style in COLOURLESS:
            del said["look"]
        for name, answer in said.items():
            answers[name][slot] = HEADS[name].index(answer)
    whole = {"background": scene.background, "style": scene.style}
    return answers | {name: np.array(SCENE_HEADS[name].index(answer)) for name, answer in whole.items()}


def draw(scene: Scene, size: int = 64) -> np.ndarray:
    """The picture and, as a second picture, the masks of its objects in red and green: uint8 (2, size, size, 3)."""
    masks = np.zeros((size, size, 3), np.uint8)
    for slot, mask in enumerate(scene.masks(size)):
        masks[..., slot] = (mask * 255).round()
    return np.stack([scene.array(size), masks])


def lesson(number: int) -> Scene:
    """Training scene `number` of the reader: `sample`, with more of what is hard to read, other styles and pairs."""
    rng = np.random.default_rng([number, 25])
    pair, styled = rng.random() < 0.25, rng.random() < 0.3
    scene = sample(number)
    while pair and len(scene.objects) < SLOTS:
        scene = sample(int(rng.integers(1 << 62)))
    return replace(scene, style=STYLES[int(rng.integers(len(STYLES)))]) if styled else scene


def _draw_labelled(number: int, size: int) -> tuple[np.ndarray, list[dict[str, np.ndarray]]]:
    scene = lesson(number)
    return draw(scene, size), [labels(scene)]


class LabelledStream(SceneStream):
    """Lessons with masks: pictures are pairs as `draw` makes them, notes are the scene's `labels`."""

    _draw = staticmethod(_draw_labelled)
    _shape = (2,)
    _rng_key = 23

    def labels(self, slots: torch.Tensor) -> dict[str, torch.Tensor]:
        """The right answers of these slots, (n, 2) or (n,) each."""
        rows = [self._notes[slot][0] for slot in slots.tolist()]
        return {name: torch.from_numpy(np.stack([row[name] for row in rows])) for name in rows[0]}


def reading_loss(answers: dict[str, torch.Tensor], right: dict[str, torch.Tensor], masks: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of every head, and of the masks.

    Args:
        answers: What the network returns.
        right: From `labels`.
        masks: (n, 2, 64, 64) in [0, 1].
    """
    shares = torch.cat([(1 - masks.sum(1, keepdim=True)).clamp(0), masks], 1)
    total = 2 * functional.cross_entropy(answers["masks"].float(), shares)
    for name, answer in right.items():
        wrong = functional.cross_entropy(answers[name].float().flatten(0, -2), answer.flatten(), reduction="sum")
        # Not torch's own mean: it is NaN for a batch without a single object that has a front.
        total = total + wrong / (answer != _IGNORED).sum().clamp(min=1)
    return total


@torch.no_grad()
def measure_reader(network: ReaderNetwork, count: int = 1024) -> dict[str, float]:
    """Accuracy of every head and mean IoU of the masks on held-out scenes, read under the network's own masks.

    What is said of an object is asked of the objects that are there; "objects" asks whether their number is right.
    "look" is asked of all objects but those of a sketch, which shows none; "colour" and "material" are its answers to
    the objects that have one. What no scene asks is left out.
    """
    right_of: dict[str, list[bool]] = {name: [] for name in (*HEADS, "colour", "material", *SCENE_HEADS, "objects")}
    overlaps = []
    for first in range(0, count, 64):
        scenes = [sample_held_out(40_000_000 + seed) for seed in range(first, min(first + 64, count))]
        pairs = torch.from_numpy(np.stack([draw(scene) for scene in scenes])).permute(0, 1, 4, 2, 3).float()
        answers = network(pairs[:, 0] / 127.5 - 1)
        for row, scene in enumerate(scenes):
            there = len(scene.objects)
            for name, answer in labels(scene).items():
                said = answers[name][row].argmax(-1).numpy()
                if name == "word":
                    right_of["objects"].append(int((said != HEADS["word"].index(NONE)).sum()) == there)
                asked = answer != _IGNORED if name in SCENE_HEADS else (answer != _IGNORED) & (np.arange(SLOTS) < there)
                right_of[name] += list((said == answer)[asked].flatten())
                if name == "look" and scene.style not in COLOURLESS:
                    for thing, right in zip(scene.objects, said == answer, strict=False):
                        if thing.colour or thing.material:
                            right_of["colour" if thing.colour else "material"].append(right)
            found = answers["masks"][row].argmax(0)
            for slot in range(len(scene.objects)):
                exact, read = pairs[row, 1, slot] > 127, found == slot + 1
                overlaps.append(float((exact & read).sum() / (exact | read).sum().clamp(min=1)))
    shares = right_of | {"mask_iou": overlaps}
    return {name: round(float(np.mean(values)), 4) for name, values in shares.items() if values}


def train_reader(plan: Plan, *, batch_size: int = 64) -> dict[str, Any]:
    """Train the reader; saves `run/reader`. A third of the pictures is blurred and noisy, as a model's may be."""
    torch.manual_seed(7)
    network, before = network_to_train(plan.run, ReaderNetwork(), lambda start: load_reader(start).network)
    # Other scenes than those that the former run saw.
    stream = LabelledStream(8 + before["samples"], batch_size, reuse=4, pool=4096, workers=plan.workers)

    def objective(x: torch.Tensor, masks: torch.Tensor, right: dict[str, torch.Tensor]) -> torch.Tensor:
        # Half of the batch is read under the exact masks, half under the network's own, which it will have to use.
        half = len(x) // 2
        exact = reading_loss(network(x[:half], masks[:half]), {k: v[:half] for k, v in right.items()}, masks[:half])
        return exact + reading_loss(network(x[half:]), {k: v[half:] for k, v in right.items()}, masks[half:])

    fast = compiled(objective, plan)

    def loss() -> torch.Tensor:
        stream.advance()
        slots = stream.choose()
        pairs = stream.pictures(slots)
        x, masks = pairs[:, 0], (pairs[:, 1, :SLOTS] + 1) / 2
        for row in range(0, batch_size, 3):
            x[row : row + 1] = spoil(x[row : row + 1], 2 + int(torch.randint(2, ())))
        right = {name: answer.to(plan.device) for name, answer in stream.labels(slots).items()}
        return fast(x.to(plan.device), masks.to(plan.device), right)

    record = train(Recipe("reader", {"reader": network}, stream, loss), plan)
    network.to("cpu")
    record = summed(record, before)
    record["held_out"] = measure_reader(network)
    save_reader(network, record, plan.run / "reader")
    return record


def save_reader(network: ReaderNetwork, record: dict[str, Any], folder: Path) -> None:
    """Write the weights as float16 and what was measured."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(
        {name: value.half().contiguous() for name, value in network.state_dict().items()}, folder / "model.safetensors"
    )
    (folder / "record.json").write_text(json.dumps(record, indent=2) + "\n")
