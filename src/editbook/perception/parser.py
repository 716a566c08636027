"""From an instruction to what to segment and two prompts: rules for the pocket world, or a local chat model."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from ..errors import EditbookError
from ..pocket import ACCESSORIES, COLOURS, MATERIALS, OBJECTS, Scene, Thing, grammar
from ..pocket.edits import Change
from ..pocket.scene import MAX_OBJECTS
from ..pocket.sprites import sprite
from .base import loaded


class Parsed(NamedTuple):
    """What an instruction means.

    Args:
        segment: What to look for in the picture, e.g. "cat"; several with a comma between them.
        source: Prompt of the picture as it is.
        target: Prompt of the picture as it shall be.
    """

    segment: str
    source: str
    target: str


class Parser(Protocol):
    """From an instruction to three texts."""

    name: str

    def parse(self, instruction: str, caption: str | None = "") -> Parsed:
        """Take an instruction apart.

        Args:
            instruction: What to do, e.g. "turn the cat into a fox".
            caption: What the picture shows; both prompts are rewritings of it. "" or None: nobody knows.

        Raises:
            EditbookError: It cannot be understood.
        """
        ...


# The answer format of InstructEdit: one for language models and rules, read in one place.
_FIELDS = ("Segmentation prompt", "Editing prompt 1", "Editing prompt 2")


def format_answer(parsed: Parsed) -> str:
    """The three texts in InstructEdit's one line, which `read_answer` takes apart again."""
    return " ".join(f'{field}: "{text}".' for field, text in zip(_FIELDS, parsed, strict=True))


def read_answer(answer: str) -> Parsed:
    """The three texts of "Segmentation prompt: ... Editing prompt 1: ... Editing prompt 2: ...".

    On one line or several, with or without quotes and dots, in any case; what comes before is ignored, and so is
    what comes after an empty line.

    Raises:
        EditbookError: A field is missing or empty, which is named; usually the answer was cut off.
    """
    texts = []
    for field in _FIELDS:
        name = r"\s+".join(map(re.escape, field.split()))
        others = "|".join(r"\s+".join(map(re.escape, other.split())) for other in _FIELDS)
        found = re.search(rf"{name}\W*?:(.*?)(?=\W*(?:{others})\W*?:|\n\s*\n|\Z)", answer, re.IGNORECASE | re.DOTALL)
        text = " ".join(found[1].split()).strip(" .,;\"'`*“”‘’") if found else ""
        if not text:
            shown = answer if len(answer) <= 200 else answer[:200] + "..."
            raise EditbookError(f"The parser's answer has no {field!r}: {shown!r}. It may have been cut off.")
        texts.append(text)
    return Parsed(*texts)


