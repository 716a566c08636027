"""Edit Friendly DDPM: the picture comes back to rounding under any guidance; the maps are large and carry it."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch

import editbook
from editbook.errors import EditbookError
from editbook.inversion import make_inverter
from editbook.methods.base import reconstruct, sample_back
from editbook.sampling import Schedule

SOURCE = "a photo of a cat on the beach"
TARGET = "a photo of a fox on the beach"


def invert(model, picture, steps=6, seed=0, **options):
    inverter = make_inverter("edit-friendly-ddpm", options)
    return inverter(model, model.encode(picture), SOURCE, Schedule(model.scheduler, steps), seed=seed)


@pytest.mark.parametrize("skip", [0.0, 0.36])
@pytest.mark.parametrize("scale", [0.0, 1.0, 3.5, 7.5])
@pytest.mark.parametrize("chained", [False, True])
def test_the_picture_comes_back_for_any_skip_and_scale(random_model64, picture, skip, scale, chained):
    model = random_model64
    inversion = invert(model, picture, skip=skip, inversion_scale=scale, chained=chained)
    assert len(inversion.moves) == (6 if skip == 0 else 4)
    torch.testing.assert_close(reconstruct(model, inversion), model.encode(picture), rtol=0, atol=1e-7)


def test_another_scale_than_the_maps_were_made_with_does_not(random_model64, picture):
    model = random_model64
    inversion = invert(model, picture)
    assert (reconstruct(model, inversion, 7.5) - model.encode(picture)).abs().max() > 1e-3
    assert inversion.gap().left.abs().max() > 1e-3


def test_the_official_last_map_is_zero(random_model64, picture):
    kept, official = invert(random_model64, picture), invert(random_model64, picture, keep_last=False)
    assert not official.moves[-1].noise.any()
    for a, b in zip(kept.moves[:-1], official.moves[:-1], strict=True):
        assert torch.equal(a.noise, b.noise)
    error = (reconstruct(random_model64, official) - random_model64.encode(picture)).abs()
    torch.testing.assert_close(error, (kept.moves[-1].sigma * kept.moves[-1].noise).abs(), rtol=0, atol=1e-9)


def test_both_rows_get_the_same_noise(random_model64, picture):
    model, inversion = random_model64, invert(random_model64, picture)
    rows = sample_back(model, inversion, [SOURCE, SOURCE], inversion.source_scale)
    torch.testing.assert_close(rows[0], rows[1], rtol=0, atol=1e-9)


def test_the_edit_is_plain_sampling_with_the_maps(random_model, picture):
    edit = editbook.edit(
        random_model, picture, "edit-friendly-ddpm", source=SOURCE, target=SOURCE, steps=5, guidance_scale=3.5
    )
    assert edit.image.tobytes() == edit.reconstruction.tobytes()
    assert edit.mask is None


def test_cost_counts_only_steps_that_are_kept(random_model, picture):
    def run(**options):
        return editbook.edit(
            random_model, picture, "edit-friendly-ddpm", source=SOURCE, target=TARGET, steps=10, **options
        ).nfe

    assert run(skip=0.36) == 7 * (2 + 2 + 2)
    assert run(skip=0.0) == 10 * (2 + 2 + 2)
    assert run(skip=0.0, inversion_scale=1.0) == 10 * (1 + 1 + 2)


def test_paper_defaults():
    options = editbook.methods["edit-friendly-ddpm"].options()
    assert (options["steps"], options["guidance_scale"]) == (100, 15.0)
    inverter = make_inverter("edit-friendly-ddpm", {})
    assert (inverter.eta, inverter.inversion_scale, inverter.skip) == (1.0, 3.5, 0.36)


def test_prompt_to_prompt_runs_on_it_and_repeats_the_source(random_model64, picture):
    edit = editbook.edit(
        random_model64, picture, "prompt-to-prompt", source=SOURCE, target=TARGET, inversion="edit-friendly", steps=4
    )
    end = edit.inversion.sampled.latents[-1]
    torch.testing.assert_close(end, random_model64.encode(picture), rtol=0, atol=1e-8)


@pytest.mark.parametrize(
    ("option", "value"),
    [("eta", 0.0), ("eta", 1.5), ("inversion_scale", -1.0), ("inversion_scale", float("inf")), ("skip", 1.0)],
)
def test_bad_options_raise(option, value):
    with pytest.raises(EditbookError, match=option):
        make_inverter("edit-friendly-ddpm", {option: value})
    with pytest.raises(EditbookError, match=option):
        editbook.methods["edit-friendly-ddpm"].configured(**{option: value})


def maps_of(model, task, steps=20, **options):
    inverter = make_inverter("edit-friendly-ddpm", {"skip": 0.0, **options})
    inversion = inverter(model, model.encode(task.source_image), task.source_prompt, Schedule(model.scheduler, steps))
    return inversion, torch.stack([move.noise for move in inversion.moves])


def test_maps_are_larger_than_noise_and_lean_against_their_neighbours(pocket_model):
    task = editbook.pocket.task("cat-to-fox")
    spread, correlation = {}, {}
    for chained in (False, True):
        noise = maps_of(pocket_model, task, chained=chained)[1]
        spread[chained] = float(noise.std())
        pairs = [torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1] for a, b in pairwise(noise)]
        correlation[chained] = float(torch.stack(pairs).mean())
    assert spread[False] > 1.25 * spread[True]
    assert correlation[False] < -0.3
    assert abs(correlation[True]) < 0.15
    assert float(maps_of(pocket_model, task, steps=50)[1].std()) > spread[False]


def test_fresh_noise_in_place_of_the_maps_loses_the_picture(pocket_model):
    model, task = pocket_model, editbook.pocket.task("cat-to-fox")
    inversion, maps = maps_of(model, task)
    z_0 = model.encode(task.source_image)
    kept = float((reconstruct(model, inversion) - z_0).square().mean())
    generator = torch.Generator().manual_seed(1)
    inversion.moves = [replace(m, noise=torch.randn(maps[0].shape, generator=generator)) for m in inversion.moves]
    assert float((reconstruct(model, inversion) - z_0).square().mean()) > 0.1
    assert kept < 1e-6


def test_what_skip_and_independence_are_for(pocket_model):
    """More of the picture outside the mask stays with a larger skip, and with independent noise."""
    from editbook.metrics import truth_psnr

    tasks = [editbook.pocket.task(name) for name in ("cat-to-fox", "red-to-blue-bus", "jumping-dog")]
    outside = {}
    for name, options in {
        "late": {"skip": 0.36},
        "early": {"skip": 0.0},
        "chained": {"skip": 0.36, "chained": True},
    }.items():
        edits = [
            editbook.edit(
                pocket_model,
                task.source_image,
                "edit-friendly-ddpm",
                source=task.source_prompt,
                target=task.target_prompt,
                steps=20,
                guidance_scale=5.0,
                **options,
            )
            for task in tasks
        ]
        outside[name] = sum(truth_psnr(e.image, t).outside for e, t in zip(edits, tasks, strict=True)) / 3
    assert outside["late"] > outside["early"] + 1
    assert outside["late"] > outside["chained"] + 0.5
