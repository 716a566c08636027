"""Parsers: the rules read the whole grammar, the answer format has one reader, a chat model is asked in that format."""

from __future__ import annotations

import itertools

import pytest

from editbook.errors import EditbookError
from editbook.perception import ChatParser, Parsed, RuleParser, load_parser, read_answer
from editbook.perception.parser import format_answer, read_caption
from editbook.pocket import (
    ACCESSORIES,
    BACKGROUNDS,
    COLOURS,
    MATERIALS,
    OBJECTS,
    PHRASINGS,
    STYLES,
    Scene,
    Thing,
    bench,
    sample,
    sample_edit,
)
from editbook.pocket.edits import Change
from editbook.pocket.sprites import sprite

# What people might say, outside of the grammar's templates, of SCENES[key]: written before the rules were tried on it.
SCENES = {
    "cat": Scene("beach", (Thing("cat"),)),
    "red car": Scene("city", (Thing("car", colour="red"),)),
    "crowned dog": Scene("forest", (Thing("dog", accessory="crown"),)),
    "pair": Scene("meadow", (Thing("cat", x=0.25, size=0.4), Thing("apple", x=0.75, size=0.4))),
    "lying bear": Scene("snow", (Thing("bear", pose="lying"),)),
}
PARAPHRASES = [
    ("cat", "Please turn the cat into a fox.", Change("change object", "fox")),
    ("cat", "Could you replace this cat by a dog?", Change("change object", "dog")),
    ("cat", "swap the cat for an owl", Change("change object", "owl")),
    ("cat", "I want a rabbit instead of the cat", Change("change object", "rabbit")),
    ("cat", "a fox instead of the cat", Change("change object", "fox")),
    ("cat", "make it a penguin", Change("change object", "penguin")),
    ("cat", "change the cat to a puppy", Change("change object", "dog")),
    ("cat", "The cat should become a lion", Change("change object", "lion")),
    ("cat", "transform the kitten into a bunny", Change("change object", "rabbit")),
    ("cat", "let the animal be a frog", Change("change object", "frog")),
    ("pair", "exchange the apple for a cookie", Change("change object", "cookie", 1)),
    ("pair", "the apple should be a cake instead", Change("change object", "cake", 1)),
    ("red car", "what if the car were a bike?", Change("change object", "bicycle")),
    ("red car", "Use a bus in place of the car", Change("change object", "bus")),
    ("cat", "get rid of the cat", Change("remove object")),
    ("cat", "erase the cat please", Change("remove object")),
    ("cat", "make the cat disappear", Change("remove object")),
    ("pair", "I don't want the apple any more", Change("remove object", None, 1)),
    ("pair", "Can you take out the cat?", Change("remove object")),
    ("pair", "eat the apple", Change("remove object", None, 1)),
    ("pair", "the picture without the apple", Change("remove object", None, 1)),
    ("cat", "put sunglasses on it", Change("change content", "sunglasses")),
    ("cat", "The cat should wear a hat!", Change("change content", "hat")),
    ("cat", "add a crown", Change("change content", "crown")),
    ("cat", "dress the cat in a cap", Change("change content", "cap")),
    ("cat", "crown the cat", Change("change content", "crown")),
    ("cat", "give it some shades", Change("change content", "sunglasses")),
    ("crowned dog", "take the dog's crown off", Change("change content", None)),
    ("crowned dog", "get rid of that crown", Change("change content", None)),
    ("crowned dog", "the dog should wear nothing on its head", Change("change content", None)),
    ("cat", "make the cat leap", Change("change pose", "jumping")),
    ("cat", "let it jump", Change("change pose", "jumping")),
    ("cat", "flip the cat upside down", Change("change pose", "upside-down")),
    ("cat", "the cat lies on its side", Change("change pose", "lying")),
    ("cat", "have the cat stand on its head", Change("change pose", "upside-down")),
    ("lying bear", "stand the bear up", Change("change pose", "standing")),
    ("lying bear", "wake the bear up so that it stands on its feet", Change("change pose", "standing")),
    ("cat", "the cat is airborne", Change("change pose", "jumping")),
    ("cat", "paint the cat blue", Change("change colour", "blue")),
    ("cat", "change the cat's color to purple", Change("change colour", "purple")),
    ("cat", "I'd like a pink cat", Change("change colour", "pink")),
    ("red car", "make the red car green", Change("change colour", "green")),
    ("red car", "the car should be yellow instead of red", Change("change colour", "yellow")),
    ("red car", "what would it look like in orange?", Change("change colour", "orange")),
    ("cat", "make the cat out of gold", Change("change material", "golden")),
    ("cat", "a cat made of wood", Change("change material", "wooden")),
    ("cat", "carve the cat from stone", Change("change material", "stone")),
    ("cat", "freeze the cat into ice", Change("change material", "ice")),
    ("red car", "turn it into a silver car", Change("change material", "silver")),
    ("cat", "move it to the desert", Change("change background", "desert")),
    ("cat", "put the cat in a forest", Change("change background", "forest")),
    ("cat", "make it winter, with snow", Change("change background", "snow")),
    ("cat", "take the cat to the city", Change("change background", "city")),
    ("cat", "same cat, but on the ocean", Change("change background", "sea")),
    ("red car", "let the sun go down", Change("change background", "sunset")),
    ("red car", "drive the car to the beach", Change("change background", "beach")),
    ("cat", "make this a watercolor", Change("change style", "watercolour")),
    ("cat", "as Van Gogh would have painted it", Change("change style", "van Gogh painting")),
    ("cat", "draw it with a pencil", Change("change style", "pencil sketch")),
    ("cat", "pixelate the picture", Change("change style", "pixel art")),
    ("red car", "I want to see this as a mosaic of little tiles", Change("change style", "mosaic")),
    ("cat", "push the cat a bit to the left", Change("drag", "left")),
    ("red car", "the car should be further right", Change("drag", "right")),
    ("cat", "add a red ball next to the cat", Change("add object", Thing("ball", "red"))),
    ("cat", "there should be an apple as well", Change("add object", Thing("apple"))),
    ("cat", "insert a golden banana", Change("add object", Thing("banana", None, "golden"))),
    ("cat", "the cat needs a friend: a penguin", Change("add object", Thing("penguin"))),
]


