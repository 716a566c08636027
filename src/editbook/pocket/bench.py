"""PocketBench: 700 edits with exact answers, in PIE-Bench's ten types and with PIE-Bench's own counts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import permutations
from typing import NamedTuple

import numpy as np

from . import palette, sprites, styles
from .backgrounds import GROUND
from .benchmark import TYPES, Benchmark, BenchTask, Entry
from .distribution import is_held_out
from .edits import Change
from .scene import Scene, Thing
from .tasks import make_task

COUNTS = (140, 80, 80, 80, 40, 40, 40, 40, 80, 80)
"""How many tasks of each of `TYPES` there are."""
FOLDERS = (
    "0_random_140",
    "1_change_object_80",
    "2_add_object_80",
    "3_delete_object_80",
    "4_change_attribute_content_40",
    "5_change_attribute_pose_40",
    "6_change_attribute_color_40",
    "7_change_attribute_material_40",
    "8_change_background_80",
    "9_change_style_80",
)
"""PIE-Bench's folder for each of `TYPES`."""
FIRST_SEED = 1 << 31
"""Seeds of PocketBench's scenes start here, where those of the training scenes end."""


def bench(size: int = 64) -> Benchmark:
    """The 700 tasks of PocketBench, always the same ones.

    Counts and types are PIE-Bench's (Ju et al., "PnP Inversion", ICLR 2024): `COUNTS` of each of `TYPES`, where the 140
    "random" ones take turns over the other nine. No two tasks have the same prompts, every edit can be seen, and it
    concerns one object that the instruction can name by its word, or the whole picture. One task in five has two
    objects (two in five where one is deleted, all where one is added, none where one is dressed), and one in five has
    another style than "photo".

    **Nothing here was trained on.** Every object of every scene, before and after the edit, is a held-out combination
    of word, colour or material, and background (`is_held_out`), which the training sampler never draws. The one scene
    without an object, what is left after its only object was deleted, has no combination; but like all scenes of
    PocketBench it has a seed of at least `FIRST_SEED`, and all training scenes have smaller ones.

    PIE-Bench sorts its pictures into artificial and natural, and those into animal, human, indoor and outdoor. Our
    mapping: natural is a photo, artificial any other style; animal and human (snowman, robot, ghost, statue) are
    the object that the edit is about, indoor is the room, outdoor every other place.

    Args:
        size: Side of the pictures in pixels.
    """
    return Benchmark("PocketBench", [Entry(plan.id, plan.type_id, partial(_make, plan, size)) for plan in _plans()])


class _Combination(NamedTuple):
    """What training scenes never show together. The look is a colour, a material, or None."""

    word: str
    look: str | None
    background: str


class _Stratum(NamedTuple):
    """What is fixed about a task before anything is drawn at random."""

    kind: str
    category: str
    two_objects: bool
    style: str
    turn: int


@dataclass(frozen=True)
class _Plan:
    id: str
    type_id: int
    image_path: str
    scene: Scene
    change: Change
    phrasing: int


_SOURCES = ("artificial", "natural")
_CATEGORIES = ("animal", "human", "indoor", "outdoor")
# There are many more animals and other things than human figures, and nine places out of doors to one room.
_ORDER = ("animal", "outdoor", "human", "animal", "outdoor", "indoor")
_ORDER_OF_FACES = ("animal", "animal", "human")
_LAYOUTS = 5  # of five tasks in turn the fourth has two objects, the fifth another style
# Which part of the object's combination the edit changes; the other two stay.
_CHANGED = {
    "change object": "word",
    "change colour": "look",
    "change material": "look",
    "change background": "background",
}
_NEW_LOOKS = {"change colour": palette.COLOURS, "change material": palette.MATERIALS}
_OLD_LOOKS = {
    "change colour": (None, *palette.COLOURS),
    "change material": (None, *palette.COLOURS, *palette.MATERIALS),
}
# Centres and sizes, so that of two objects neither covers the other, and what one puts on is large enough to see.
_MIDDLE, _HALVES = (0.42, 0.58), ((0.25, 0.29), (0.71, 0.75))
_ALONE, _FACE, _BESIDE = (0.48, 0.62), (0.56, 0.62), (0.36, 0.44)
# Styles without colours, and with lines too faint for a hat, in which such an edit would hardly show.
_HIDING = {
    "change colour": ("pencil sketch",),
    "change material": ("pencil sketch",),
    "change content": ("pencil sketch", "watercolour"),
}
_BLENDED = ("change object", "change content", "change pose", "change colour", "change material")
# Looks that can hardly be told apart: drawn that way, the sprites differ by less than 36 of 255 levels (mean over an
# object and the channels; the five pairs over all objects on average). No task asks for such a change.
_ALIKE = (
    {"white", "ice"},
    {"orange", "yellow"},
    {"orange", "golden"},
    {"yellow", "golden"},
    {"stone", "silver"},
)
_OWN_LOOKS = {
    "banana": ("yellow",),
    "bear": ("stone", "wooden"),
    "bicycle": ("pink",),
    "cat": ("orange", "yellow"),
    "donut": ("stone", "wooden"),
    "duck": ("silver",),
    "elephant": ("silver",),
    "fox": ("orange",),
    "ghost": ("white",),
    "guitar": ("pink",),
    "horse": ("stone", "wooden"),
    "koala": ("silver",),
    "lion": ("orange",),
    "monkey": ("stone", "pink"),
    "mushroom": ("pink",),
    "panda": ("silver", "white"),
    "penguin": ("pink",),
    "pig": ("pink",),
    "pumpkin": ("orange",),
    "rabbit": ("white", "ice"),
    "sheep": ("white",),
    "snowman": ("silver",),
    "statue": ("silver", "stone"),
    "sunflower": ("yellow",),
}


