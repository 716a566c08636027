"""Direct Inversion: replay at one end of the slider, plain guidance at the other."""

from __future__ import annotations

import pytest
import torch

import editbook
from editbook.errors import EditbookError
from editbook.inversion import ddim_inversion, make_inverter
from editbook.methods.base import guided, reconstruct, sample_back
from editbook.sampling import Schedule, Trajectory, follow

SOURCE = "a photo of a cat on the beach"
TARGET = "a photo of a fox on the beach"


def invert(model, picture, steps=5, **options):
    inverter = make_inverter("direct-inversion", options)
    return inverter(model, model.encode(picture), SOURCE, Schedule(model.scheduler, steps))


def edited(model, inversion, scale=3.0, target=TARGET):
    return sample_back(model, inversion, ["", target], scale)[1:]


@pytest.mark.parametrize("scale", [0.0, 1.0, 3.0, 7.5])
@pytest.mark.parametrize("target", ["", TARGET, "a castle at night"])
def test_full_injection_returns_the_picture_under_any_prompt_and_guidance(random_model64, picture, scale, target):
    model, z_0 = random_model64, random_model64.encode(picture)
    back = edited(model, invert(model, picture, injection=1.0), scale, target)
    torch.testing.assert_close(back, z_0, rtol=0, atol=1e-11)


def test_the_source_row_always_does(random_model64, picture):
    model, z_0 = random_model64, random_model64.encode(picture)
    for options in ({"injection": 0.0}, {"injection_steps": 0}, {"align": "official"}, {"injected": "latent"}):
        inversion = invert(model, picture, **options)
        torch.testing.assert_close(reconstruct(model, inversion, 7.5), z_0, rtol=0, atol=1e-11)
        assert not inversion.gap().terms.any()


@pytest.mark.parametrize("off", [{"injection": 0.0}, {"injection_steps": 0}])
def test_no_injection_is_unconditional_ddim_inversion_with_guidance_bit_for_bit(random_model, picture, off):
    model = random_model
    plain = ddim_inversion(model, model.encode(picture), "", Schedule(model.scheduler, 5), timestep="current")
    expected = follow(model, plain.z_T.repeat(2, 1, 1, 1), plain.moves, guided(model, ["", TARGET], [1.0, 3.0]))[1:]
    # Row 0 differs, but rows of a batch do not see each other.
    torch.testing.assert_close(edited(model, invert(model, picture, **off)), expected, rtol=0, atol=1e-5)
    schedule = Schedule(model.scheduler, 1)  # one step: nothing has parted yet, so not even rounding may differ
    one = make_inverter("direct-inversion", off)(model, model.encode(picture), SOURCE, schedule)
    plain = ddim_inversion(model, model.encode(picture), "", schedule, timestep="current")
    expected = follow(model, plain.z_T.repeat(2, 1, 1, 1), plain.moves, guided(model, ["", TARGET], [1.0, 3.0]))[1:]
    assert torch.equal(edited(model, one), expected)


@pytest.mark.parametrize("share", [0.25, 0.5])
def test_the_noise_gap_is_scaled_by_one_minus_lambda(random_model64, picture, share):
    """At the first step both walks stand at z_T, so the gap can be compared directly."""
    model, gaps = random_model64, []
    for injection in (0.0, share):
        inversion, walk = invert(model, picture, injection=injection), Trajectory()
        sample_back(model, inversion, ["", TARGET], 3.0, callbacks=[walk])
        gaps.append(walk.noises[0][1:] - inversion.noises[0])
    assert gaps[0].abs().max() > 1e-2
    torch.testing.assert_close(gaps[1], (1 - share) * gaps[0], rtol=0, atol=1e-12)


def test_only_the_first_steps(random_model64, picture):
    model, walk = random_model64, Trajectory()
    inversion = invert(model, picture, injection=1.0, injection_steps=2)
    sample_back(model, inversion, ["", TARGET], 3.0, callbacks=[walk])
    on_path = [
        bool((z[1:] - z_star).abs().max() < 1e-11) for z, z_star in zip(walk.latents, inversion.latents, strict=True)
    ]
    assert on_path == [True, True, True, False, False, False]


def test_the_official_alignment_is_one_step_off_and_does_not_reconstruct(random_model64, picture):
    model, z_0 = random_model64, random_model64.encode(picture)
    inversion, walk = invert(model, picture, injection=1.0, align="official"), Trajectory()
    z = sample_back(model, inversion, ["", TARGET], 3.0, callbacks=[walk])[1:]
    assert (z - z_0).abs().max() > 1e-3
    for k in range(1, 5):
        assert torch.equal(walk.noises[k][1:], inversion.noises[k - 1])
    with torch.no_grad():
        identity = model.noise(inversion.z_T, inversion.moves[0].t, model.embed(""))
    torch.testing.assert_close(walk.noises[0][1:], identity, rtol=0, atol=1e-12)


def test_the_latent_in_place_of_noises(random_model64, picture):
    model, walk = random_model64, Trajectory()
    inversion = invert(model, picture, injection=1.0, injected="latent")
    sample_back(model, inversion, ["", TARGET], 3.0, callbacks=[walk])
    assert all(torch.equal(eps[1:], inversion.z_T) for eps in walk.noises)


def test_the_source_prompt_is_not_used(random_model, picture):
    with_it, without = (
        editbook.edit(random_model, picture, "direct-inversion", source=source, target=TARGET, steps=4)
        for source in (SOURCE, "")
    )
    assert with_it.image.tobytes() == without.image.tobytes()
    assert with_it.reconstruction.tobytes() == without.reconstruction.tobytes()


def test_cost(random_model, picture):
    def run(**options):
        return editbook.edit(random_model, picture, "direct-inversion", target=TARGET, steps=5, **options).nfe

    assert run() == 5 + 5 * 3  # 2 a step are the paper's, the third is the source row
    assert run(align="official") == run() + 1


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("injection", 1.5),
        ("injection", float("nan")),
        ("injection_steps", -1),
        ("injection_steps", 2.5),
        ("injection_steps", 1000),
        ("align", "offical"),
        ("injected", "noises"),
    ],
)
def test_bad_options_raise(random_model, picture, option, value):
    with pytest.raises(EditbookError, match=option if option != "align" else "Did you mean 'official'"):
        invert(random_model, picture, **{option: value})


def test_the_slider_goes_from_the_edit_to_the_picture(pocket_model):
    """Measured, not a theorem: the latent's distance to the picture falls with lambda, averaged over two tasks."""
    model, shares = pocket_model, (0.0, 0.5, 1.0)
    tasks = [task for task in editbook.pocket.bench().of_type("change object") if task.target_scene.style == "photo"]
    distances = torch.zeros(len(shares))
    for task in tasks[:2]:
        z_0 = model.encode(task.source_image)
        for k, share in enumerate(shares):
            inverter = make_inverter("direct-inversion", {"injection": share})
            inversion = inverter(model, z_0, "", Schedule(model.scheduler, 20))
            distances[k] += (edited(model, inversion, target=task.target_prompt) - z_0).norm()
    assert (distances.diff() < 0).all()
    assert distances[-1] < 1e-3 * distances[0]
