"""Regions, PIE-Bench's conventions, distances to the truth, means."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torchmetrics.functional import mean_squared_error
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from editbook import data
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
    truth_psnr,
)
from editbook.pocket import BenchTask, task

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
        (np.full((64, 64), np.nan), "nan"),
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


def test_psnr_to_the_truth_says_what_was_gained_and_what_was_lost():
    copied = truth_psnr(TASK.source_image, TASK)
    assert copied._asdict() == truth_distances(TASK.source_image, TASK)["PSNR"]
    assert copied.outside == pytest.approx(psnr(TASK.source_image, TASK.truth, 1 - TASK.mask))
    assert copied.outside > copied.whole > copied.inside
    assert str(copied) == f"outside the mask {copied.outside:.0f} dB, inside {copied.inside:.0f} dB"
    assert set(truth_psnr(TASK.truth, TASK)) == {math.inf}
    assert math.isnan(truth_psnr(TASK.source_image, replace(TASK, mask=np.ones((64, 64)))).outside)
    with pytest.raises(EditbookError, match="exact answer"):
        truth_psnr(TASK.truth, replace(TASK, truth=None))


def script(edited, source, mask):
    """The pixel numbers of PIE-Bench's script: torchmetrics as it comes, on pictures that are black in the mask.

    Args:
        edited: uint8 (512, 512, 3).
        source: uint8 (512, 512, 3).
        mask: (512, 512), 0 or 1.
    """
    a, b = (
        torch.from_numpy((image / 255 * (1 - mask)[..., None]).astype(np.float32)).permute(2, 0, 1)[None]
        for image in (edited, source)
    )
    return {
        "PSNR": float(peak_signal_noise_ratio(a, b, data_range=1.0)),
        "MSE x1e4": 1e4 * float(mean_squared_error(a.contiguous(), b.contiguous())),
        "SSIM x1e2": 100 * float(structural_similarity_index_measure(a, b, data_range=1.0)),
        "LPIPS x1e3 (LPIPS)": 1e3 * float((a - b).abs().mean()),  # l1 stands in for it
    }


def enlarged(array):
    return array.repeat(8, axis=0).repeat(8, axis=1)


def test_pie_bench_s_numbers_are_the_script_s_on_the_enlarged_task():
    tower = pocket_clip()
    found = pie_bench_scores(TASK.truth, TASK, tower, tower, lpips=l1)
    mask = np.ones((512, 512))
    mask[1:-1, 1:-1] = enlarged(TASK.mask > 0)[1:-1, 1:-1]
    expected = script(enlarged(np.asarray(TASK.truth)), enlarged(np.asarray(TASK.source_image)), mask)
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=1e-4), name
    structure = 1e3 * structure_distance(TASK.truth, TASK.source_image, tower, official=True)
    assert found["structure x1e3 (pocket-CLIP)"] == pytest.approx(structure)
    assert found["CLIP whole (pocket-CLIP)"] == clip_score(TASK.truth, TASK.target_prompt, tower)
    cut = (enlarged(np.asarray(TASK.truth)) * mask[..., None]).astype(np.uint8)
    assert found["CLIP edited (pocket-CLIP)"] == clip_score(cut, TASK.target_prompt, tower)
    assert {type(value) for value in found.values()} == {float}, "their names are their labels"


def test_on_an_exported_task_they_are_the_script_s_own(tmp_path):
    """Its files read as the script reads them: a JPEG, and runs of a mask whose border is added."""
    posed = BenchTask(**vars(TASK), id="111000000000", type_id=1, image_path="1/111000000000.jpg")
    folder = data.export([posed], tmp_path / "export")
    (entry,) = json.loads((folder / "mapping_file.json").read_text()).values()
    source = np.asarray(Image.open(folder / "annotation_images" / entry["image_path"]))
    mask = np.zeros(512 * 512)
    for start, length in zip(entry["mask"][::2], entry["mask"][1::2], strict=True):
        mask[start : start + length] = 1
    mask = mask.reshape(512, 512)
    mask[[0, -1]] = mask[:, [0, -1]] = 1
    edited = enlarged(np.asarray(TASK.truth))
    tower = pocket_clip()
    (task,) = data.pie_bench(folder, exact=False)
    found = pie_bench_scores(edited, task, tower, tower, lpips=l1)
    for name, value in script(edited, source, mask).items():
        assert found[name] == pytest.approx(value, rel=1e-4), name
    (bare,) = data.pie_bench(folder, exact=False, border=False)
    assert pie_bench_scores(edited, bare, tower, tower)["PSNR"] == found["PSNR"]


def test_pictures_that_do_not_go_into_512_are_scored_as_they_are():
    tower, source = pocket_clip(), TASK.source_image.resize((48, 40))
    mask = np.zeros((40, 48))
    mask[10:20] = 0.2
    task = replace(TASK, source_image=source, mask=mask)
    edited = TASK.truth.resize((48, 40))
    keep = np.zeros((40, 48, 1))
    keep[1:-1, 1:-1] = 1
    keep[10:20] = 0
    expected = mse(*(np.asarray(image) / 255 * keep for image in (edited, source)))
    assert pie_bench_scores(edited, task, tower, tower)["MSE x1e4"] == pytest.approx(1e4 * expected)


def test_its_pixel_numbers_depend_on_the_mask_s_size_and_ours_do_not():
    """One error, the same everywhere; masks of two sizes: the black-filled MSE falls, the mean outside does not."""
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
    # Rows that are left of 512, without the one pixel of border on the other side.
    assert theirs[0] / theirs[1] == pytest.approx((512 - 64 - 1) / (512 - 288 - 1))
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


def test_another_size_is_refused_by_its_own_name():
    small = TASK.truth.resize((32, 32))
    with pytest.raises(EditbookError, match=r"^edited and task.source_image have different sizes"):
        pie_bench_scores(small, TASK, pocket_clip(), pocket_clip())
    with pytest.raises(EditbookError, match=r"^edited and task.truth have different shapes"):
        truth_distances(small, TASK)
    with pytest.raises(EditbookError, match=r"^image and reference have different shapes"):
        regions(psnr, small, TASK.source_image, TASK.mask)


def test_a_damaged_picture_is_named():
    nan = np.full((64, 64, 3), np.nan)
    with pytest.raises(EditbookError, match=r"^edited: .*nan"):
        pie_bench_scores(nan, TASK, pocket_clip(), pocket_clip())
    with pytest.raises(EditbookError, match=r"^edited .*nan"):
        truth_distances(nan, TASK)


def test_a_region_without_a_window_has_no_ssim():
    top = np.zeros((64, 64))
    top[:3] = 1
    found = regions(ssim, TASK.source_image, TASK.truth, top)
    assert math.isnan(found["inside"])
    assert found["outside"] == pytest.approx(found["whole"])
    found = regions(ssim, TASK.source_image, TASK.truth, 1 - top)
    assert math.isnan(found["outside"])
