"""Null-text guidance: ordinary guidance where nothing is disturbed, and exactly two latents where something is."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import editbook
from editbook import pocket
from editbook.errors import EditbookError
from editbook.methods.base import guided
from editbook.methods.tuning_free.inversion.null_text_guidance import DisturbedGuidance, known, reference, rollback
from editbook.sampling import Schedule, Trajectory, add_noise, follow

ID = "null-text-guidance"
PROMPT = "a photo of a cat on the beach"


def make(model, image, **options):
    """The edit, and its last walk."""
    walks = []

    def record(step):
        if step.i == 0:
            walks.append(Trajectory())
        walks[-1](step)

    options = {"steps": 10, "guidance_scale": 3.0, **options}
    return editbook.edit(model, image, ID, target=PROMPT, callbacks=[record], **options), walks


def disturbed(model, disturb, start=999.0, scale=3.0):
    return DisturbedGuidance(
        model.embed(PROMPT), model.embed(""), scale, disturb, start, guided(model, [PROMPT], scale)
    )


def test_no_rollback_is_guidance_bit_for_bit(random_model, picture):
    model = random_model
    path = Schedule(model.scheduler, 10).sampling()
    z_T = model.random_latent(0)
    usual = follow(model, z_T, path, guided(model, [PROMPT], 3.0))
    assert torch.equal(follow(model, z_T, path, disturbed(model, rollback(0))), usual)
    assert not torch.equal(follow(model, z_T, path, disturbed(model, rollback(200))), usual)


@pytest.mark.parametrize("options", [{"b": 0}, {"s": 0}])
def test_an_undisturbed_free_sample_is_the_usual_one(random_model, options):
    edit, _ = make(random_model, None, **options)
    assert edit.image.tobytes() == edit.source_image.tobytes()
    usual = follow(
        random_model,
        random_model.random_latent(0),
        Schedule(random_model.scheduler, 10).sampling(),
        guided(random_model, [PROMPT], 3.0),
    )
    assert edit.image.tobytes() == random_model.decode(usual).tobytes()


def test_a_free_sample_is_the_usual_one_above_s(random_model):
    _, (usual, rolled) = make(random_model, None, s=500)
    for move, a, b in zip(usual.moves, usual.latents[1:], rolled.latents[1:], strict=True):
        assert torch.equal(a, b) == (move.t > 500)


def test_without_guidance_the_null_half_is_not_asked(random_model, picture):
    """w = 1: all variants are the conditional sample, and cost one evaluation a step."""
    edits = [
        make(random_model, picture, guidance_scale=1.0, **options)[0]
        for options in ({"b": 0}, {"b": 300}, {"disturbance": "image"})
    ]
    assert len({edit.image.tobytes() for edit in edits}) == 1
    assert {edit.nfe for edit in edits} == {4}  # t = 301, 201, 101, 1


def test_above_s_the_noised_picture_comes_down_as_it_went_up(random_model64, picture):
    model = random_model64
    _, (walk,) = make(model, picture, seed=3, s=400)
    z_0, noise = model.encode(picture), model.random_latent(3)
    for z, move in zip(walk.latents, walk.moves, strict=False):
        closed = add_noise(z_0, noise, move.alpha_from)
        if move.t > 301:
            torch.testing.assert_close(z, closed, rtol=0, atol=1e-9)
    after = walk.moves[-1]
    assert not torch.allclose(walk.latents[-2], add_noise(z_0, noise, after.alpha_from), atol=1e-2)


@pytest.mark.parametrize("disturbance", ["rollback", "image"])
def test_the_null_half_gets_the_other_latent_at_the_same_timestep(random_model, picture, monkeypatch, disturbance):
    calls, noise = [], random_model.noise
    monkeypatch.setattr(
        random_model, "noise", lambda z, t, embeddings: calls.append((z, t, embeddings)) or noise(z, t, embeddings)
    )
    _, (walk,) = make(random_model, picture, s=400, b=200, disturbance=disturbance)
    assert [t for _, t, _ in calls] == [301, 201, 101, 1]
    z_0 = random_model.encode(picture)
    for k, (z, _, embeddings) in enumerate(calls):
        at = 6 + k
        assert torch.equal(z[1:], walk.latents[at])
        assert torch.equal(z[:1], z_0 if disturbance == "image" else walk.latents[at - 2])
        assert torch.equal(embeddings, torch.cat([random_model.embed(""), random_model.embed(PROMPT)]))


def test_rollback_takes_the_nearest_visited_timestep():
    visited = {t: torch.tensor(float(t)) for t in (901, 801, 701, 601)}
    assert rollback(0)(visited, 601) == 601
    assert rollback(100)(visited, 601) == 701
    assert rollback(10)(visited, 601) == 701  # at least one step
    assert rollback(230)(visited, 601) == 801
    assert rollback(900)(visited, 601) == 901  # the start of the walk
    assert rollback(100)({901: visited[901]}, 901) == 901
    assert reference(visited[701])(visited, 601) == 701


def test_a_new_walk_begins_a_new_history(random_model):
    path = Schedule(random_model.scheduler, 5).sampling()
    guidance = disturbed(random_model, rollback(300))
    z_T = random_model.random_latent(1)
    first = follow(random_model, z_T, path, guidance)
    follow(random_model, random_model.random_latent(2), path, guidance)
    assert torch.equal(follow(random_model, z_T, path, guidance), first)


def test_known_noise_needs_no_model():
    noise = torch.randn(1, 4, 2, 2)
    assert torch.equal(known(noise)(None, torch.zeros(3, 4, 2, 2), 5, 0), noise.expand(3, -1, -1, -1))


def test_cost(random_model, picture):
    assert make(random_model, picture, s=400)[0].nfe == 4 * 2
    assert make(random_model, picture, s=400, disturbance="image")[0].nfe == 4 * 2
    assert make(random_model, None)[0].nfe == 2 * 10 * 2  # the undisturbed sample too


def test_outside_a_mask_the_picture_stays(random_model, picture):
    mask = torch.zeros(16, 16)
    mask[4:12, 4:12] = 1
    _, (walk,) = make(random_model, picture, mask=mask.numpy())
    z_0, end = random_model.encode(picture)[0], walk.latents[-1][0]
    assert torch.equal(end[:, mask == 0], z_0[:, mask == 0])
    assert not torch.equal(end[:, mask == 1], z_0[:, mask == 1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"disturbance": "noise"}, "disturbance"),
        ({"s": 1000}, "s of null-text-guidance"),
        ({"b": -1}, "b of null-text-guidance"),
        ({"b": 2.5}, r"\bb\b"),
        ({"s": 0}, "leaves no step"),
    ],
)
def test_bad_options_raise(random_model, picture, options, message):
    with pytest.raises(EditbookError, match=message):
        make(random_model, picture, **options)


def test_the_image_disturbance_needs_a_picture(random_model):
    with pytest.raises(EditbookError, match="needs a picture"):
        make(random_model, None, disturbance="image")


def curvature(image):
    """Absolute Laplacian of the pixels, mean over the channels: fine texture and edges."""
    x = np.asarray(image, float) / 255
    return np.abs(4 * x[1:-1, 1:-1] - x[:-2, 1:-1] - x[2:, 1:-1] - x[1:-1, :-2] - x[1:-1, 2:]).mean(-1)


def scenes(style):
    chosen = [("fox", "meadow"), ("house", "desert"), ("bear", "forest")]
    return [pocket.Scene(b, (pocket.Thing(w, size=0.55),), style=style, seed=k) for k, (w, b) in enumerate(chosen)]


def test_the_image_disturbance_smooths_and_stays_near(pocket_model):
    """Where the world is flat by construction, less is left than of the undisturbed sample."""
    texture, distance = {}, {}
    for b, disturbance in ((0, "rollback"), (0, "image")):
        texture[disturbance], distance[disturbance] = [], []
        for scene in scenes("photo"):
            source = scene.image()
            edit, _ = make(pocket_model, source, steps=25, b=b, disturbance=disturbance)
            flat = curvature(source) < 0.03
            texture[disturbance].append(curvature(edit.image)[flat].mean())
            small = [np.asarray(p.resize((8, 8), 4), float) / 255 for p in (edit.image, source)]
            distance[disturbance].append(np.abs(small[0] - small[1]).mean())
    assert np.mean(texture["image"]) < 0.9 * np.mean(texture["rollback"])
    assert np.mean(distance["image"]) < 0.9 * np.mean(distance["rollback"])


def test_the_rollback_hardens_strokes(pocket_model):
    """On Stable Diffusion the paper finds flatter pictures; on this model texture grows with the contours."""
    changes = []
    for scene in scenes("van Gogh painting"):
        flat = curvature(pocket.Scene(scene.background, scene.objects, seed=scene.seed).image()) < 0.03
        options = {"target": scene.caption(), "steps": 25, "guidance_scale": 3.0}
        usual, rolled = (
            curvature(editbook.edit(pocket_model, scene.image(), ID, **options, b=b).image) for b in (0, 300)
        )
        changes.append((rolled[flat].mean() / usual[flat].mean(), rolled[~flat].mean() / usual[~flat].mean()))
    texture, contours = np.mean(changes, 0)
    assert texture > 1.05
    assert contours > 1.02
