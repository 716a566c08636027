"""The pocket segmenter with its shipped weights, and the oracle: what they outline, on held-out scenes."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from editbook.errors import EditbookError
from editbook.masks import find_mask
from editbook.model import SHIPPED
from editbook.perception import PocketSegmenter, SceneOracle, load_segmenter
from editbook.perception.base import box_of, exclusive, iou
from editbook.perception.oracle import levels
from editbook.perception.segmenter import SegmenterNetwork, belonging, load_network, prompt_maps
from editbook.pocket import Scene, Thing, sample_held_out
from editbook.widgets import mask_painter

DRESSED = Scene("beach", (Thing("cat", accessory="hat", x=0.3, size=0.42), Thing("car", x=0.72, size=0.42)))
SCENES = [scene for seed in range(90) if (scene := sample_held_out(43_000_000 + seed)).objects]
BY_COUNT = {count: [scene for scene in SCENES if len(scene.objects) == count] for count in (1, 2)}


def middle(mask):
    """The pixel (x, y) of a mask that is farthest from its outside, about."""
    rows, columns = np.nonzero(mask)
    nearest = np.argmin((rows - rows.mean()) ** 2 + (columns - columns.mean()) ** 2)
    return columns[nearest], rows[nearest]


def test_levels_are_nested_and_exact():
    (cat, car) = levels(DRESSED)
    for part, seen in zip((cat, car), DRESSED.masks(), strict=True):
        assert np.array_equal(part[1], seen > 0.5)
        assert (part[0] <= part[1]).all()
        assert (part[1] <= part[2]).all()
        assert part[2].sum() > part[1].sum()
    assert not car[0].any()
    # The part is where the picture changes when the hat is taken off.
    bare = replace(DRESSED, objects=(replace(DRESSED.objects[0], accessory=None), DRESSED.objects[1]))
    changed = np.abs(DRESSED.array().astype(int) - bare.array()).max(-1) > 40
    assert iou(changed & cat[1], cat[0]) > 0.8
    assert (levels(DRESSED, 128)[0, 1].reshape(64, 2, 64, 2).mean((1, 3)) - cat[1]).__abs__().mean() < 0.02


def test_the_oracle_never_errs():
    oracle = SceneOracle(DRESSED)
    cat, car = levels(DRESSED)
    masks, scores = oracle.segment(DRESSED.image(), points=[middle(cat[0])])
    assert np.array_equal(masks, cat)
    assert scores.tolist() == [1, 1, 1]
    masks, scores = oracle.segment(DRESSED.image(), points=[middle(car[1])])
    assert np.array_equal(masks, car)
    assert scores.tolist() == [0, 1, 1]
    masks, scores = oracle.segment(DRESSED.image(), points=[(1, 1)])
    assert not masks.any()
    assert not scores.any()
    masks, _ = oracle.segment(DRESSED.image(), boxes=[box_of(car[1]), box_of(cat[0]), box_of(cat[1])])
    assert np.array_equal(masks, [car[1], cat[0], cat[1]])
    masks, _ = oracle.everything(DRESSED.image())
    assert np.array_equal(masks, [cat[1], car[1]])
    with pytest.raises(EditbookError, match="square"):
        oracle.everything(DRESSED.array()[:40])


@pytest.mark.parametrize("count", [1, 2])
def test_the_shipped_weights_outline_what_is_clicked_and_boxed(count):
    segmenter = load_segmenter()
    best, boxed, true, said = [], [], [], []
    for scene in BY_COUNT[count][:25]:
        for part in levels(scene):
            masks, scores = segmenter.segment(scene.image(), points=[middle(part[1])])
            best.append(max(iou(mask, part[1]) for mask in masks))
            true += [iou(masks[1], part[1]), iou(masks[2], part[2])]
            said += scores[1:].tolist()
            boxed.append(iou(segmenter.segment(scene.image(), boxes=[box_of(part[1])])[0][0], part[1]))
    assert np.mean(best) > 0.8
    assert np.mean(boxed) > 0.8
    assert np.corrcoef(true, said)[0, 1] > 0.4


@pytest.mark.parametrize(("count", "share"), [(1, 0.8), (2, 0.6)])
def test_everything_finds_each_object_once(count, share):
    segmenter, right = load_segmenter(), []
    for scene in BY_COUNT[count][:25]:
        masks, _ = segmenter.everything(scene.image())
        exact = levels(scene)[:, 1]
        close = [max((iou(mask, whole) for mask in masks), default=0.0) > 0.7 for whole in exact]
        right.append(len(masks) == len(exact) and all(close))
    assert np.mean(right) > share


def test_a_click_on_nothing_has_no_object():
    segmenter = load_segmenter()
    scores = [segmenter.segment(scene.image(), points=[(2, 2)])[1].max() for scene in SCENES[:12]]
    assert np.mean(np.array(scores) < 0.5) > 0.8


def test_a_click_on_the_ground_finds_nothing():
    segmenter, found = load_segmenter(), []
    for scene in SCENES[:30]:
        rows, columns = np.nonzero(~levels(scene)[:, 2].any(0))
        k = len(rows) // 3  # above or beside the objects
        found.append(segmenter.segment(scene.image(), points=[(columns[k], rows[k])])[0].any())
    assert np.mean(found) < 0.2


def test_a_larger_picture_has_the_same_object():
    segmenter, scene = load_segmenter(), DRESSED
    small = segmenter.segment(scene.image(64), points=[(46, 50)])[0][1]
    large = segmenter.segment(scene.image(256), points=[(46.5 * 4, 50.5 * 4)])[0][1]
    assert iou(large, np.kron(small, np.ones((4, 4))) > 0) > 0.85


def test_maps_put_a_click_into_its_pixel():
    maps = prompt_maps(np.array([[10.5, 20.5], [40.5, 5.5]]), np.array([1, 0]), np.array([8, 4, 16, 12]))
    assert np.unravel_index(maps[0].argmax(), (64, 64)) == (20, 10)
    assert np.unravel_index(maps[1].argmax(), (64, 64)) == (5, 40)
    assert maps[0].max() == maps[1].max() == 1
    assert maps[2].sum() == 64
    assert maps[2, 4:12, 8:16].all()


def test_what_belongs_to_a_click_is_all_that_the_reader_puts_under_its_mask():
    masks = torch.zeros(1, 3, 64, 64)  # ground, an object at the left, one at the right
    masks[0, 1, 20:40, 5:30] = masks[0, 2, 20:40, 30:60] = 1
    masks[0, 0] = 1 - masks[0, 1:].sum(0)
    on_left = prompt_maps(np.array([[15.0, 30.0]]), np.ones(1), np.array([30, 20, 60, 40]))
    found = belonging(masks, torch.from_numpy(on_left)[None])[0]
    assert torch.allclose(found[0], masks[0, 1], atol=1e-3)  # a blob reaches a little farther than its object
    assert not found[1].any()  # there was no negative click
    assert torch.allclose(found[2], masks[0, 2])
    assert found.min() >= 0
    assert found.max() <= 1


def test_the_better_mask_keeps_what_two_share():
    masks = np.zeros((3, 1, 10), bool)
    masks[0, 0, :6], masks[1, 0, 5:], masks[2, 0, 1:6] = True, True, True
    kept, scores = exclusive(masks, np.array([0.8, 0.9, 0.7]))
    assert scores.tolist() == pytest.approx([0.9, 0.8])
    assert kept[:, 0].astype(int).tolist() == [[0] * 5 + [1] * 5, [1] * 5 + [0] * 5]


def test_weights_that_do_not_fit_are_refused(tmp_path):
    with pytest.raises(EditbookError, match="missing"):
        load_network(tmp_path)
    shutil.copytree(SHIPPED / "segmenter", tmp_path / "other")
    record = json.loads((tmp_path / "other" / "record.json").read_text())
    (tmp_path / "other" / "record.json").write_text(json.dumps(record | {"reader": "another"}))
    with pytest.raises(EditbookError, match="another reader"):
        load_network(tmp_path / "other")
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(EditbookError, match="does not hold") as caught:
        load_network(tmp_path / "damaged")
    assert "\n" not in str(caught.value)


def test_a_mask_by_name_goes_through_the_pocket_tools(random_model):
    scene = Scene("meadow", (Thing("cat", x=0.27, size=0.42), Thing("car", colour="red", x=0.73, size=0.42)))
    found = find_mask(random_model, scene.image(), "segment:cat")
    assert iou(found.mask > 0.5, scene.masks()[0] > 0.5) > 0.6


def test_the_painter_asks_it():
    painter = mask_painter(DRESSED.image(64))
    painter.click(46, 50)
    assert iou(painter.array > 0.5, levels(DRESSED)[1, 1]) > 0.6
    assert "of 2" in painter.message  # a car wears nothing


def test_it_is_small():
    assert sum(p.numel() for p in SegmenterNetwork().parameters()) < 400_000
    assert isinstance(load_segmenter(SHIPPED / "segmenter"), PocketSegmenter)