# What people say instead of the grammar's words. Longer ones come first where one begins with the other.
_SYNONYMS = {
    "colour": {"color": "colour"},
    "look": {"gold": "golden", "wood": "wooden", "icy": "ice", "frozen": "ice", "rock": "stone", "violet": "purple"},
    "word": {
        "kitten": "cat", "kitty": "cat", "puppy": "dog", "bunny": "rabbit", "bike": "bicycle", "ship": "boat",
        "lorry": "truck", "automobile": "car", "burger": "hamburger", "doughnut": "donut", "piglet": "pig",
        "pony": "horse", "hound": "dog", "android": "robot",
    },
    "accessory": {"glasses": "sunglasses", "shades": "sunglasses", "ribbon": "bow"},
    "pose": {
        "jumping": "jumping", "jump": "jumping", "leap": "jumping", "leaping": "jumping", "hop": "jumping",
        "lying": "lying", "lie": "lying", "lay": "lying", "on its side": "lying",
        "upside-down": "upside-down", "upside down": "upside-down", "on its head": "upside-down",
        "standing": "standing", "stand": "standing", "upright": "standing", "on its feet": "standing",
    },
    "place": {
        "beach": "beach", "seaside": "beach", "forest": "forest", "woods": "forest", "night": "night",
        "nighttime": "night", "snow": "snow", "snowy": "snow", "winter": "snow", "desert": "desert", "sea": "sea",
        "ocean": "sea", "room": "room", "indoors": "room", "inside a house": "room", "meadow": "meadow",
        "field": "meadow", "grass": "meadow", "city": "city", "town": "city", "sunset": "sunset", "dusk": "sunset",
    },
    "style": {
        "pencil sketch": "pencil sketch", "pencil drawing": "pencil sketch", "sketch": "pencil sketch",
        "pencil": "pencil sketch", "van gogh": "van Gogh painting", "watercolour": "watercolour",
        "watercolor": "watercolour", "aquarelle": "watercolour", "pixel art": "pixel art", "pixelated": "pixel art",
        "mosaic": "mosaic", "photo": "photo", "photograph": "photo",
    },
}  # fmt: skip
_VOCABULARY: dict[str, dict[str, str]] = {
    "style": _SYNONYMS["style"],
    "word": {word: word for word in OBJECTS} | _SYNONYMS["word"],
    "accessory": {word: word for word in ACCESSORIES} | _SYNONYMS["accessory"],
    "look": {word: word for word in (*COLOURS, *MATERIALS)} | _SYNONYMS["look"],
    "pose": _SYNONYMS["pose"],
    "place": _SYNONYMS["place"],
    "side": {"left": "left", "right": "right"},
}
_KIND_OF = {said: (kind, meant) for kind, words in _VOCABULARY.items() for said, meant in words.items()}
_KNOWN = re.compile(rf"\b({'|'.join(sorted(map(re.escape, _KIND_OF), key=len, reverse=True))})\b")
_REMOVE = re.compile(
    r"\b(remove|delete|erase|take\b.*\b(off|away|out)|get rid of|drop|without|eliminate|cut out|wipe out|disappear|"
    r"vanish|undress|no more|should be gone|lose the|wearing no)"
)
_ADD = re.compile(r"\b(add|put|place|insert|include|draw|paint|there (should|must) be|i want|give|let there be|set)\b")
_DRAG = re.compile(r"\b(move|drag|shift|push|pull|slide|nudge)\b")
_NEW = re.compile(r"add (.+)|put (.+) into the picture|place (.+) next to it")
_REVERSED = re.compile(r"\binstead of\b|\bin place of\b|\bwhere the\b")


class _Said(NamedTuple):
    kind: str
    value: str
    at: int


def _words(instruction: str) -> list[_Said]:
    return [_Said(*_KIND_OF[found[1]], found.start()) for found in _KNOWN.finditer(instruction)]