@cache
def _combinations() -> dict[_Combination, None]:
    """All held-out combinations, in the order of the lists of words (a dictionary, as sets have no order)."""
    every = (
        _Combination(word, look, background)
        for word in sprites.OBJECTS
        for look in (None, *palette.COLOURS, *palette.MATERIALS)
        for background in GROUND
    )
    return {
        combination: None
        for combination in every
        if is_held_out(Scene(combination.background, (_painted(combination.word, combination.look),)))
    }


def _painted(word: str, look: str | None) -> Thing:
    return Thing(
        word,
        colour=look if look in palette.COLOURS else None,
        material=look if look in palette.MATERIALS else None,
    )


def _category(combination: _Combination) -> str:
    kind = sprites.sprite(combination.word).kind
    if kind in ("animal", "character"):
        return "animal" if kind == "animal" else "human"
    return "indoor" if combination.background == "room" else "outdoor"


def _shows(kind: str, before: str | None, after: str | None, word: str) -> bool:
    """Whether an edit of this kind leads from one look of the word to the other, and the two can be told apart."""
    if before not in _OLD_LOOKS[kind] or after not in _NEW_LOOKS[kind]:
        return False
    return after not in _OWN_LOOKS.get(word, ()) if before is None else {before, after} not in _ALIKE


@cache
def _pairs(kind: str, category: str) -> tuple[list[tuple[_Combination, _Combination]], np.ndarray]:
    """The object concerned as (before, after), both held out, and the cumulative distribution to draw from.

    Each new value, or else each word, comes up equally often.
    """
    changed = _CHANGED.get(kind)
    groups: defaultdict[_Combination, list[_Combination]] = defaultdict(list)
    for combination in _combinations():
        groups[combination._replace(**{changed: ""}) if changed else combination].append(combination)
    pairs = [
        (before, after)
        for group in groups.values()
        for before, after in (permutations(group, 2) if changed else [(group[0], group[0])])
        if _category(before) == category and (changed != "look" or _shows(kind, before.look, after.look, before.word))
    ]
    totals: defaultdict[str, float] = defaultdict(float)
    for before, after in pairs:
        totals[getattr(after, changed or "word")] += _weight(before, after)
    cumulative = np.cumsum([_weight(*pair) / totals[getattr(pair[1], changed or "word")] for pair in pairs])
    return pairs, cumulative / cumulative[-1]


def _weight(before: _Combination, after: _Combination) -> float:
    """Objects in their own colours, of which there are few, come up more often; so do a cat for a dog."""
    alike = sprites.sprite(before.word).kind == sprites.sprite(after.word).kind
    return (4.0 if before.look is None else 1.0) * (3.0 if alike else 1.0)


