"""Timestep-aware sampling: a reconstruction until the switch, plain sampling with the target after it."""

from __future__ import annotations

import pytest
import torch

import editbook
from editbook.errors import EditbookError
from editbook.inversion import ddim_inversion
from editbook.inversion.text_optimisation import fit_embedding
from editbook.methods.base import guided, reconstruct
from editbook.methods.tuning_free.inversion.latent_inversion_timestep_aware import Switch
from editbook.metrics import load_reader, mask_iou, truth_psnr
from editbook.sampling import ClassifierFreeGuidance, Schedule, Trajectory, follow

ID = "latent-inversion-timestep-aware"
SOURCE = "a photo of a cat on the beach"
TARGET = "a photo of a jumping cat on the beach"


def sampled(model, picture, target=TARGET, **options):
    """The edit, and the walk back of both rows (the walk up has one)."""
    walk = Trajectory()
    options = {"steps": 5, "text_steps": 2, **options}
    edit = editbook.edit(
        model,
        picture,
        ID,
        source=SOURCE,
        target=target,
        callbacks=[lambda step: walk(step) if len(step.z_t) == 2 else None],
        **options,
    )
    return edit, walk


def test_switching_never_is_the_reconstruction(random_model64, picture):
    model = random_model64
    edit, walk = sampled(model, picture, switch=1.0)
    assert edit.image.tobytes() == edit.reconstruction.tobytes()
    plain = ddim_inversion(model, model.encode(picture), SOURCE, Schedule(model.scheduler, 5))
    torch.testing.assert_close(walk.latents[-1][1:], reconstruct(model, plain), rtol=0, atol=1e-10)


@pytest.mark.parametrize("inversion", ["negative-prompt-inversion", "null-text-inversion", "pnp-inversion"])
def test_so_it_is_with_other_inversions(random_model, picture, inversion):
    options = {"inner_steps": 1} if inversion == "null-text-inversion" else {}
    edit, walk = sampled(random_model, picture, switch=1.0, inversion=inversion, **options)
    assert edit.image.tobytes() == edit.reconstruction.tobytes()
    if inversion == "pnp-inversion":
        assert torch.equal(walk.latents[-1][1:], random_model.encode(picture))


def test_switching_at_once_is_plain_sampling_with_the_target(random_model64, picture):
    model = random_model64
    _, walk = sampled(model, picture, switch=0.0, eta=1.0)
    plain = ddim_inversion(model, model.encode(picture), SOURCE, Schedule(model.scheduler, 5))
    expected = follow(model, plain.z_T, plain.moves, guided(model, [TARGET], 7.5))
    torch.testing.assert_close(walk.latents[-1][1:], expected, rtol=0, atol=1e-8)


def test_the_target_phase_is_guided_by_the_mixed_embedding(random_model64, picture):
    model = random_model64
    _, walk = sampled(model, picture, switch=0.4, eta=0.3, seed=5)
    fitted, _ = fit_embedding(model, model.encode(picture), model.embed(TARGET), steps=2, seed=5)
    mixed = 0.3 * model.embed(TARGET) + 0.7 * fitted
    path = Schedule(model.scheduler, 5).sampling()[2:]
    expected = follow(model, walk.latents[2][:1], path, ClassifierFreeGuidance(mixed, model.embed(""), 7.5))
    torch.testing.assert_close(walk.latents[-1][1:], expected, rtol=0, atol=1e-8)


def test_until_the_switch_nothing_depends_on_the_target(random_model, picture):
    walks = [
        sampled(random_model, picture, target, switch=0.6, eta=eta)[1]
        for target, eta in ((TARGET, 0.0), (TARGET, 1.0), ("a photo of a castle in the snow", 0.5))
    ]
    for i in range(4):  # three steps, four latents
        assert all(torch.equal(walk.latents[i], walks[0].latents[i]) for walk in walks)
        assert torch.equal(walks[0].latents[i][0], walks[0].latents[i][1])
    assert not torch.equal(walks[0].latents[4][1], walks[1].latents[4][1])
    assert not torch.equal(walks[0].latents[4][1], walks[2].latents[4][1])