class RuleParser:
    """Rules for the pocket grammar, not a language model: stands in for InstructEdit's gpt-3.5-turbo.

    It reads every instruction that the book's grammar makes, and other sentences as far as they use the pocket world's
    words or a few synonyms, by looking for those and for verbs of removing, adding and moving. Where the caption is one
    of the grammar's, the change is made to the scene that it describes, and what comes out is the caption of that, word
    for word as a task's own prompts. In any other caption the object's name is replaced.

    It cannot read what uses no known word ("make it spooky"), says two things at once, or asks for knowledge ("the king
    of animals"): that is what a language model is for.

    What is to be segmented is the object that the instruction names; of an addition, what is there already and gets
    something, as in the paper, though the new thing is elsewhere; of a background or style, "background" and "picture",
    which a detector of objects will not find. A thing that is added stands to the right of what is there: an
    instruction does not say where.
    """

    name = "rules for the pocket grammar, not a language model"

    def parse(self, instruction: str, caption: str | None = "") -> Parsed:
        """See `Parser.parse`."""
        return read_answer(self.answer(instruction, caption))

    def answer(self, instruction: str, caption: str | None = "") -> str:
        """The same as a line of text, in the format that a language model is asked for."""
        scene = read_caption(caption) if caption else None
        change, word = self.change(instruction, scene)
        segment = {"change background": "background", "change style": "picture"}.get(change.kind, word)
        if scene is not None:
            try:
                source, target = caption or "", _changed(scene, change).caption()
            except EditbookError as error:  # a third object, a jumping house
                why = f"{caption!r} would become what the pocket world does not hold ({str(error).rstrip('.')})"
                raise self._lost(instruction, why) from error
        elif caption:
            source, target = caption, _in_text(caption, change, word)
        else:
            source, target = _without_caption(change, word)
        if not segment:  # something is added to who knows what
            segment = "picture"
        return format_answer(Parsed(segment, source, target))

    def change(self, instruction: str, scene: Scene | None = None) -> tuple[Change, str]:
        """What is to be done, and the word of the thing that is named for it ("" if none).

        Args:
            instruction: What to do.
            scene: What there is: says what "it" is, and which of two objects is meant.

        Raises:
            EditbookError: No rule fits, or the scene has no such thing.
        """
        text = " ".join(re.sub(r"[,.!?;:\"']", " ", instruction.lower()).split())
        text = text.replace("snow man", "snowman").replace("sun glasses", "sunglasses")
        said = _words(text)
        of = {kind: [item for item in said if item.kind == kind] for kind in _VOCABULARY}
        words, worn, looks = of["word"], of["accessory"], of["look"]
        there = [thing.word for thing in scene.objects] if scene else []

        def on(item: _Said | None) -> tuple[int, str]:
            """Which object of the scene is meant; the only one if none is named."""
            if item is None and len(there) == 1:
                return 0, there[0]
            if item is None and scene is None:
                return 0, ""
            if item is None:
                raise self._lost(instruction, "it does not say which object is meant")
            if scene is None:
                return 0, item.value
            if item.value not in there:
                raise self._lost(instruction, f"there is no {item.value} in the caption")
            return there.index(item.value), item.value

        adds = _NEW.fullmatch(" ".join(instruction.split()))
        if adds and (
            thing := read_thing(adds[1] or adds[2] or adds[3], 0.95)
        ):  # may have a pose and a dress of its own
            return Change("add object", replace(thing, size=0.38)), there[0] if there else ""
        if of["style"]:
            return Change("change style", of["style"][-1].value), ""
        if _REMOVE.search(text):
            if worn:
                wearing = [thing.word for thing in scene.objects if thing.accessory == worn[0].value] if scene else []
                index, _ = (there.index(wearing[0]), "") if len(wearing) == 1 else on(words[0] if words else None)
                return Change("change content", None, index), worn[0].value
            if words or len(there) == 1:
                index, word = on(words[0] if words else None)
                return Change("remove object", None, index), word
        if _DRAG.search(text) and of["side"]:
            index, word = on(words[0] if words else None)
            return Change("drag", of["side"][-1].value, index), word
        if worn:
            index, word = on(words[0] if words else None)
            return Change("change content", worn[-1].value, index), word
        if len(words) >= 2 or (words and scene and words[0].value not in there):
            old, new = words[0], words[-1]
            if (
                _ADD.search(text)
                and not re.search(r"\breplac|\bswap|\bexchange|\btrade", text)
                and not _REVERSED.search(text)
            ):
                return self._added(words[0], looks), there[0] if len(there) == 1 else words[-1].value * (len(words) > 1)
            if _REVERSED.search(text) or (len(words) >= 2 and there and new.value in there and old.value not in there):
                old, new = new, old
            if len(words) == 1:
                index, word = on(None)
                return Change("change object", new.value, index), word
            index, word = on(old)
            return Change("change object", new.value, index), word
        named = words[0] if words else None
        if named and _ADD.search(text) and not (of["pose"] or of["place"]) and scene is None:
            return self._added(named, looks), ""
        if named and re.match(r"(add|insert|include)\b", text):
            return self._added(named, looks), there[0] if there else ""
        if looks and not of["place"]:
            index, word = on(named)
            look = looks[-1].value
            return Change("change colour" if look in COLOURS else "change material", look, index), word
        if of["place"]:
            return Change("change background", of["place"][-1].value), ""
        if of["pose"]:
            index, word = on(named)
            poses = [item.value for item in of["pose"]]
            # "stand upside-down", "jump up and stand": the rarer pose is what is meant.
            return Change("change pose", next((pose for pose in poses if pose != "standing"), "standing"), index), word
        raise self._lost(instruction, "no rule fits")

    @staticmethod
    def _added(item: _Said, looks: list[_Said]) -> Change:
        look = next((one.value for one in looks if one.at < item.at), None)
        look = look or next((one.value for one in looks), None)
        is_colour = look in COLOURS
        thing = Thing(item.value, look if is_colour else None, None if is_colour else look, x=0.95, size=0.38)
        return Change("add object", thing)

    def _lost(self, instruction: str, why: str) -> EditbookError:
        return EditbookError(
            f'The parser ({self.name}) cannot read {instruction!r}: {why}. Say it like "turn the cat into a fox", '
            "give source and target prompt yourself, or take a chat model as parser."
        )


_PLACE_OF = {place: name for name, place in grammar.PLACES.items()}
_PICTURE_OF = {picture: name for name, picture in grammar._PICTURES.items()}
_STYLE_OF = {style: name for name, style in grammar._AS_STYLE.items()}


