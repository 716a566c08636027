"""The pocket segmenter: trained on rendered scenes to outline what a click, a box or a phrase shows it."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch.nn import functional

from ..perception.base import LEVELS, box_of
from ..perception.layers import mean_under
from ..perception.oracle import levels
from ..perception.reader import load_reader
from ..perception.segmenter import (
    SCALE,
    SIDE,
    TEXT,
    SegmenterNetwork,
    embed_phrases,
    load_network,
    look_at,
    prompt_maps,
    reader_sum,
)
from ..pocket import ACCESSORIES, BACKGROUNDS, COLOURS, MATERIALS, OBJECTS, Scene, Thing, sample_held_out
from ..pocket.grammar import article, noun_phrase
from ..pocket.styles import COLOURLESS
from .clip import spoil
from .loop import Plan, Recipe, compiled, train
from .reader import lesson
from .start import network_to_train, summed
from .stream import SceneStream

LOOKS: tuple[str | None, ...] = (None, *COLOURS, *MATERIALS)
KINDS = ("click", "box", "phrase")
_SHARES = (0.4, 0.15, 0.45)


@dataclass(frozen=True)
class Question:
    """What is asked about a scene, and the right answer.

    Args:
        maps: From `prompt_maps`.
        phrase: "" for none.
        masks: bool (3, 64, 64).
        present: Whether there is what was asked for.
    """

    maps: np.ndarray
    phrase: str
    masks: np.ndarray
    present: bool


def _pick(rng: np.random.Generator, options: Any) -> Any:
    return options[int(rng.integers(len(options)))]


def _click(rng: np.random.Generator, mask: np.ndarray) -> np.ndarray:
    rows, columns = np.nonzero(mask)
    k = int(rng.integers(len(rows)))
    return np.array([columns[k], rows[k]]) + rng.uniform(0, 1, 2)


def _ask_click(rng: np.random.Generator, parts: np.ndarray) -> Question:
    ground: np.ndarray = ~np.asarray(parts[:, 2].any(0))
    empty = np.zeros((len(LEVELS), SIDE, SIDE), bool)
    seen = [part for part in parts if part[1].sum() > 3]
    if not seen or (rng.random() < 0.25 and ground.any()):
        return Question(prompt_maps(_click(rng, ground)[None], np.ones(1), None), "", empty, False)
    part = _pick(rng, seen)
    worn = part[0].sum() > 3 and rng.random() < 0.4
    clicks, labels = [_click(rng, part[0 if worn else 1])], [1]
    x, y = clicks[0].astype(int)
    on_part = part[0][y, x]
    while rng.random() < 0.25:
        clicks.append(_click(rng, part[0 if on_part else 1]))
        labels.append(1)
    elsewhere = ground | (parts[:, 1].any(0) & ~part[1])
    while rng.random() < 0.25 and elsewhere.any():
        clicks.append(_click(rng, elsewhere))
        labels.append(0)
    masks = part if on_part else np.stack([empty[0], part[1], part[2]])
    return Question(prompt_maps(np.stack(clicks), np.array(labels), None), "", masks, True)


def _ask_box(rng: np.random.Generator, parts: np.ndarray) -> Question:
    part = _pick(rng, [part for part in parts if part[1].sum() > 3])
    worn = part[0].sum() > 3 and rng.random() < 0.3
    x0, y0, x1, y1 = box_of(part[0 if worn else 1])
    loose = np.array([x1 - x0, y1 - y0, x1 - x0, y1 - y0]) * 0.04 + 0.5
    box = np.clip(np.array([x0, y0, x1, y1]) + rng.normal(size=4).clip(-2, 2) * loose, 0, SIDE)
    none = np.zeros((0, 2))
    masks = np.stack([part[0]] * 3) if worn else np.stack([np.zeros_like(part[0]), part[1], part[2]])
    return Question(prompt_maps(none, none, box), "", masks, True)


def _said(rng: np.random.Generator, noun: str) -> str:
    return _pick(rng, (noun, article(noun), article(noun), f"the {noun}"))


def _absent(rng: np.random.Generator, scene: Scene) -> str:
    """A phrase that names nothing in the scene: an object that is not there, a wrong colour, or a place."""
    painted = [thing for thing in scene.objects if thing.colour or thing.material]
    kind = rng.random()
    if kind < 0.3 and painted and scene.style not in COLOURLESS:
        thing = _pick(rng, painted)
        same = COLOURS if thing.colour else MATERIALS
        taken = {other.colour or other.material for other in scene.objects if other.word == thing.word}
        if None not in taken:  # its own colours could be the ones that are said
            return _said(rng, f"{_pick(rng, [look for look in same if look not in taken])} {thing.word}")
    if kind > 0.95:
        return _said(rng, _pick(rng, BACKGROUNDS))
    there = {thing.word for thing in scene.objects} | {thing.accessory for thing in scene.objects}
    if kind > 0.8:
        return _said(rng, _pick(rng, [word for word in ACCESSORIES if word not in there]))
    word = _pick(rng, [word for word in OBJECTS if word not in there])
    look = _pick(rng, LOOKS) if rng.random() < 0.4 else None
    return _said(rng, f"{look} {word}" if look else word)


def _ask_phrase(rng: np.random.Generator, scene: Scene, parts: np.ndarray, absent: float) -> Question:
    blank = prompt_maps(np.zeros((0, 2)), np.zeros(0), None)
    if not scene.objects or rng.random() < absent:
        return Question(blank, _absent(rng, scene), np.zeros((len(LEVELS), SIDE, SIDE), bool), False)
    thing: Thing = _pick(rng, scene.objects)
    index = scene.objects.index(thing)
    kind = rng.random()
    if kind < 0.25 and thing.accessory and parts[index, 0].sum() > 3:
        worn = [part[0] for other, part in zip(scene.objects, parts, strict=True) if other.accessory == thing.accessory]
        return Question(blank, _said(rng, thing.accessory), np.stack([np.any(worn, 0)] * len(LEVELS)), True)
    look = thing.colour or thing.material
    if kind > 0.85:
        phrase, meant = noun_phrase(thing), [part for k, part in enumerate(parts) if k == index]
    elif kind > 0.5 and look:
        phrase = _said(rng, f"{look} {thing.word}")
        meant = [
            part
            for other, part in zip(scene.objects, parts, strict=True)
            if (other.word, other.colour or other.material) == (thing.word, look)
        ]
    else:
        phrase = _said(rng, thing.word)
        meant = [part for other, part in zip(scene.objects, parts, strict=True) if other.word == thing.word]
    union = np.any(meant, 0)
    return Question(blank, phrase, np.stack([np.zeros_like(union[0]), union[1], union[2]]), bool(union[1].any()))


def ask(
    rng: np.random.Generator, scene: Scene, parts: np.ndarray, kind: str | None = None, absent: float = 0.3
) -> Question:
    """A question about a scene, at random.

    Args:
        rng: Where chance comes from.
        scene: The scene.
        parts: Its `levels`.
        kind: One of `KINDS`; None draws one.
        absent: Share of the phrases that name nothing in the scene.
    """
    kind = kind or str(rng.choice(KINDS, p=_SHARES))
    if kind == "phrase":
        return _ask_phrase(rng, scene, parts, absent)
    if kind == "box" and parts[:, 1].any():
        return _ask_box(rng, parts)
    return _ask_click(rng, parts)


def _draw_parts(number: int, size: int) -> tuple[np.ndarray, list[Scene]]:
    """The picture of lesson `number`, and the parts of its two objects as two more pictures, (3, size, size, 3)."""
    scene = lesson(number)
    drawn = np.zeros((3, size, size, 3), np.uint8)
    drawn[0] = scene.array(size)
    for slot, part in enumerate(levels(scene, size)):
        drawn[1 + slot] = np.moveaxis(part, 0, -1) * np.uint8(255)
    return drawn, [scene]


class PartStream(SceneStream):
    """Lessons with the parts of their objects, see `_draw_parts`; notes are the scenes themselves.

    What the reader sees of each is kept with it. A quarter of the pictures is blurred and noisy.
    """

    _draw = staticmethod(_draw_parts)
    _shape = (3,)
    _rng_key = 27
    _seen: dict[str, torch.Tensor] | None = None

    def _fill(self, count: int) -> torch.Tensor:
        slots = super()._fill(count)
        for part in slots.split(64):
            x = self._pictures[part, 0].float() / 127.5 - 1
            for row in range(0, len(part), 4):
                x[row : row + 1] = spoil(x[row : row + 1], 2 + int(torch.randint(2, ())))
            seen = look_at(load_reader().network, x)
            if self._seen is None:
                self._seen = {
                    name: torch.zeros(self.pool, *value.shape[1:], dtype=torch.bfloat16) for name, value in seen.items()
                }
            for name, value in seen.items():
                self._seen[name][part] = value.bfloat16()
        return slots

    def questions(
        self, slots: torch.Tensor
    ) -> tuple[dict[str, torch.Tensor], list[Scene], torch.Tensor, list[Question]]:
        """What the reader sees, scenes, the parts of two objects bool (n, 2, 3, 64, 64), and a question about each."""
        assert self._seen is not None
        parts = self._pictures[slots, 1:] > 127
        scenes = [self._notes[slot][0] for slot in slots.tolist()]
        asked = [
            ask(self._rng, scene, part[: len(scene.objects)]) for scene, part in zip(scenes, parts.numpy(), strict=True)
        ]
        return {name: value[slots] for name, value in self._seen.items()}, scenes, parts, asked


@cache
def _embedded(phrase: str) -> torch.Tensor:
    return embed_phrases([phrase])[0]


def texts_of(questions: list[Question]) -> torch.Tensor:
    """The phrases' features (n, 128), zeros where there is none."""
    return torch.stack([_embedded(asked.phrase) if asked.phrase else torch.zeros(TEXT) for asked in questions])


