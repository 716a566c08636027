"""Inpaint Anything: which mask is meant, that nothing outside it changes, and the crops of large pictures."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

import editbook
from editbook.errors import EditbookError
from editbook.methods.tuning_free.mask.inpaint_anything import InpaintAnything, crop_window, fill, redraw_around
from editbook.metrics import psnr
from editbook.perception import BorderInpainter, SceneOracle
from editbook.perception.oracle import levels
from editbook.pocket import Scene, Thing, bench
from editbook.pocket.edits import remove_object

SCENE = Scene("beach", (Thing("dog", accessory="crown", y=0.9),), seed=4)
ORACLE = {"segmenter": SceneOracle(SCENE), "grounder": SceneOracle(SCENE)}
BORDER = {"inpainter": BorderInpainter()}
PARTS = levels(SCENE)[0]


def inside(mask):
    """Some pixel of a mask (x, y)."""
    rows, columns = np.nonzero(mask)
    return int(columns[len(columns) // 2]), int(rows[len(rows) // 2])


def edit(model, **options):
    return editbook.edit(model, SCENE.image(), "inpaint-anything", **{"steps": 3, **ORACLE, **BORDER, **options})


def same_outside(edited, mask):
    return (np.asarray(edited)[~mask] == np.asarray(SCENE.image())[~mask]).all()


def test_a_click_gives_three_nested_masks_and_the_chosen_one_is_told(random_model):
    method = InpaintAnything(point=inside(PARTS[0]), **ORACLE)
    found = method.segments(SCENE.image())
    assert found.masks.shape == (3, 64, 64)
    assert (found.masks[0] <= found.masks[1]).all()
    assert (found.masks[1] <= found.masks[2]).all()
    assert method.choose(found) == 2
    made = edit(random_model, point=inside(PARTS[0]), which=1)
    assert json.loads(json.dumps(made.settings))["segments"] == {"scores": [1.0, 1.0, 1.0], "chosen": 1}
    assert same_outside(made.image, InpaintAnything().shaped(PARTS[1]) > 0)


def test_box_and_phrase_find_the_same_object(random_model):
    rows, columns = np.nonzero(PARTS[1])
    box = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
    image = SCENE.image()
    assert (InpaintAnything(box=box, **ORACLE).segments(image).masks == PARTS[1]).all()

    method = InpaintAnything(phrase="dog", **ORACLE)
    assert (method.segments(image).masks == PARTS[1]).all()
    assert method.choose(method.segments(image)) == 0


def test_remove_is_no_diffusion_and_changes_nothing_outside_the_dilated_mask(random_model):
    made = edit(random_model, point=inside(PARTS[1]))
    wide = made.mask > 0
    assert made.nfe == 0
    assert made.settings["running"] == "mean border colour"
    assert same_outside(made.image, wide)
    assert wide.sum() > PARTS[2].sum()
    assert made.image.tobytes() != SCENE.image().tobytes()
    tight = edit(random_model, mask=PARTS[1].astype(np.float32), dilate=0)
    assert same_outside(tight.image, PARTS[1])


def test_a_tight_mask_leaves_the_shadow(random_model):
    truth = np.asarray(remove_object(SCENE, 0).image(), int)
    shadow = PARTS[2] & ~PARTS[1]
    errors = [
        np.abs(np.asarray(edit(random_model, mask=part.astype(np.float32), dilate=0).image, int) - truth)[shadow].mean()
        for part in (PARTS[1], PARTS[2])
    ]
    before = np.abs(np.asarray(SCENE.image(), int) - truth)[shadow].mean()
    assert errors[0] == pytest.approx(before)
    assert before > 10


def test_each_task_dilates_as_the_paper_does_in_share_of_the_picture():
    dot = np.zeros((64, 64))
    dot[32, 32] = 1
    for task, area in (("remove", 9), ("fill", 25), ("replace", 1)):
        assert InpaintAnything(task=task).shaped(dot).sum() == area
    big = np.zeros((640, 512))
    big[300, 300] = 1
    assert InpaintAnything(task="remove").shaped(big).sum() == 21**2
    assert InpaintAnything(task="remove", dilate=0).shaped(big).sum() == 1


def test_fill_draws_only_inside_and_says_what_is_running(random_model):
    made = edit(random_model, task="fill", point=inside(PARTS[1]), target="a photo of a cat on the beach")
    assert same_outside(made.image, made.mask > 0)
    assert made.nfe == 6
    assert made.settings["running"] == "blended-latent-diffusion on the plain U-Net of random"


def test_fill_equals_blended_latent_diffusion_with_a_pasted_background(random_model):
    mask = np.zeros((64, 64), np.float32)
    mask[20:50, 10:40] = 1
    target = "a photo of a cat on the beach"
    ours = edit(random_model, task="fill", mask=mask, target=target, dilate=0, guidance_scale=5.0)
    theirs = editbook.edit(
        random_model, SCENE.image(), "blended-latent-diffusion", mask=mask, target=target, steps=3, background="paste"
    )
    assert ours.image.tobytes() == theirs.image.tobytes()


def test_replace_keeps_the_object_pixel_by_pixel(random_model):
    options = {"task": "replace", "mask": PARTS[1].astype(np.float32), "target": "a photo of a dog in the snow"}
    hard, soft = edit(random_model, **options), edit(random_model, **options, soften=1.0)
    source = np.asarray(SCENE.image())
    assert (np.asarray(hard.image)[PARTS[1]] == source[PARTS[1]]).all()
    assert (np.asarray(hard.image)[~PARTS[1]] != source[~PARTS[1]]).any(-1).mean() > 0.9
    differs = (np.asarray(hard.image) != np.asarray(soft.image)).any(-1)
    assert 0 < differs.mean() < 0.5, "only near the edge"


@pytest.mark.parametrize("place", [(0, 0, 9, 9), (150, 110, 160, 120), (70, 50, 80, 60), (0, 40, 64, 104)])
def test_crop_and_paste_with_an_idle_painter_gives_the_picture(place):
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (120, 160, 3), np.uint8))
    mask = np.zeros((120, 160), np.float32)
    mask[place[1] : place[3], place[0] : place[2]] = 1
    sizes = []

    def idle(crop, hole):
        sizes.append((crop.size, hole.shape))
        assert 0 < hole.sum() == mask.sum()
        return crop

    assert fill(picture, mask, idle, 64).tobytes() == picture.tobytes()
    assert sizes == [((64, 64), (64, 64))]


@pytest.mark.parametrize(("width", "height"), [(160, 120), (200, 40), (40, 30), (33, 90)])
def test_masks_larger_than_the_crop_and_small_pictures_are_resampled_inside_only(width, height):
    rows, columns = np.mgrid[:height, :width]
    smooth = np.stack([columns * 255 / width, rows * 255 / height, np.full((height, width), 90.0)], -1)
    picture = Image.fromarray(smooth.astype(np.uint8))
    mask = np.zeros((height, width), np.float32)
    mask[2:-2, 3 : width - 3] = 1
    filled = np.asarray(fill(picture, mask, lambda crop, hole: crop, 64), int)
    assert (filled[mask == 0] == np.asarray(picture)[mask == 0]).all()
    assert np.abs(filled - np.asarray(picture)).mean() < 2
    red = np.asarray(fill(picture, mask, lambda crop, hole: Image.new("RGB", crop.size, "red"), 64))
    assert (red[mask == 1] == (255, 0, 0)).all(), "all of the mask is drawn"


def test_the_window_is_in_the_picture_and_holds_the_mask():
    rng = np.random.default_rng(1)
    for _ in range(200):
        mask = np.zeros((int(rng.integers(70, 150)), int(rng.integers(70, 150))), bool)
        y, x = (int(rng.integers(0, length - 60)) for length in mask.shape)
        mask[y : y + int(rng.integers(1, 61)), x : x + int(rng.integers(1, 61))] = True
        left, top, side = crop_window(mask, 64)
        assert side == 64
        assert 0 <= left <= mask.shape[1] - side
        assert 0 <= top <= mask.shape[0] - side
        assert mask[top : top + side, left : left + side].sum() == mask.sum()


@pytest.mark.parametrize(("width", "height"), [(64, 64), (128, 96), (50, 200)])
def test_replace_with_an_idle_painter_gives_the_picture_up_to_resampling(width, height):
    picture = SCENE.image(256).resize((width, height))
    mask = np.zeros((height, width), np.float32)
    mask[height // 4 : height // 2, width // 4 : width // 2] = 1
    same = np.asarray(redraw_around(picture, mask, lambda small, around: small, 64), float)
    assert same.shape == (height, width, 3)
    assert (same[mask == 1] == np.asarray(picture)[mask == 1]).all()
    assert np.abs(same - np.asarray(picture)).mean() < (1 if max(width, height) == 64 else 16)


def test_the_padding_is_drawn_and_cut_off():
    seen = []

    def paint(small, around):
        seen.append((small, around))
        return Image.new("RGB", small.size, "red")

    mask = np.zeros((40, 80), np.float32)
    mask[10:30, 20:60] = 1
    made = np.asarray(redraw_around(Image.new("RGB", (80, 40), "blue"), mask, paint, 64))
    (small, around), *_ = seen
    assert small.size == (64, 64)
    assert (np.asarray(small)[32:] == 0).all()
    assert (around[32:] == 1).all()
    assert (around[9:23, 17:47] == 0).all()
    assert (made[mask == 0] == (255, 0, 0)).all()
    assert (made[mask == 1] == (0, 0, 255)).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task": "paint"}, "task of inpaint-anything"),
        ({}, "needs a mask, or one of its options"),
        ({"point": (5, 5), "phrase": "dog"}, "one of point, box and phrase"),
        ({"point": (5, 5), "mask": np.ones((64, 64))}, "not both"),
        ({"point": (500, 5)}, "outside the picture"),
        ({"point": (2, 2)}, "found nothing there"),
        ({"phrase": "zebra"}, "found nothing there"),
        ({"point": inside(PARTS[1]), "which": 3}, "'largest', 0, 1 or 2"),
        ({"point": inside(PARTS[1] & ~PARTS[0]), "which": 0}, "found nothing there"),
        ({"point": inside(PARTS[1]), "task": "fill"}, "target prompt"),
        ({"point": inside(PARTS[1]), "dilate": 0.5}, "dilate is a whole number"),
        ({"point": inside(PARTS[1]), "soften": -1.0}, "blur"),
    ],
)
def test_bad_input_raises_before_any_work(options, message, random_model):
    before = random_model.nfe
    with pytest.raises(EditbookError, match=message):
        edit(random_model, **options)
    assert random_model.nfe == before


def test_the_shipped_parts_remove_better_than_diffusion_does(pocket_model):
    tasks = [task for task in bench().of_type("remove object") if len(task.source_scene.objects) == 1][:24:4]
    errors = []
    for task in tasks:
        wide = levels(task.source_scene)[0, 2].astype(np.float32)
        removed = editbook.edit(pocket_model, task.source_image, "inpaint-anything", mask=wide)
        assert removed.settings["running"] == "pocket inpainter (stand-in for LaMa)"
        drawn = editbook.edit(
            pocket_model,
            task.source_image,
            "blended-latent-diffusion",
            mask=removed.mask,
            target=task.target_prompt,
            background="paste",
            steps=12,
        )
        errors.append([psnr(one.image, task.truth) for one in (removed, drawn)])
    lama, diffusion = np.mean(errors, 0)
    assert lama > diffusion + 1


def test_a_click_into_an_object_finds_it_with_the_shipped_segmenter():
    method = InpaintAnything(point=inside(PARTS[1] & ~PARTS[0]))
    found = method.segments(SCENE.image())
    x, y = method.point
    assert found.masks.shape == (3, 64, 64)
    assert any(mask[y, x] for mask in found.masks)
    overlaps = [(mask & PARTS[1]).sum() / (mask | PARTS[1]).sum() for mask in found.masks]
    assert max(overlaps) > 0.8