def same(found: Change, wanted: Change) -> bool:
    """Equal, but for where a new thing stands."""
    if isinstance(wanted.value, Thing) and isinstance(found.value, Thing):
        kind = (found.value.word, found.value.colour, found.value.material)
        return found.kind == wanted.kind and kind == (wanted.value.word, wanted.value.colour, wanted.value.material)
    return found == wanted


def test_captions_of_the_grammar_are_read_back():
    scenes = [sample(seed) for seed in range(150)] + [Scene("sea"), Scene("snow", (), "mosaic")]
    for scene, phrasing in itertools.product(scenes, range(PHRASINGS)):
        read = read_caption(scene.caption(phrasing))
        assert read is not None, scene.caption(phrasing)
        assert read.caption() == scene.caption()


@pytest.mark.parametrize(
    "text", ["", "a dog", "a photo of a zebra on the beach", "a photo of a jumping house at night"]
)
def test_other_captions_are_not(text):
    assert read_caption(text) is None


def test_the_whole_instruction_grammar_is_read():
    wrong, asked = [], 0
    for (k, word), phrasing in itertools.product(enumerate(OBJECTS), range(3)):
        row, others = sprite(word), [other for other in OBJECTS[k % 7 :: 7] if other != word]
        scene = Scene("room", (Thing(word),))
        changes = [Change("remove object"), Change("drag", "left"), Change("drag", "right")]
        changes += [Change("change object", other) for other in others]
        changes += [Change("change colour", colour) for colour in COLOURS]
        changes += [Change("change material", material) for material in MATERIALS]
        changes += [Change("change pose", pose) for pose in row.poses]
        changes += [Change("change content", worn) for worn in ACCESSORIES if row.eyes]
        changes += [Change("change background", place) for place in BACKGROUNDS]
        changes += [Change("change style", style) for style in STYLES]
        changes += [Change("add object", Thing(other)) for other in others]
        changes += [Change("add object", Thing(word, colour)) for colour in COLOURS]
        changes += [Change("add object", Thing("fox", None, material)) for material in MATERIALS]
        for change in changes:
            instruction = change.instruction(scene, phrasing)
            asked += 1
            if not same(RuleParser().change(instruction, scene)[0], change):
                wrong.append(instruction)
    assert not wrong, f"{len(wrong)} of {asked}: {wrong[:10]}"


