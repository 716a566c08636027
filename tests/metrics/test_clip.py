"""Scores from CLIP, on towers whose features are known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchmetrics.functional import pairwise_cosine_similarity

from editbook.errors import EditbookError
from editbook.metrics import clip_image_similarity, clip_score, directional_similarity, pocket_clip
from editbook.pocket import task

TASK = task("cat-to-fox")


class Known:
    """A tower that looks up features by the value of the first pixel, or by the text."""

    name = "known"

    def __init__(self, images, texts):
        self._images, self._texts = images, texts

    def images(self, pictures):
        return torch.tensor([self._images[int(np.asarray(picture)[0, 0, 0])] for picture in pictures]).float()

    def texts(self, texts):
        return torch.tensor([self._texts[text] for text in texts]).float()


def pixel(value):
    return np.full((4, 4, 3), value, np.uint8)


KNOWN = Known(
    {0: [3.0, 0.0], 1: [0.0, 2.0], 2: [-1.0, 0.0]},
    {"x": [5.0, 0.0], "y": [0.0, 7.0], "between": [1.0, 1.0]},
)


def test_score_is_the_cosine_in_percent_and_never_negative():
    assert clip_score(pixel(0), "x", KNOWN) == pytest.approx(100)
    assert clip_score(pixel(0), "between", KNOWN) == pytest.approx(100 / np.sqrt(2))
    assert clip_score(pixel(1), "x", KNOWN) == 0
    assert clip_score(pixel(2), "x", KNOWN) == 0  # the cosine is -1


def test_likeness_is_the_cosine_of_two_pictures():
    tower = pocket_clip()
    features = tower.images([TASK.source_image, TASK.truth])
    expected = float(pairwise_cosine_similarity(features[:1], features[1:]))
    assert clip_image_similarity(TASK.source_image, TASK.truth, tower) == pytest.approx(expected, abs=1e-5)
    assert clip_image_similarity(pixel(0), pixel(2), KNOWN) == pytest.approx(-1)


def test_a_picture_that_moves_as_the_text_does_has_direction_one():
    for normalise in (True, False):
        assert directional_similarity(pixel(0), pixel(1), "x", "y", KNOWN, normalise=True).value == pytest.approx(1)
        back = directional_similarity(pixel(0), pixel(1), "y", "x", KNOWN, normalise=normalise)
        assert back.value == pytest.approx(
            -directional_similarity(pixel(0), pixel(1), "x", "y", KNOWN, normalise=normalise).value
        )


def test_raw_and_normalised_directions_differ_as_they_should():
    """Raw: (-3, 2) against (-5, 7). Normalised: (-1, 1) against (-1, 1)."""
    raw = directional_similarity(pixel(0), pixel(1), "x", "y", KNOWN, normalise=False)
    assert raw.value == pytest.approx((15 + 14) / np.sqrt(13 * 74))
    assert raw.defined


def test_an_untouched_picture_has_no_direction():
    found = directional_similarity(pixel(0), pixel(0), "x", "y", KNOWN)
    assert (found.value, found.defined, found.tower) == (0.0, False, "known")


def test_prompts_without_a_difference_are_refused():
    with pytest.raises(EditbookError, match="same"):
        directional_similarity(pixel(0), pixel(1), "x", "x", KNOWN)


def test_the_truth_moves_as_the_text_does():
    found = directional_similarity(TASK.source_image, TASK.truth, TASK.source_prompt, TASK.target_prompt, pocket_clip())
    assert found.defined
    assert found.value > 0.2


def test_every_number_names_its_tower():
    assert clip_score(pixel(0), "x", KNOWN).tower == "known"
    assert clip_image_similarity(pixel(0), pixel(1), KNOWN).tower == "known"
    assert directional_similarity(pixel(0), pixel(1), "x", "y", KNOWN).tower == "known"


def test_pictures_of_two_sizes_are_refused():
    with pytest.raises(EditbookError, match=r"^image and reference have different sizes, 4 x 4 and 4 x 2"):
        clip_image_similarity(pixel(0), pixel(1)[:2], KNOWN)
    with pytest.raises(EditbookError, match=r"^source and edited have different sizes, 4 x 4 and 4 x 2"):
        directional_similarity(pixel(0), pixel(1)[:2], "x", "y", KNOWN)


def test_a_damaged_picture_is_named():
    nan = np.full((4, 4, 3), np.nan)
    for call, name in (
        (lambda: clip_score(nan, "x", KNOWN), "image"),
        (lambda: clip_image_similarity(pixel(0), nan, KNOWN), "reference"),
        (lambda: directional_similarity(nan, pixel(0), "x", "y", KNOWN), "source"),
        (lambda: directional_similarity(pixel(0), nan, "x", "y", KNOWN), "edited"),
    ):
        with pytest.raises(EditbookError, match=f"^{name}: .*nan"):
            call()
