"""The reader: right answers, masked reading, files. How well the trained one reads is a matter of the report."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from editbook.errors import EditbookError
from editbook.perception.reader import HEADS, SCENE_HEADS, Reader, ReaderNetwork, ReadObject, load_reader
from editbook.pocket import STYLES, Scene, Thing
from editbook.pocket.distribution import is_held_out
from editbook.training.reader import LabelledStream, draw, labels, lesson, measure_reader, reading_loss, save_reader

SCENE = Scene("room", (Thing("cat", colour="red", x=0.3, size=0.4), Thing("apple", x=0.7, size=0.4)), "mosaic")


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return ReaderNetwork()


def test_labels_are_the_scene_in_indices():
    right = labels(SCENE)
    assert [HEADS["word"][k] for k in right["word"]] == ["cat", "apple"]
    assert [HEADS["look"][k] for k in right["look"]] == ["red", "own"]
    assert SCENE_HEADS["background"][right["background"]] == "room"
    assert SCENE_HEADS["style"][right["style"]] == "mosaic"


def test_what_cannot_be_seen_is_not_asked():
    right = labels(replace(SCENE, objects=(Thing("apple"),)))
    assert HEADS["word"][right["word"][1]] == "none"
    assert right["pose"][1] == right["look"][1] == right["accessory"][1] == -100
    assert right["facing"][0] == -100, "an apple has no front"
    assert (labels(replace(SCENE, style="pencil sketch"))["look"] == -100).all(), "a sketch has no colours"


def test_lessons_are_training_scenes_and_never_held_out():
    lessons = [lesson(number) for number in range(300)]
    assert not any(is_held_out(scene) for scene in lessons)
    assert {scene.style for scene in lessons} == set(STYLES)
    assert sum(len(scene.objects) == 2 for scene in lessons) > 90


def test_perfect_answers_cost_nothing_and_wrong_ones_do():
    pairs = torch.from_numpy(draw(SCENE)).permute(0, 3, 1, 2).float() / 255
    masks = (pairs[1, :2] > 0.5).float()[None]
    right = {name: torch.from_numpy(answer)[None] for name, answer in labels(SCENE).items()}
    answers = {"masks": torch.cat([1 - masks.sum(1, keepdim=True), masks], 1) * 50}
    for name, answer in right.items():
        options = {**HEADS, **SCENE_HEADS}[name]
        answers[name] = torch.nn.functional.one_hot(answer.clamp(min=0), len(options)) * 50.0
    assert reading_loss(answers, right, masks) < 1e-6
    answers["word"] = -answers["word"]
    assert reading_loss(answers, right, masks) > 10


def test_objects_are_read_under_their_own_masks(network):
    """Exchanging the masks exchanges the answers: nothing but the mask says which object is meant."""
    x = torch.from_numpy(SCENE.array()).permute(2, 0, 1).float()[None] / 127.5 - 1
    masks = torch.from_numpy(np.stack(SCENE.masks()))[None]
    with torch.no_grad():
        one, other = network(x, masks), network(x, masks.flip(1))
    for name in HEADS:
        torch.testing.assert_close(one[name], other[name].flip(1))
    torch.testing.assert_close(one["background"], other["background"])


def test_a_stream_pairs_pictures_with_their_labels():
    stream = LabelledStream(8, 4, pool=8)
    slots = torch.arange(8)
    pairs, right = stream.pictures(slots), stream.labels(slots)
    for k in range(8):
        scene = lesson(8_000_000_000 + k)
        assert np.array_equal(((pairs[k, 0] + 1) * 127.5).round().byte().permute(1, 2, 0).numpy(), scene.array())
        assert right["background"][k] == labels(scene)["background"]


def test_pictures_of_other_sizes_are_read_as_the_small_ones(network):
    reader = Reader(network)
    (small,) = reader([SCENE.image(64)])
    (large,) = reader([SCENE.image(64).resize((256, 256), 0)])
    assert (small.background, small.style, len(small.objects)) == (large.background, large.style, len(large.objects))


def test_a_picture_that_is_not_square_is_squeezed(network):
    wide = SCENE.image(64).resize((128, 64), 0)
    assert Reader(network)([wide])[0].background == Reader(network)([SCENE.image(64)])[0].background


def test_any_set_of_pictures_is_read_and_a_single_one_is_refused(network):
    reader, picture = Reader(network), SCENE.image()
    assert len(reader(picture for _ in range(2))) == 2
    assert reader([]) == []
    for single in (picture, np.asarray(picture)):
        with pytest.raises(EditbookError, match="pictures must be a list"):
            reader(single)


def test_a_picture_that_cannot_be_read_is_named(network):
    with pytest.raises(EditbookError, match=r"^pictures\[1\]: .*nan"):
        Reader(network)([SCENE.image(), np.full((64, 64, 3), np.nan)])


def test_the_centre_of_a_mask():
    mask = np.zeros((64, 64), np.float32)
    mask[16:32, 32:64] = 1
    assert ReadObject("", "", "", "", None, mask, 1.0).centre == pytest.approx((0.75, 0.375))


def test_an_untrained_reader_is_measured_near_chance(network):
    measured = measure_reader(network, 64)
    assert measured["word"] < 0.2
    assert set(measured) == {*HEADS, "colour", "material", *SCENE_HEADS, "objects", "mask_iou"}


def test_a_saved_reader_answers_the_same_to_half_precision(network, tmp_path):
    save_reader(network, {}, tmp_path)
    picture = SCENE.image()
    (one,), (other,) = Reader(network)([picture]), load_reader(tmp_path)([picture])
    assert one.background == other.background
    assert [thing.word for thing in one.objects] == [thing.word for thing in other.objects]


def test_a_missing_or_foreign_file_is_named(tmp_path):
    with pytest.raises(EditbookError, match="editbook train reader"):
        load_reader(tmp_path / "nowhere")
    (tmp_path / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(EditbookError, match=r"model\.safetensors"):
        load_reader(tmp_path)
