"""Structure distance: sees layout, not colour."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from editbook.errors import EditbookError
from editbook.metrics import pocket_clip, structure_distance
from editbook.metrics.structure import self_similarity
from editbook.pocket import task

TASK = task("red-to-blue-bus")


def test_self_similarity_is_a_cosine():
    keys = torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(0))
    found = self_similarity(keys)
    for row in range(5):
        for column in range(5):
            a, b = keys[1, row], keys[1, column]
            assert float(found[1, row, column]) == pytest.approx(float(a @ b / (a.norm() * b.norm())), abs=1e-6)


def test_equal_pictures_have_no_distance_and_order_does_not_matter():
    tower = pocket_clip()
    assert structure_distance(TASK.truth, TASK.truth, tower) == 0
    there = structure_distance(TASK.source_image, TASK.truth, tower)
    assert there == pytest.approx(structure_distance(TASK.truth, TASK.source_image, tower), rel=1e-5)
    assert 0 < there < 4


def test_another_place_is_further_than_another_colour():
    tower, scene = pocket_clip(), TASK.source_scene
    elsewhere = replace(scene, background="beach").image()
    recoloured = structure_distance(TASK.source_image, TASK.truth, tower)
    assert recoloured < structure_distance(TASK.source_image, elsewhere, tower)


def test_the_official_form_feeds_pixels_up_to_255():
    class Spy:
        name = "spy"

        def keys(self, pictures, top=1.0):
            self.top = top
            return torch.ones(len(pictures), 2, 2)

    spy, picture = Spy(), np.zeros((8, 8, 3), np.uint8)
    structure_distance(picture, picture, spy)
    assert spy.top == 1
    structure_distance(picture, picture, spy, official=True)
    assert spy.top == 255


def test_it_names_its_tower():
    assert structure_distance(TASK.source_image, TASK.truth, pocket_clip()).tower == "pocket-CLIP"


def test_other_sizes_and_damaged_pictures_are_named():
    source = np.asarray(TASK.source_image)
    with pytest.raises(EditbookError, match=r"^image and reference have different sizes, 64 x 64 and 32 x 48 pixels"):
        structure_distance(source, source[:48, :32], pocket_clip())
    with pytest.raises(EditbookError, match=r"^reference: .*nan"):
        structure_distance(source, np.full((64, 64, 3), np.nan), pocket_clip())