def test_equation_9_can_be_read_off_the_edit_as_elsewhere(random_model64, picture):
    """The copy that carries the prompt schedule is the one that is sampled; the edit hands out the original."""
    inversion = sampled(random_model64, picture)[0].inversion
    gap = inversion.gap()
    torch.testing.assert_close(gap.left, gap.right, rtol=1e-9, atol=1e-9)
    reached = inversion.latents[-1] + gap.right[-1] * inversion.moves[-1].alpha_to ** 0.5
    torch.testing.assert_close(reconstruct(random_model64, inversion), reached, rtol=0, atol=1e-8)


def test_the_switch_counts_the_steps_that_are_walked(random_model, picture):
    """Edit-friendly inversion leaves 7 of 10 steps; 0.7 of those are 5."""
    edit, walk = sampled(random_model, picture, steps=10, inversion="edit-friendly", switch=0.7, text_steps=0)
    together = [torch.equal(z[0], z[1]) for z in walk.latents]
    assert together == [True] * 6 + [False] * 2
    assert edit.image.tobytes() != edit.reconstruction.tobytes()


def test_without_text_optimisation_eta_means_nothing(random_model, picture):
    images = {sampled(random_model, picture, text_steps=0, eta=eta)[0].image.tobytes() for eta in (0.0, 0.5, 1.0)}
    assert len(images) == 1


def test_cost(random_model, picture):
    edit, _ = sampled(random_model, picture, switch=0.4, text_steps=3, text_batch=2)
    assert edit.nfe == 5 + 3 * 2 + 2 * 2 + 3 * 3  # inversion, text, two rows unguided, then one of them guided


def test_outside_a_mask_the_source_stays(random_model, picture):
    mask = torch.zeros(16, 16)
    mask[4:12, 4:12] = 1
    edit, walk = sampled(random_model, picture, switch=0.4, mask=mask.numpy())
    outside = mask == 0
    z_0 = edit.inversion.latents[-1]
    assert torch.equal(walk.latents[-1][1][:, outside], z_0[0][:, outside])
    assert not torch.equal(walk.latents[-1][1][:, ~outside], z_0[0][:, ~outside])


def test_switch_asks_the_one_whose_turn_it_is():
    switch = Switch(lambda *_: "first", lambda *_: "second", 2)
    assert [switch(None, None, 0, i) for i in range(4)] == ["first", "first", "second", "second"]


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"switch": 1.5}, "switch"),
        ({"eta": -0.1}, "eta"),
        ({"eta": float("nan")}, "eta"),
        ({"text_steps": -1}, "text_steps"),
        ({"text_rate": 0.0}, "text_rate"),
        ({"text_batch": 0}, "text_batch"),
    ],
)
def test_bad_options_raise_before_any_work(random_model, picture, option, message):
    before = random_model.nfe
    with pytest.raises(EditbookError, match=message):
        sampled(random_model, picture, **option)
    assert random_model.nfe == before


def test_what_its_two_knobs_trade(pocket_model):
    """A late switch and a small eta both keep more of the picture, and move the object less."""
    tasks = [editbook.pocket.bench().task(name) for name in ("522000000000", "524000000001")]  # they jump
    reader = load_reader()
    settings = {
        "early": {"switch": 0.0, "eta": 1.0, "text_steps": 0},
        "late": {"switch": 0.6, "eta": 1.0, "text_steps": 0},
        "fitted": {"switch": 0.0, "eta": 0.0, "text_steps": 20, "text_rate": 3e-2},
    }
    outside, overlap = {}, {}
    for name, options in settings.items():
        edits = [
            editbook.edit(
                pocket_model,
                task.source_image,
                ID,
                source=task.source_prompt,
                target=task.target_prompt,
                steps=20,
                guidance_scale=3.0,
                **options,
            )
            for task in tasks
        ]
        outside[name] = sum(truth_psnr(e.image, t).outside for e, t in zip(edits, tasks, strict=True)) / len(tasks)
        found = [reading.objects[0].mask for reading in reader([edit.image for edit in edits])]
        overlap[name] = sum(mask_iou(m, t.target_scene.masks()[0]) for m, t in zip(found, tasks, strict=True))
    assert outside["late"] > outside["early"] + 0.5
    assert outside["fitted"] > outside["early"]
    assert overlap["early"] > overlap["late"] + 0.2  # summed over the tasks
    assert overlap["early"] > overlap["fitted"] + 0.2