def read_caption(text: str) -> Scene | None:
    """The scene that a caption of the grammar describes, in any of its phrasings; None if it is no such caption."""
    style, rest = "photo", text.strip().rstrip(".")
    for said, name in _STYLE_OF.items():
        if name != "photo" and rest.endswith(said):
            style, rest = name, rest[: -len(said)].rstrip(" ,")
    for picture, name in [*_PICTURE_OF.items(), ("a picture", "photo")]:
        for link in (" of ", " showing "):
            if rest.startswith(picture + link):
                style, rest = name, rest[len(picture + link) :]
    for said, background in _PLACE_OF.items():
        if rest.endswith(" " + said):
            objects = rest[: -len(said) - 1]
        elif rest.startswith(said + " there is "):
            objects = rest[len(said + " there is ") :]
        else:
            continue
        if objects == "an empty scene":
            return Scene(background, (), style)
        things = [read_thing(part, 0.25 + 0.5 * k) for k, part in enumerate(objects.split(" and "))]
        if len(things) <= MAX_OBJECTS and all(things):
            return Scene(background, tuple(thing for thing in things if thing), style)
    return None


_THING = re.compile(
    r"(?:an?) (?:(?P<pose>jumping|upside-down) )?"
    rf"(?:(?:(?P<colour>{'|'.join(COLOURS)})|(?P<material>{'|'.join(MATERIALS)})) )?"
    rf"(?P<word>{'|'.join(OBJECTS)})(?P<lying> lying on its side)?(?: facing (?P<facing>left|right))?"
    rf"(?: wearing (?:an? )?(?P<accessory>{'|'.join(ACCESSORIES)}))?"
)


def read_thing(phrase: str, x: float = 0.5) -> Thing | None:
    """The object that a noun phrase of the grammar describes; None if it is no such phrase."""
    found = _THING.fullmatch(phrase)
    if not found:
        return None
    said = found.groupdict()
    pose = "lying" if said["lying"] else said["pose"] or "standing"
    try:
        return Thing(said["word"], said["colour"], said["material"], pose, said["facing"], said["accessory"], x=x)
    except EditbookError:  # "a jumping house"
        return None


def _changed(scene: Scene, change: Change) -> Scene:
    """The scene after the change; a new object that cannot take the old one's pose or dress goes without."""
    if change.kind == "change object" and change.index < len(scene.objects):
        row, thing = sprite(str(change.value)), scene.objects[change.index]
        pose = thing.pose if thing.pose in row.poses else "standing"
        bare = replace(thing, pose=pose, accessory=thing.accessory if row.eyes else None)
        scene = replace(scene, objects=tuple(bare if one is thing else one for one in scene.objects))
    return change.apply(scene)


def _phrase(word: str, change: Change) -> str:
    """What the object is called after the change."""
    plain = Scene("room", (Thing(word),))
    if change.kind == "drag":
        return grammar.article(word)
    return grammar.noun_phrase(_changed(plain, replace(change, index=0)).objects[0])


def _in_text(caption: str, change: Change, word: str) -> str:
    """A caption that is not the grammar's, rewritten: the object's name, with article and look, becomes another."""
    if change.kind == "add object" and isinstance(change.value, Thing):
        return f"{caption} and {grammar.noun_phrase(change.value)}"
    if change.kind == "change background":
        return f"{caption} {grammar.PLACES[str(change.value)]}"
    if change.kind == "change style":
        return f"{caption} {grammar._AS_STYLE[str(change.value)]}"
    if change.kind == "remove object":
        return "an empty scene"
    if change.kind == "change content" and change.value is None:
        rest = re.sub(rf"\s*\b(wearing|with|in)\s+(an? |the )?{word}\b", "", caption)
        if rest != caption:
            return rest
    elif word:
        look = rf"(?:(?:{'|'.join((*COLOURS, *MATERIALS))})\s+)?" if change.kind != "change object" else ""
        name = rf"\b(?:an?\s+|the\s+)?{look}{word}\b"
        if found := re.search(name, caption):
            phrase = _phrase(word, change)
            # "my white cat" has no article, and keeps its own.
            phrase = phrase if re.match(r"(an?|the)\s", found[0]) else phrase.split(" ", 1)[1]
            return caption[: found.start()] + phrase + caption[found.end() :]
    raise EditbookError(f"{word or 'What is meant'!r} does not stand in the caption {caption!r}: give a target prompt.")