def test_the_training_edits_are_read():
    for seed in range(400):
        scene, after, instruction = sample_edit(seed)
        words = [thing.word for thing in scene.objects]
        worn = [thing.accessory for thing in scene.objects if thing.accessory]
        if len(set(words)) < len(words) or len(set(worn)) < len(worn):
            continue  # which one is meant, nobody can say
        target = RuleParser().parse(instruction, scene.caption()).target
        assert sorted(target.split()) == sorted(after.caption().split()), instruction


def test_pocketbench_is_parsed_into_its_own_prompts_but_for_the_side_of_what_is_added():
    parser, right, tasks = load_parser(), 0, bench()
    for task in tasks:
        parsed = parser.parse(task.instruction, task.source_prompt)
        assert parsed.source == task.source_prompt
        if task.edit_type == "add object":
            right += parsed.target == task.target_prompt
            assert sorted(parsed.target.split()) == sorted(task.target_prompt.split())
        else:
            assert parsed.target == task.target_prompt, task.instruction
    added = sum(task.edit_type == "add object" for task in tasks)
    assert 0.4 < right / added < 0.7, "nobody says on which side"


def test_most_free_phrasings_are_read_and_none_crashes():
    assert len(PARAPHRASES) >= 60
    right, refused = [], []
    for key, instruction, change in PARAPHRASES:
        try:
            found = RuleParser().change(instruction, SCENES[key])[0]
        except EditbookError:
            refused.append(instruction)
            continue
        if same(found, change):
            right.append(instruction)
    misread = [said for _, said, _ in PARAPHRASES if said not in right + refused]
    print(f"{len(right)} of {len(PARAPHRASES)} read, refused: {refused}, misread: {misread}")
    assert 0.75 <= len(right) / len(PARAPHRASES) < 1, "no rules read everything"


@pytest.mark.parametrize("instruction", ["make it spooky", "the king of animals", "", "remove the zebra", "move it"])
def test_what_no_rule_reads_is_told(instruction):
    with pytest.raises(EditbookError, match="cannot read"):
        RuleParser().parse(instruction, "a photo of a cat and a dog on the beach")


def test_the_object_has_to_be_in_the_caption_and_it_to_be_one():
    two = "a photo of a cat and a dog on the beach"
    with pytest.raises(EditbookError, match="there is no owl in the caption"):
        RuleParser().parse("remove the owl", two)
    with pytest.raises(EditbookError, match="which object"):
        RuleParser().parse("paint it red", two)


def test_a_third_object_is_refused_with_the_caption_that_it_was_read_from():
    two = "a photo of a cat and a dog on the beach"
    for instruction in ("add an owl", "put an owl next to the cat", "place a red car next to it"):
        with pytest.raises(EditbookError, match=r"'a photo of a cat and a dog on the beach' .*at most 2 objects"):
            RuleParser().parse(instruction, two)


def test_what_the_world_cannot_hold_is_refused_with_the_instruction_and_the_reason():
    with pytest.raises(EditbookError, match=r"cannot read 'make the house jump'.*jump"):
        RuleParser().parse("make the house jump", "a photo of a house on the beach")