@cache
def names() -> torch.Tensor:
    """Features of every object in every look, (objects, looks, 128)."""
    phrases = [article(f"{look} {word}" if look else word) for word in OBJECTS for look in LOOKS]
    return embed_phrases(phrases).unflatten(0, (len(OBJECTS), len(LOOKS)))


def name_labels(scenes: list[Scene]) -> torch.Tensor:
    """Which word and look each object has, (n, 2, 2); -100 for no object and for a look that cannot be told."""
    labels = torch.full((len(scenes), 2, 2), -100)
    for row, scene in enumerate(scenes):
        for slot, thing in enumerate(scene.objects):
            labels[row, slot, 0] = OBJECTS.index(thing.word)
            if scene.style not in COLOURLESS:
                labels[row, slot, 1] = LOOKS.index(thing.colour or thing.material)
    return labels


def overlap(logits: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """IoU of logits > 0 with exact masks, both (..., h, w); 0 where the exact mask is empty."""
    found, exact = logits > 0, masks > 0.5
    both, either = (found & exact).sum((-2, -1)), (found | exact).sum((-2, -1))
    return both / either.clamp(min=1)


def naming_loss(
    network: SegmenterNetwork, look: torch.Tensor, parts: torch.Tensor, labels: torch.Tensor
) -> torch.Tensor:
    """Cross-entropy of each object's name among all words, and of its look among those of its word.

    Args:
        network: Its `direction` and scale are those of the comparison inside.
        look: (n, 128, 16, 16), of length 1 at each cell.
        parts: Exact masks (n, 2, 64, 64).
        labels: From `name_labels`.
    """
    under = mean_under(look, functional.adaptive_avg_pool2d(parts, look.shape[-1]), floor=1e-3)
    directions = network.direction(names().to(look.device).flatten(0, 1)).unflatten(0, (len(OBJECTS), len(LOOKS)))
    alike = SCALE * torch.einsum("nsc,wlc->nswl", under, directions)
    words, looks = labels.unbind(-1)
    # A word is as likely as its look that fits best.
    by_word = functional.cross_entropy(alike.logsumexp(-1).flatten(0, 1), words.flatten(), ignore_index=-100)
    own = alike.gather(2, words.clamp(min=0)[..., None, None].expand(-1, -1, 1, len(LOOKS)))[:, :, 0]
    by_look = functional.cross_entropy(own.flatten(0, 1), looks.flatten(), ignore_index=-100)
    return by_word + by_look


def answering_loss(answers: dict[str, torch.Tensor], masks: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
    """Cross-entropy and Dice of the masks, squared error of the IoUs, cross-entropy of the presence.

    Args:
        answers: What the network returns.
        masks: Exact ones, (n, 3, 64, 64).
        present: (n,), 0 or 1.
    """
    logits = answers["masks"].float()
    # Small parts would be lost in a mean over all pixels: Dice counts each mask alike, if there is one.
    probability, there = logits.sigmoid(), masks.flatten(2).any(-1).float()
    shared = (probability * masks).sum((2, 3))
    dice = 1 - (2 * shared + 1) / (probability.sum((2, 3)) + masks.sum((2, 3)) + 1)
    total = 4 * functional.binary_cross_entropy_with_logits(logits, masks)
    total = total + (dice * there).sum() / there.sum().clamp(min=1)
    right = overlap(logits.detach(), masks)
    total = total + functional.mse_loss(answers["ious"].float().sigmoid(), right)
    return total + 0.5 * functional.binary_cross_entropy_with_logits(answers["presence"].float(), present)


@torch.no_grad()
def measure_segmenter(network: SegmenterNetwork, count: int = 512) -> dict[str, float]:
    """How good the answers are on held-out scenes with at least one object.

    "click": IoU of the best of three masks with the object that was clicked; "part" and "shadow": of the first with the
    accessory that was clicked, and of the third with object and shadow; "box" and "word": of the second mask;
    "presence" and "nothing": share of right answers to phrases, half of which name nothing, and share of clicks on the
    ground that are answered so; "score_correlation": of predicted and true IoU. With "_of_two" behind: the same for
    scenes with two objects only, where an answer must also keep them apart.
    """
    rng = np.random.default_rng(28)
    scenes = [scene for seed in range(count) if (scene := sample_held_out(42_000_000 + seed)).objects]
    parts = [levels(scene) for scene in scenes]
    found: defaultdict[str, list[float]] = defaultdict(list)
    for first in range(0, len(scenes), 64):
        rows = range(first, min(first + 64, len(scenes)))
        x = torch.from_numpy(np.stack([scenes[k].array() for k in rows])).permute(0, 3, 1, 2).float() / 127.5 - 1
        seen = look_at(load_reader().network, x)
        for kind in KINDS:
            asked = [ask(rng, scenes[k], parts[k], kind, absent=0.5) for k in rows]
            answers = network(seen, torch.from_numpy(np.stack([one.maps for one in asked])), texts_of(asked))
            masks = torch.from_numpy(np.stack([one.masks for one in asked]))
            right = overlap(answers["masks"], masks)
            for row, one in enumerate(asked):
                of = ["", "_of_two"] if len(scenes[rows[row]].objects) == 2 else [""]
                exists = one.masks.any((1, 2))
                found["score"] += answers["ious"][row].sigmoid().numpy()[exists].tolist()
                found["true"] += right[row].numpy()[exists].tolist()
                for name, value in _marks(kind, one, answers["masks"][row], right[row], answers["presence"][row]):
                    for these in of:
                        found[name + these].append(value)
    correlation = float(np.corrcoef(found.pop("score"), found.pop("true"))[0, 1])
    return {name: round(float(np.mean(values)), 4) for name, values in sorted(found.items())} | {
        "score_correlation": round(correlation, 3)
    }


def _marks(
    kind: str, one: Question, logits: torch.Tensor, right: torch.Tensor, presence: torch.Tensor
) -> Iterator[tuple[str, float]]:
    """Names and values of what `measure_segmenter` notes about one answer."""
    if kind == "phrase":
        yield "presence", float((presence > 0) == one.present)
    elif kind == "click" and not one.present:
        yield "nothing", float(presence <= 0)
    if not one.present:
        return
    if kind != "click":
        yield ("word" if kind == "phrase" else "box"), float(right[1])
        return
    whole = torch.from_numpy(one.masks[1]).expand(len(LEVELS), -1, -1)
    yield "click", float(overlap(logits, whole).max())
    yield "shadow", float(right[2])
    if one.masks[0].any():
        yield "part", float(right[0])


def train_segmenter(plan: Plan, *, batch_size: int = 64) -> dict[str, Any]:
    """Train the pocket segmenter; saves `run/segmenter`."""
    torch.manual_seed(9)
    new = SegmenterNetwork()
    new.centre.copy_(names().flatten(0, 1).mean(0))
    network, before = network_to_train(plan.run, new, load_network)
    # Other scenes than those that the former run saw.
    stream = PartStream(9 + before["samples"], batch_size, reuse=8, pool=1024, workers=plan.workers)

    def objective(
        seen: dict[str, torch.Tensor],
        maps: torch.Tensor,
        texts: torch.Tensor,
        masks: torch.Tensor,
        present: torch.Tensor,
        parts: torch.Tensor,
        labels: torch.Tensor,
    ) -> torch.Tensor:
        answers = network(seen, maps, texts)
        naming = naming_loss(network, answers["look"].float(), parts, labels)
        return answering_loss(answers, masks, present) + 0.2 * naming

    fast = compiled(objective, plan)

    def loss() -> torch.Tensor:
        stream.advance()
        seen, scenes, parts, asked = stream.questions(stream.choose())
        batch = (
            torch.from_numpy(np.stack([one.maps for one in asked])),
            texts_of(asked),
            torch.from_numpy(np.stack([one.masks for one in asked])).float(),
            torch.tensor([float(one.present) for one in asked]),
            parts[:, :, 1].float(),
            name_labels(scenes),
        )
        device = plan.device
        return fast({name: value.to(device) for name, value in seen.items()}, *(value.to(device) for value in batch))

    record = train(Recipe("segmenter", {"segmenter": network}, stream, loss, learning_rate=2e-3), plan)
    network.to("cpu")
    record = summed(record, before)
    record["reader"] = reader_sum()
    record["held_out"] = measure_segmenter(network)
    save_segmenter(network, record, plan.run / "segmenter")
    return record


def save_segmenter(network: SegmenterNetwork, record: dict[str, Any], folder: Path) -> None:
    """Write the weights as float16 and what was measured."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(
        {name: value.half().contiguous() for name, value in network.state_dict().items()}, folder / "model.safetensors"
    )
    (folder / "record.json").write_text(json.dumps(record, indent=2) + "\n")