def _without_caption(change: Change, word: str) -> tuple[str, str]:
    """Two prompts from the instruction alone: they say nothing of the rest of the picture."""
    if change.kind == "change style":
        return "a picture", grammar._PICTURES[str(change.value)]
    if change.kind == "change background":
        return "a photo", f"a photo {grammar.PLACES[str(change.value)]}"
    if change.kind == "add object" and isinstance(change.value, Thing):
        new = grammar.noun_phrase(change.value)
        before = grammar.article(word) if word else "an empty scene"
        return f"a photo of {before}", f"a photo of {before} and {new}" if word else f"a photo of {new}"
    if not word:
        raise EditbookError("The instruction does not say which object is meant: name it, or give a caption.")
    if change.kind == "remove object":
        return f"a photo of {grammar.article(word)}", "a photo of an empty scene"
    if change.kind == "change content" and change.value is None:
        return f"a photo of {grammar.article(word)}", "a photo"
    return f"a photo of {grammar.article(word)}", f"a photo of {_phrase(word, change)}"


_ROLE = (
    "You prepare edits of pictures. From an instruction you find what has to be segmented in the picture, a prompt "
    "that describes the picture before the edit, and one that describes it after. If a description of the picture is "
    "given, both prompts are rewritings of it that differ only in what changes; do not write 'instead of'. Answer with "
    "one line in exactly this format and nothing else:\n"
    'Segmentation prompt: "...". Editing prompt 1: "...". Editing prompt 2: "...".'
)
_EXAMPLES = (
    ("Turn the horse into a zebra.", "", Parsed("horse", "a photo of a horse", "a photo of a zebra")),
    (
        "Give the woman a straw hat.",
        "a photo of a woman on a balcony",
        Parsed("woman", "a photo of a woman on a balcony", "a photo of a woman with a straw hat on a balcony"),
    ),
    (
        "Remove the cup and the book.",
        "a photo of a cup and a book on a desk",
        Parsed("cup, book", "a photo of a cup and a book on a desk", "a photo of an empty desk"),
    ),
)


def _question(instruction: str, caption: str | None) -> str:
    return f"Instruction: {instruction}" + (f"\nDescription of the picture: {caption}" if caption else "")


class ChatParser:
    """A local chat model, as InstructEdit asks gpt-3.5-turbo: three worked examples, a fixed format for the answer.

    Greedy where the paper samples (temperature 0.6). The paper's limit of 40 tokens cuts off the second prompt where
    captions are long; nothing is sent anywhere.

    Args:
        generate: From a chat, a list of {"role": ..., "content": ...}, to the answer.
        name: What it is, for pages.
    """

    def __init__(self, generate: Callable[[list[dict[str, str]]], str], name: str) -> None:
        self.generate, self.name = generate, name

    @classmethod
    def load(cls, name: str | Path, device: str = "cpu", tokens: int = 160) -> ChatParser:
        """A transformers text-generation model from a folder or the hub's files on this machine."""

        def load() -> Any:
            from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

            model = AutoModelForCausalLM.from_pretrained(name, local_files_only=True).to(device)
            tokenizer = AutoTokenizer.from_pretrained(name, local_files_only=True)
            return pipeline("text-generation", model=model, tokenizer=tokenizer)

        pipe = loaded("a chat model", name, load)

        def generate(chat: list[dict[str, str]]) -> str:
            made = pipe(chat, max_new_tokens=tokens, do_sample=False, return_full_text=False)
            return str(made[0]["generated_text"])

        return cls(generate, f"chat model {name}")

    def chat(self, instruction: str, caption: str | None = "") -> list[dict[str, str]]:
        """What the model is asked: its role, the examples, the question."""
        turns = [{"role": "system", "content": _ROLE}]
        for example, shown, parsed in _EXAMPLES:
            turns.append({"role": "user", "content": _question(example, shown)})
            turns.append({"role": "assistant", "content": format_answer(parsed)})
        return [*turns, {"role": "user", "content": _question(instruction, caption)}]

    def parse(self, instruction: str, caption: str | None = "") -> Parsed:
        """See `Parser.parse`."""
        return read_answer(self.generate(self.chat(instruction, caption)))


@cache
def load_parser(name: str | Path = "pocket", device: str = "cpu") -> Parser:
    """A parser by name.

    Args:
        name: "pocket", the rules; or a folder, or the hub id of a chat model that was downloaded before.
        device: Where the chat model computes.

    Raises:
        EditbookError: There is none of that name.
    """
    return RuleParser() if name == "pocket" else ChatParser.load(name, device)