def _strata(type_id: int) -> Iterator[_Stratum]:
    """Kinds, categories, layouts and styles in turns of different lengths, so that all of them meet."""
    for number in range(COUNTS[type_id]):
        kind = TYPES[type_id] if type_id else TYPES[1 + number % 9]
        turn = number if type_id else number // 9
        layout = turn % _LAYOUTS
        order = _ORDER_OF_FACES if kind == "change content" else _ORDER
        two_objects = layout == 3 and kind != "change content"
        if kind == "add object" or (kind == "remove object" and layout == 1):
            two_objects = True
        drawn = [style for style in styles.STYLES[1:] if style not in _HIDING.get(kind, ())]
        style = drawn[turn // _LAYOUTS % len(drawn)] if layout == 4 else "photo"
        yield _Stratum(kind, order[turn % len(order)], two_objects, style, turn)


@cache
def _plans() -> tuple[_Plan, ...]:
    plans: list[_Plan] = []
    prompts: set[tuple[str, str]] = set()
    for type_id, folder in enumerate(FOLDERS):
        rng = np.random.default_rng([15, type_id])
        counts: defaultdict[str, int] = defaultdict(int)
        for stratum in _strata(type_id):
            scene, change = _draw(rng, stratum)
            while (pair := (scene.caption(), change.apply(scene).caption())) in prompts:
                scene, change = _draw(rng, stratum)
            prompts.add(pair)
            source, category = 1 + (stratum.style == "photo"), 1 + _CATEGORIES.index(stratum.category)
            digits, place = "000", folder
            if type_id:
                digits = f"{type_id}{source}{category}"
                place = f"{folder}/{source}_{_SOURCES[source - 1]}/{category}_{stratum.category}"
            id = f"{digits}{counts[digits]:09d}"
            counts[digits] += 1
            plans.append(_Plan(id, type_id, f"{place}/{id}.jpg", scene, change, stratum.turn % 3))
    return tuple(plans)


def _draw(rng: np.random.Generator, stratum: _Stratum) -> tuple[Scene, Change]:
    """A scene and an edit, every object a held-out combination before and after."""
    pairs, cumulative = _pairs(stratum.kind, stratum.category)
    before, after = pairs[int(np.searchsorted(cumulative, rng.random(), side="right"))]
    thing = _thing(rng, stratum, before, after)
    thing, change = _edit(rng, stratum, thing, after)
    objects = [thing]
    if stratum.two_objects:
        companion = _companion(rng, thing, before, after)
        if stratum.kind == "add object":
            change = replace(change, value=companion)
        else:
            objects = sorted([thing, companion], key=lambda item: item.x)
    seed = FIRST_SEED + int(rng.integers(FIRST_SEED))
    scene = Scene(before.background, tuple(objects), stratum.style, seed)
    return scene, replace(change, index=objects.index(thing))


def _thing(rng: np.random.Generator, stratum: _Stratum, before: _Combination, after: _Combination) -> Thing:
    """The object concerned, in a pose and dress that it can keep through the edit."""
    rows = [sprites.sprite(combination.word) for combination in (before, after)]
    poses = [pose for pose in sprites.POSES if all(pose in row.poses for row in rows)]
    pose = _pick(rng, poses) if rng.random() < 0.15 else "standing"
    facing = _pick(rng, ("left", "right")) if rng.random() < 0.4 else None
    accessory = _pick(rng, sprites.ACCESSORIES) if rng.random() < 0.25 else None
    centre, sizes = _MIDDLE, _FACE if stratum.kind == "change content" else _ALONE
    if stratum.two_objects:
        centre, sizes = _HALVES[int(rng.integers(2))], _BESIDE
    return replace(
        _placed(rng, before, centre, sizes),
        pose=pose,
        facing=facing if all(row.facing for row in rows) else None,
        accessory=accessory if all(row.eyes for row in rows) else None,
    )


def _edit(rng: np.random.Generator, stratum: _Stratum, thing: Thing, after: _Combination) -> tuple[Thing, Change]:
    """The edit, and its object as it is before; what it puts on or how it poses is drawn here."""
    kind, backwards = stratum.kind, rng.random() < 0.25
    if kind == "change content":
        item = _pick(rng, sprites.ACCESSORIES)
        if backwards:
            return replace(thing, accessory=item), Change(kind, None)
        return replace(thing, accessory=None), Change(kind, item)
    if kind == "change pose":
        pose = _pick(rng, sprites.sprite(thing.word).poses[1:])
        if backwards:
            return replace(thing, pose=pose), Change(kind, "standing")
        return replace(thing, pose="standing"), Change(kind, pose)
    if kind == "change style":
        others = [style for style in styles.STYLES if style != stratum.style]
        return thing, Change(kind, others[(stratum.turn + stratum.turn // _LAYOUTS) % len(others)])
    return thing, Change(kind, getattr(after, _CHANGED[kind]) if kind in _CHANGED else None)


def _companion(rng: np.random.Generator, thing: Thing, before: _Combination, after: _Combination) -> Thing:
    """A second object beside the first, of another word, held out as well wherever the edit takes it."""
    others = [
        other
        for other in _combinations()
        if other.background == before.background
        and other.word not in (before.word, after.word)
        and other._replace(background=after.background) in _combinations()
    ]
    other = others[int(rng.integers(len(others)))]
    return _placed(rng, other, _HALVES[1] if thing.x < 0.5 else _HALVES[0], _BESIDE)


def _placed(
    rng: np.random.Generator, combination: _Combination, centre: tuple[float, float], sizes: tuple[float, float]
) -> Thing:
    return replace(
        _painted(combination.word, combination.look),
        x=_between(rng, *centre),
        y=_between(rng, 0.80, 0.92),  # every place is ground from 0.80 on
        size=_between(rng, *sizes),
        seed=int(rng.integers(1 << 16)),
    )


def _pick(rng: np.random.Generator, options: Sequence[str]) -> str:
    return options[int(rng.integers(len(options)))]


def _between(rng: np.random.Generator, low: float, high: float) -> float:
    return round(float(rng.uniform(low, high)), 3)


def _make(plan: _Plan, size: int) -> BenchTask:
    task = make_task(plan.scene, plan.change, size)
    words = None
    if plan.change.kind in _BLENDED:
        index = plan.change.index
        words = plan.scene.objects[index].word, plan.change.apply(plan.scene).objects[index].word
    facts = vars(task) | {"instruction": plan.change.instruction(plan.scene, plan.phrasing)}
    return BenchTask(**facts, id=plan.id, type_id=plan.type_id, image_path=plan.image_path, blended_words=words)
