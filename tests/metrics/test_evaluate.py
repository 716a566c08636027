"""Regions, PIE-Bench's conventions, distances to the truth, means."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from editbook.errors import EditbookError
from editbook.metrics import (
    clip_score,
    l1,
    mean_without_nan,
    mse,
    pie_bench_scores,
    pocket_clip,
    psnr,
    regions,
    ssim,
    structure_distance,
    truth_distances,
)
from editbook.pocket import task

TASK = task("cat-to-fox")


def test_regions_add_up_to_the_whole():
    for metric in (mse, l1):
        found = regions(metric, TASK.source_image, TASK.truth, TASK.mask)
        share = float(TASK.mask.mean())
        assert share * found["inside"] + (1 - share) * found["outside"] == pytest.approx(found["whole"])


def test_a_mask_over_everything_leaves_nothing_outside():
    found = regions(psnr, TASK.source_image, TASK.truth, np.ones((64, 64)))
    assert math.isnan(found["outside"])
    assert found["inside"] == pytest.approx(found["whole"])


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        (np.ones((32, 32)), "shape"),
        (np.zeros((64, 64)), "empty"),
        (np.full((64, 64), np.nan), "NaN"),
        (np.full((64, 64), 2.0), r"\[0, 1\]"),
    ],
)
def test_bad_masks_are_refused(mask, words):
    with pytest.raises(EditbookError, match=words):
        regions(ssim, TASK.source_image, TASK.truth, mask)
    with pytest.raises(EditbookError, match=r"^mask"):
        pie_bench_scores(TASK.truth, replace(TASK, mask=mask), pocket_clip(), pocket_clip())


def test_the_truth_is_at_no_distance_from_itself():
    found = truth_distances(TASK.truth, TASK)
    assert set(found["MSE"].values()) == {0.0}
    assert found["SSIM"]["inside"] == pytest.approx(1)
    copied = truth_distances(TASK.source_image, TASK)
    assert copied["MSE"]["inside"] > 10 * copied["MSE"]["outside"]
    with pytest.raises(EditbookError, match="exact answer"):
        truth_distances(TASK.truth, replace(TASK, truth=None))


def test_pie_bench_s_numbers_are_torchmetrics_on_blackened_pictures():
    tower = pocket_clip()
    found = pie_bench_scores(TASK.truth, TASK, tower, tower, lpips=l1)
    keep = (np.asarray(TASK.mask) <= 0.5)[..., None]
    a, b = (
        torch.from_numpy(np.asarray(image) / 255 * keep).permute(2, 0, 1)[None]
        for image in (TASK.truth, TASK.source_image)
    )
    assert found["PSNR"] == pytest.approx(float(peak_signal_noise_ratio(a, b, data_range=1.0)), rel=1e-6)
    _, similar = structural_similarity_index_measure(a, b, data_range=1.0, return_full_image=True)
    assert found["SSIM x1e2"] == pytest.approx(100 * float(similar[..., 5:-5, 5:-5].mean()), abs=1e-4)
    assert found["MSE x1e4"] == pytest.approx(1e4 * float(((a - b) ** 2).mean()))
    assert found["LPIPS x1e3 (LPIPS)"] == pytest.approx(1e3 * float((a - b).abs().mean()))
    structure = 1e3 * structure_distance(TASK.truth, TASK.source_image, tower, official=True)
    assert found["structure x1e3 (pocket-CLIP)"] == pytest.approx(structure)
    assert found["CLIP whole (pocket-CLIP)"] == clip_score(TASK.truth, TASK.target_prompt, tower)
    cut = Image.fromarray(np.where(keep, 0, np.asarray(TASK.truth)).astype(np.uint8))
    assert found["CLIP edited (pocket-CLIP)"] == clip_score(cut, TASK.target_prompt, tower)


def test_its_pixel_numbers_depend_on_the_mask_s_size_and_ours_do_not():
    """One error, the same everywhere; masks of two sizes: the black-filled MSE halves, the mean outside does not."""
    tower = pocket_clip()
    source = np.full((64, 64, 3), 100, np.uint8)
    edited = Image.fromarray(source + 20)
    theirs, ours = [], []
    for rows in (8, 36):
        mask = np.zeros((64, 64), np.float32)
        mask[:rows] = 1
        posed = replace(TASK, source_image=Image.fromarray(source), mask=mask)
        theirs.append(pie_bench_scores(edited, posed, tower, tower)["MSE x1e4"])
        ours.append(regions(mse, edited, source, mask)["outside"])
    assert theirs[0] == pytest.approx(2 * theirs[1])
    assert ours[0] == pytest.approx(ours[1])


def test_a_mask_over_everything_is_nan_and_dropped_from_the_mean():
    tower = pocket_clip()
    found = pie_bench_scores(TASK.truth, replace(TASK, mask=np.ones((64, 64))), tower, tower)
    assert all(math.isnan(found[name]) for name in ("PSNR", "MSE x1e4", "SSIM x1e2"))
    assert found["CLIP edited (pocket-CLIP)"] == found["CLIP whole (pocket-CLIP)"]
    mean = mean_without_nan([found["PSNR"], 20.0, 30.0])
    assert (mean.value, mean.used, mean.dropped) == (25.0, 2, 1)


def test_means_say_when_nothing_is_left():
    assert math.isnan(mean_without_nan([math.nan]).value)
    assert mean_without_nan([math.inf, 1.0]).value == math.inf
    with pytest.raises(EditbookError, match="empty"):
        mean_without_nan([])


def test_another_size_is_refused():
    with pytest.raises(EditbookError, match="edited has size"):
        pie_bench_scores(TASK.truth.resize((32, 32)), TASK, pocket_clip(), pocket_clip())
