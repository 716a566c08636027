"""Watch Your Steps: exact outside its mask, InstructPix2Pix inside."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import editbook
from editbook.errors import EditbookError
from editbook.methods import Request
from editbook.methods.tuning_free.mask.watch_your_steps import WatchYourSteps
from editbook.metrics import psnr
from editbook.sampling import Schedule, add_noise

INSTRUCTION = "turn the cat into a fox"
HALF = np.zeros((64, 64), np.float32)
HALF[:, :32] = 1


def run(model, picture, method="watch-your-steps", **options):
    seen = []
    options = {"steps": 5, "guidance_scale": 3.0, **options}
    edit = editbook.edit(model, picture, method, instruction=INSTRUCTION, callbacks=[seen.append], **options)
    return edit, seen


def test_pixels_outside_the_mask_are_the_source(instruct_model, picture):
    method = WatchYourSteps(steps=5)
    _, fine = method.masks(instruct_model, Request(picture, "", "", instruction=INSTRUCTION))
    edit, _ = run(instruct_model, picture)
    source, made = (np.asarray(image).astype(int) for image in (picture, edit.image))
    assert 0 < fine.mean() < 1
    assert (source == made)[fine == 0].all()
    assert (source != made)[fine == 1].any()


def test_cells_outside_hold_the_noised_source_at_every_step(instruct_model64, picture):
    model = instruct_model64
    z_0, noise = model.encode(picture), model.random_latent(0)
    for timing in ("matched", "official"):
        edit, seen = run(model, picture, timing=timing)
        outside = torch.from_numpy(edit.mask == 0)
        path = Schedule(model.scheduler, 5).sampling()
        for step, move in zip(seen, path, strict=True):
            expected = add_noise(z_0, noise, move.alpha_to if timing == "matched" else move.alpha_from)
            if timing == "matched" and step.i == 4:
                expected = z_0
            assert torch.allclose(step.z_next[..., outside], expected[..., outside], atol=1e-12)


def test_a_full_mask_is_instruct_pix2pix_from_the_same_start(instruct_model64, picture):
    from editbook.guidance import InstructGuidance
    from editbook.sampling import follow

    model = instruct_model64
    edit, seen = run(model, picture, mask=np.ones((64, 64)))
    path = Schedule(model.scheduler, 5).sampling()
    start = add_noise(model.encode(picture), model.random_latent(0), path[0].alpha_from)
    texts = model.embed(INSTRUCTION), model.embed("")
    z_0 = follow(model, start, path, InstructGuidance(model.condition(picture), *texts, 1.0, 3.0))
    assert torch.allclose(seen[-1].z_next, z_0, atol=1e-10)
    assert edit.image.tobytes() == model.decode(z_0).tobytes()


def test_without_an_instruction_nothing_changes(instruct_model, picture):
    """edit() refuses it; the method itself finds an empty mask."""
    with pytest.raises(EditbookError, match="needs an instruction"):
        editbook.edit(instruct_model, picture, "watch-your-steps", instruction=" ")
    made = WatchYourSteps(steps=2)(instruct_model, Request(picture, "", "", instruction=""))
    assert made.image.tobytes() == picture.tobytes()
    assert made.mask.max() == 0


def test_a_mask_that_is_given_takes_the_place_of_the_relevance(instruct_model, picture):
    edit, seen = run(instruct_model, picture, mask=HALF)
    assert np.array_equal(edit.mask, HALF[::4, ::4])
    assert edit.nfe == 3 * len(seen)
    assert (np.asarray(edit.image) == np.asarray(picture))[HALF == 0].all()
    found, seen = run(instruct_model, picture)
    assert found.nfe == 3 * len(seen) + 2


def test_the_mask_by_name_is_nearly_the_method(instruct_model, picture):
    """InstructPix2Pix with mask="relevance": the same cells; only the start and the pasted pixels differ."""
    own, _ = run(instruct_model, picture)
    parts, _ = run(instruct_model, picture, method="instruct-pix2pix", mask="relevance")
    assert np.array_equal(own.mask, parts.mask)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("relevance_threshold", 1.0),
        ("relevance_strength", 1.0),
        ("maps", 0),
        ("timing", "late"),
        ("image_guidance_scale", -1.0),
    ],
)
def test_bad_options(option, value):
    with pytest.raises(EditbookError, match=r"threshold|strength|maps|timing|image_guidance_scale"):
        WatchYourSteps(**{option: value})


def test_it_needs_a_picture(instruct_model):
    with pytest.raises(EditbookError, match="picture"):
        WatchYourSteps()(instruct_model, Request(None, "", "", instruction=INSTRUCTION))


def test_the_background_is_kept_better_than_by_instruct_pix2pix(pocket_instruct):
    """In dB to the source outside the exact mask, over colour changes of one object of two.

    In single pictures the mask takes in the other object as well, and then nothing is gained.
    """
    tasks = [t for t in editbook.pocket.bench().of_type("change colour") if len(t.source_scene.objects) == 2][:6]
    assert len(tasks) == 6
    kept = {"watch-your-steps": [], "instruct-pix2pix": []}
    for task in tasks:
        for name, found in kept.items():
            edit = editbook.edit(
                pocket_instruct, task.source_image, name, instruction=task.instruction, steps=20, guidance_scale=4.0
            )
            found.append(psnr(edit.image, task.source_image, (task.mask == 0).astype(float)))
    gain = np.subtract(kept["watch-your-steps"], kept["instruct-pix2pix"])
    assert gain.mean() > 3, gain
    assert gain.min() > -2, gain