@pytest.mark.parametrize(
    ("instruction", "caption", "parsed"),
    [
        ("turn the cat into a fox", "", ("cat", "a photo of a cat", "a photo of a fox")),
        ("turn the cat into a fox", None, ("cat", "a photo of a cat", "a photo of a fox")),
        ("remove the cat", "", ("cat", "a photo of a cat", "a photo of an empty scene")),
        ("make the cat wear a hat", "", ("cat", "a photo of a cat", "a photo of a cat wearing a hat")),
        ("show it at night", "", ("background", "a photo", "a photo at night")),
        ("add an apple", "", ("picture", "a photo of an empty scene", "a photo of an apple")),
        ("turn the cat into an owl", "two people and a cat", ("cat", "two people and a cat", "two people and an owl")),
        ("make the cat red", "my white cat sleeps", ("cat", "my white cat sleeps", "my red cat sleeps")),
        (
            "turn the jumping cat into a house",
            "a photo of a jumping cat on the beach",
            ("cat", "a photo of a jumping cat on the beach", "a photo of a house on the beach"),
        ),
    ],
)
def test_with_no_caption_or_a_free_one(instruction, caption, parsed):
    assert RuleParser().parse(instruction, caption) == parsed


def test_a_free_caption_without_the_object_is_refused():
    with pytest.raises(EditbookError, match="'cat' does not stand in the caption"):
        RuleParser().parse("make the cat red", "two people on a bench")


@pytest.mark.parametrize(
    "answer",
    [
        "Segmentation prompt: cat Editing prompt 1: a cat Editing prompt 2: a fox",
        'Segmentation prompt: "cat". Editing prompt 1: "a cat". Editing prompt 2: "a fox".',
        "Segmentation prompt: cat\nEditing prompt 1: a cat\nEditing prompt 2: a fox\n",
        "Sure!\nsegmentation prompt: 'cat',\n editing prompt 1:\n a\n cat,\n editing prompt 2: a fox.\n\nHave fun.",
        "**Segmentation prompt**: cat. **Editing prompt 1**: a cat. **Editing prompt 2**: a fox",
    ],
)
def test_one_reader_for_all_ways_to_write_the_answer(answer):
    assert read_answer(answer) == ("cat", "a cat", "a fox")


def test_several_segments_stay_together_and_formatting_is_undone():
    parsed = Parsed("box, phone", "a photo of a box, and a phone on St. John's table", "a photo of an empty table")
    assert read_answer(format_answer(parsed)) == parsed


@pytest.mark.parametrize("field", ["Segmentation prompt", "Editing prompt 1", "Editing prompt 2"])
def test_a_missing_or_empty_field_is_named(field):
    answer = format_answer(Parsed("cat", "a cat", "a fox"))
    with pytest.raises(EditbookError, match=f"no '{field}'"):
        read_answer(answer.replace(field, "Something else"))
    start = answer.index(field) + len(field) + 1
    with pytest.raises(EditbookError, match="has no 'Editing prompt 2'"):
        read_answer(answer[: answer.index("Editing prompt 2") + len("Editing prompt 2:")])
    assert start < len(answer)


def test_a_chat_model_is_asked_with_examples_and_its_answer_goes_through_the_same_reader():
    asked = []

    def generate(chat):
        asked.append(chat)
        return "Segmentation prompt: dog\nEditing prompt 1: a dog\nEditing prompt 2: a wolf"

    parser = ChatParser(generate, "echo")
    assert parser.parse("turn the dog into a wolf", "a dog") == ("dog", "a dog", "a wolf")
    assert [turn["role"] for turn in asked[0]] == ["system", *["user", "assistant"] * 3, "user"]
    assert all(read_answer(turn["content"]) for turn in asked[0] if turn["role"] == "assistant")
    assert "turn the dog into a wolf" in asked[0][-1]["content"]
    assert "a dog" in asked[0][-1]["content"]
    assert "Description" not in parser.chat("turn the dog into a wolf")[-1]["content"]


def test_loading_by_name():
    assert isinstance(load_parser(), RuleParser)
    assert "not a language model" in load_parser().name
    with pytest.raises(EditbookError, match="a chat model"):
        load_parser("no/such-model-here")
