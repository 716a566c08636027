"""One grammar for captions, editing instructions and quality phrases: correct English, several phrasings each."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import EditbookError

if TYPE_CHECKING:
    from .scene import Scene, Thing

PLACES = {
    "beach": "on the beach",
    "forest": "in the forest",
    "night": "at night",
    "snow": "in the snow",
    "desert": "in the desert",
    "sea": "on the sea",
    "room": "in the room",
    "meadow": "in the meadow",
    "city": "in the city",
    "sunset": "at sunset",
}
_PICTURES = {
    "photo": "a photo",
    "pencil sketch": "a pencil sketch",
    "van Gogh painting": "a van Gogh painting",
    "watercolour": "a watercolour",
    "pixel art": "a pixel art picture",
    "mosaic": "a mosaic",
}
_AS_STYLE = {
    "photo": "as a photo",
    "pencil sketch": "in the style of a pencil sketch",
    "van Gogh painting": "in the style of van Gogh",
    "watercolour": "in the style of a watercolour",
    "pixel art": "in the style of pixel art",
    "mosaic": "in the style of a mosaic",
}
PHRASINGS = 4
RATINGS = ("one", "two", "three", "four", "five")
QUALITIES = tuple(f"image quality is {rating} out of five" for rating in RATINGS)


def article(phrase: str) -> str:
    """The phrase with "a" or "an" before it ("sunglasses" is a plural and takes none)."""
    if phrase.startswith("sunglasses"):
        return phrase
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def noun_phrase(thing: Thing) -> str:
    """The object with everything that is said of it, e.g. "a jumping golden dog wearing a crown"."""
    before = [thing.pose] if thing.pose in ("jumping", "upside-down") else []
    before += [word for word in (thing.colour, thing.material) if word]
    after = []
    if thing.pose == "lying":
        after.append("lying on its side")
    if thing.facing:
        after.append(f"facing {thing.facing}")
    if thing.accessory:
        after.append(f"wearing {article(thing.accessory)}")
    return article(" ".join([*before, thing.word, *after]))


def caption(scene: Scene, phrasing: int = 0) -> str:
    """The scene in words. Phrasing 0 is canonical: "a photo of a red car on the beach"."""
    objects = " and ".join(noun_phrase(thing) for thing in scene.objects)
    place, photo = PLACES[scene.background], scene.style == "photo"
    if not objects:
        objects = "an empty scene"
    if phrasing == 0:
        return f"{_PICTURES[scene.style]} of {objects} {place}"
    if phrasing == 1:
        return f"{objects} {place}" + ("" if photo else f" {_AS_STYLE[scene.style]}")
    if phrasing == 2:
        return f"{place} there is {objects}" + ("" if photo else f", {_AS_STYLE[scene.style]}")
    if phrasing == 3:
        return f"{article('picture') if photo else _PICTURES[scene.style]} showing {objects} {place}"
    raise EditbookError(f"phrasing must be 0 to {PHRASINGS - 1}, got {phrasing!r}.")


_INSTRUCTIONS: dict[str, tuple[str, ...]] = {
    "change object": (
        "turn the {word} into {a_value}",
        "replace the {word} with {a_value}",
        "make the {word} {a_value}",
    ),
    "add object": ("add {a_value}", "put {a_value} into the picture", "place {a_value} next to it"),
    "remove object": ("remove the {word}", "delete the {word}", "take the {word} away"),
    "change content": ("put {a_value} on the {word}", "make the {word} wear {a_value}", "give the {word} {a_value}"),
    "change pose": ("make the {word} {doing}", "let the {word} be {value}", "change the {word} so that it is {value}"),
    "change colour": ("make the {word} {value}", "colour the {word} {value}", "turn the {word} {value}"),
    "change material": (
        "make the {word} {value}",
        "turn the {word} into {a_value} one",
        "make the {word} look {value}",
    ),
    "change background": ("show it {place}", "change the background so that it is {place}", "let it be {place}"),
    "change style": ("turn it into {picture}", "make it look like {picture}", "show it {style}"),
    "drag": ("move the {word} to the {value}", "drag the {word} to the {value}", "shift the {word} to the {value}"),
}
EDIT_TYPES = tuple(_INSTRUCTIONS)
_DOING = {
    "standing": "stand",
    "jumping": "jump",
    "lying": "lie on its side",
    "upside-down": "stand upside-down",
}


def instruction(kind: str, word: str, value: str, phrasing: int = 0) -> str:
    """An editing instruction, e.g. "turn the cat into a fox".

    Args:
        kind: One of `EDIT_TYPES`.
        word: The object concerned; "" for background and style.
        value: The new word, colour, pose, place, style, or the added object's noun phrase without its article.
        phrasing: 0, 1 or 2.

    Raises:
        EditbookError: If there is no such kind or phrasing.
    """
    if kind not in _INSTRUCTIONS:
        raise EditbookError(f"There is no edit type {kind!r}; the types are {', '.join(_INSTRUCTIONS)}.")
    if phrasing not in range(len(_INSTRUCTIONS[kind])):
        raise EditbookError(f"phrasing must be 0 to {len(_INSTRUCTIONS[kind]) - 1}, got {phrasing!r}.")
    return _INSTRUCTIONS[kind][phrasing].format(
        word=word,
        value="lying on its side" if value == "lying" else value,
        a_value=article(value) if value else "",
        doing=_DOING.get(value, value),
        place=PLACES.get(value, value),
        picture=_PICTURES.get(value, value),
        style=_AS_STYLE.get(value, value),
    )
