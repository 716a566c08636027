"""An editing task: picture, prompts, instruction, mask, and, in this world alone, the exact right answer."""

from __future__ import annotations

from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import NamedTuple

import numpy as np
from PIL import Image

from ..errors import unknown
from .edits import Change
from .scene import Scene, Thing


class ChangedWords(NamedTuple):
    """The words that only one of the two prompts has, in order."""

    source: tuple[str, ...]
    target: tuple[str, ...]


def changed_words(source_prompt: str, target_prompt: str) -> ChangedWords:
    """Which words an edit of the prompt takes away and which it brings."""
    source, target = source_prompt.split(), target_prompt.split()
    gone: list[str] = []
    new: list[str] = []
    for tag, i, j, k, m in SequenceMatcher(None, source, target, autojunk=False).get_opcodes():
        if tag != "equal":
            gone += source[i:j]
            new += target[k:m]
    return ChangedWords(tuple(gone), tuple(new))


def _bracket(prompt: str, other: str) -> str:
    words, others = prompt.split(), other.split()
    parts: list[str] = []
    for tag, i, j, _, _ in SequenceMatcher(None, words, others, autojunk=False).get_opcodes():
        if i < j:
            run = " ".join(words[i:j])
            parts.append(run if tag == "equal" else f"[{run}]")
    return " ".join(parts)


@dataclass(frozen=True)
class EditTask:
    """One edit to make.

    Args:
        source_image: The picture to edit, RGB.
        truth: The exact edited picture; None for real data, where nobody knows it.
        source_prompt: Describes the source picture, plain text.
        target_prompt: Describes the edited picture, plain text.
        instruction: What a person would ask for.
        mask: Where the edit acts, float32 (height, width) in [0, 1].
        edit_type: One of `grammar.EDIT_TYPES`; of real data "random" or "unspecified" where nobody says.
        changed_words: The words that differ between the prompts.
        source_scene: The scene behind the source picture; None for real data.
        target_scene: The scene behind the truth; None for real data.
    """

    source_image: Image.Image
    truth: Image.Image | None
    source_prompt: str
    target_prompt: str
    instruction: str
    mask: np.ndarray
    edit_type: str
    changed_words: ChangedWords
    source_scene: Scene | None = None
    target_scene: Scene | None = None

    @property
    def bracketed(self) -> tuple[str, str]:
        """Both prompts in PIE-Bench's form, the changed words in [brackets]."""
        return _bracket(self.source_prompt, self.target_prompt), _bracket(self.target_prompt, self.source_prompt)


def make_task(scene: Scene, change: Change, size: int = 64) -> EditTask:
    """The task that a change of a scene poses, drawn at `size` pixels."""
    after = change.apply(scene)
    source_prompt, target_prompt = scene.caption(), after.caption()
    return EditTask(
        source_image=scene.image(size),
        truth=after.image(size),
        source_prompt=source_prompt,
        target_prompt=target_prompt,
        instruction=change.instruction(scene),
        mask=change.mask(scene, size),
        edit_type=change.kind,
        changed_words=changed_words(source_prompt, target_prompt),
        source_scene=scene,
        target_scene=after,
    )


# The survey's own qualitative cases, and two for methods that move or add things.
NAMED: dict[str, tuple[Scene, Change]] = {
    "golden-car": (Scene("beach", (Thing("car"),), seed=4), Change("change material", "golden")),
    "cat-to-fox": (Scene("meadow", (Thing("cat"),), seed=2), Change("change object", "fox")),
    "van-gogh": (Scene("meadow", (Thing("house", size=0.6),), seed=7), Change("change style", "van Gogh painting")),
    "remove-cookie": (Scene("room", (Thing("cookie", size=0.5),), seed=3), Change("remove object")),
    "jumping-dog": (Scene("beach", (Thing("dog", y=0.9),), seed=5), Change("change pose", "jumping")),
    "statue-sunglasses": (Scene("desert", (Thing("statue", y=0.9),), seed=6), Change("change content", "sunglasses")),
    "drag-car": (Scene("desert", (Thing("car", x=0.38, size=0.5),), seed=8), Change("drag", "right")),
    "red-to-blue-bus": (Scene("city", (Thing("bus", colour="red"),), seed=9), Change("change colour", "blue")),
    "penguin-to-desert": (Scene("snow", (Thing("penguin"),), seed=10), Change("change background", "desert")),
    "add-crown": (Scene("forest", (Thing("lion"),), seed=11), Change("change content", "crown")),
    "add-apple": (
        Scene("room", (Thing("cat", x=0.3, size=0.42),), seed=12),
        Change("add object", Thing("apple", x=0.74, size=0.38)),
    ),
}


def task(name: str, size: int = 64) -> EditTask:
    """A named task, e.g. ``task("cat-to-fox")``; the names are the keys of `NAMED`."""
    if name not in NAMED:
        raise unknown("task", name, NAMED)
    scene, change = NAMED[name]
    return make_task(scene, change, size)
