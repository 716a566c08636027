"""ProxEdit: what it drops, what it keeps, and what it pulls back."""

from __future__ import annotations

import pytest
import torch

import editbook
from editbook.attention import MutualSelfAttention
from editbook.errors import EditbookError
from editbook.inversion import make_inverter
from editbook.methods.base import reconstruct, sample_back
from editbook.methods.tuning_free.inversion.proxedit import shrink, threshold
from editbook.sampling import Schedule, Trajectory

SOURCE = "a photo of a cat on the beach"
TARGET = "a photo of a fox on the beach"


def invert(model, picture, name="proxedit", steps=5, **options):
    inverter = make_inverter(name, options)
    return inverter(model, model.encode(picture), SOURCE, Schedule(model.scheduler, steps))


def back(model, inversion, scale=7.5, **options):
    return sample_back(model, inversion, [SOURCE, TARGET], scale, **options)


@pytest.fixture
def delta():
    return torch.randn(3, 4, 16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("quantile", [0.0, 0.3, 0.7, 0.95, 1.0])
def test_the_kept_share_of_each_row_is_what_was_asked(delta, quantile):
    scaled = delta * torch.tensor([1.0, 10.0, 0.1], dtype=torch.float64).view(3, 1, 1, 1)
    for prox in ("l0", "l1"):
        kept = shrink(scaled, threshold(scaled, quantile), prox) != 0
        share = kept.double().mean((1, 2, 3))
        torch.testing.assert_close(share, torch.full_like(share, 1 - quantile), rtol=0, atol=2 / 1024)


def test_hard_leaves_survivors_alone_and_soft_shrinks_them_by_lambda(delta):
    size = threshold(delta, 0.7)
    hard, soft = shrink(delta, size, "l0"), shrink(delta, size, "l1")
    survive = delta.abs() > size
    assert torch.equal(hard[survive], delta[survive])
    torch.testing.assert_close((delta - soft).abs()[survive], size.expand_as(delta)[survive])
    assert not hard[~survive].any()
    assert not soft[~survive].any()
    assert torch.equal(soft.sign(), hard.sign())


def test_both_are_the_proximal_operators_that_they_are_called(delta):
    """argmin over x of (x - d)^2 / 2 + penalty, searched on a fine grid: lambda |x| and lambda^2 / 2 [x != 0]."""
    values, size = delta.flatten()[:40], torch.tensor(0.8, dtype=torch.float64)
    grid = torch.linspace(-4, 4, 80001, dtype=torch.float64)
    fit = (grid - values[:, None]).square() / 2
    penalties = {"l1": size * grid.abs(), "l0": size**2 / 2 * (grid.abs() > 1e-9)}
    for prox, penalty in penalties.items():
        best = grid[(fit + penalty).argmin(1)]
        torch.testing.assert_close(shrink(values, size, prox), best, rtol=0, atol=2e-4)


def test_what_the_official_code_computes(delta):
    size = threshold(delta, 0.6)
    assert torch.equal(shrink(delta, size, "l0", official=True), shrink(delta, size, "l1"))
    line = torch.tensor([[[[0.5, 1.5, 1.9, 2.1, 3.5]]]], dtype=torch.float64)
    twice = shrink(line, torch.ones(1, 1, 1, 1, dtype=torch.float64), "l1", official=True)
    torch.testing.assert_close(twice, torch.tensor([[[[0.0, 0.5, 0.9, 0.1, 1.5]]]], dtype=torch.float64))
    one = delta[:1]
    with_source = torch.cat([torch.zeros_like(one), one])
    official = threshold(one, 0.7, official=True)
    torch.testing.assert_close(official, threshold(with_source, 0.7, official=True)[1:])
    share = (one.abs() <= official).double().mean()
    assert float(share) == pytest.approx(2 * 0.7 - 1, abs=2 / 1024)


def test_a_negative_quantile_is_the_threshold(delta):
    assert torch.equal(threshold(delta, -0.25), torch.full((3, 1, 1, 1), 0.25, dtype=torch.float64))


def test_nothing_dropped_is_negative_prompt_inversion(random_model64, picture):
    model = random_model64
    expected = back(model, invert(model, picture, "negative-prompt-inversion"))
    free = back(model, invert(model, picture, quantile=0.0, pull="none"))
    torch.testing.assert_close(free, expected, rtol=0, atol=1e-10)
    # Pulled as well, the target is as free, since all of it is kept; the source row is pulled.
    pulled = back(model, invert(model, picture, quantile=0.0, pull_rate=1.0))
    torch.testing.assert_close(pulled[1], expected[1], rtol=0, atol=1e-10)
    torch.testing.assert_close(pulled[:1], model.encode(picture), rtol=0, atol=0)


@pytest.mark.parametrize("prox", ["l0", "l1"])
def test_everything_dropped_is_the_reconstruction_in_both_rows(random_model64, picture, prox):
    model = random_model64
    expected = reconstruct(model, invert(model, picture, "negative-prompt-inversion"))
    z_0 = back(model, invert(model, picture, prox=prox, quantile=1.0, pull="none"))
    torch.testing.assert_close(z_0, expected.expand_as(z_0), rtol=0, atol=1e-9)


def test_the_source_row_depends_neither_on_q_nor_on_w(random_model64, picture):
    model, rows = random_model64, []
    for quantile, scale in ((0.3, 7.5), (0.9, 7.5), (0.3, 2.0)):
        rows.append(back(model, invert(model, picture, quantile=quantile), scale)[0])
    torch.testing.assert_close(rows[1], rows[0], rtol=0, atol=1e-12)
    torch.testing.assert_close(rows[2], rows[0], rtol=0, atol=1e-12)


def test_pulled_all_the_way_unkept_places_are_on_the_path_bit_for_bit(random_model, picture):
    inversion = invert(random_model, picture, quantile=0.7, pull_rate=1.0, dilate=0)
    walk, directions, proximal = Trajectory(), [], inversion.direction

    def watched(delta, t, i):
        directions.append(proximal(delta, t, i))
        return directions[-1]

    inversion.direction = watched
    back(random_model, inversion, callbacks=[walk])
    for i, move in enumerate(inversion.moves):
        z, z_star = walk.latents[i + 1], inversion.latents[i + 1]
        dropped = directions[i][0] == 0
        assert 0.6 < float(dropped.double().mean()) < 0.8
        assert torch.equal(z[0], z_star[0]) == (move.t < 400)
        assert torch.equal(z[1][dropped], z_star[0][dropped]) == (move.t < 400)
        assert not torch.equal(z[1], z_star[0])


def test_early_steps_instead(random_model, picture):
    inversion = invert(random_model, picture, pull_rate=1.0, pull_t=-600)
    walk = Trajectory()
    back(random_model, inversion, callbacks=[walk])
    pulled = [torch.equal(z[0], z_star[0]) for z, z_star in zip(walk.latents[1:], inversion.latents[1:], strict=True)]
    assert pulled == [move.t > 600 for move in inversion.moves]


def test_the_region_grows_by_dilation_and_over_channels(random_model, picture):
    """A row that keeps more is pulled less: the mean distance to the path grows."""
    free = []
    for options in ({"dilate": 0}, {"dilate": 1}, {"dilate": 1, "region": "spatial"}):
        inversion, walk = invert(random_model, picture, quantile=0.98, pull_rate=1.0, **options), Trajectory()
        back(random_model, inversion, callbacks=[walk])
        free.append(int((walk.latents[-1][1] != inversion.latents[-1][0]).sum()))
    assert free == sorted(free)
    assert free[0] > 0
    assert len(set(free)) == 3


def test_reconstruction_guidance_ends_in_the_picture_where_nothing_is_kept(random_model64, picture):
    """The last step goes (almost) to z_0, so pulling the clean estimate all the way gives the picture itself."""
    model, z_0 = random_model64, random_model64.encode(picture)
    ends = {}
    for pull in ("none", "reconstruction"):
        inversion = invert(model, picture, pull=pull, pull_rate=1.0, quantile=1.0)
        ends[pull] = float((back(model, inversion) - z_0).square().mean().sqrt())
    last = model.scheduler.final_alpha_cumprod
    assert ends["reconstruction"] < 2 * float((1 - last) ** 0.5)
    assert ends["reconstruction"] < ends["none"]


def test_two_targets_have_thresholds_of_their_own(random_model64, picture):
    model = random_model64
    other = "a photo of a castle on the beach"
    both = sample_back(model, invert(model, picture), [SOURCE, TARGET, other], 7.5)
    for k, target in enumerate((TARGET, other), 1):
        alone = sample_back(model, invert(model, picture), [SOURCE, target], 7.5)
        torch.testing.assert_close(both[k], alone[1], rtol=0, atol=1e-9)


def test_cost(random_model, picture):
    def run(**options):
        return editbook.edit(random_model, picture, "proxedit", source=SOURCE, target=TARGET, steps=5, **options).nfe

    assert run() == 5 + 5 * 3
    assert run(attention="masactrl") == 5 + 5 * 3


def test_mutual_self_attention_is_what_it_says(random_model64, picture):
    """The method's walk is the one that its parts make, and the source row repeats DDIM's."""
    model = random_model64
    edit = editbook.edit(
        model, picture, "proxedit", source=SOURCE, target=TARGET, steps=5, attention="masactrl", mutual_start=1
    )
    assert edit.settings["options"]["inversion_options"] == {"quantile": 0.6, "interpolation": 1.0, "pull": "none"}
    inversion = invert(model, picture, quantile=0.6, interpolation=1.0, pull="none")
    control = MutualSelfAttention([16, 8], start=1)
    z_0 = back(model, inversion, source_scale=1.0, attention=control)
    assert model.decode(z_0[1:]).tobytes() == edit.image.tobytes()
    plain = invert(model, picture, "ddim-inversion")
    torch.testing.assert_close(z_0[:1], reconstruct(model, plain), rtol=0, atol=1e-10)
    assert back(model, inversion, source_scale=1.0)[1].sub(z_0[1]).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prox": "l2"}, "prox"),
        ({"pull": "inversoin"}, "Did you mean 'inversion'"),
        ({"region": "pixel"}, "region"),
        ({"quantile": 1.5}, "quantile"),
        ({"quantile": float("nan")}, "quantile"),
        ({"pull_rate": 2.0}, "pull_rate"),
        ({"dilate": -1}, "dilate"),
        ({"guidance_scale": 1.0}, "guidance_scale=1"),
        ({"attention": "masa"}, "attention"),
        ({"inject_null": "all"}, "inject_null"),
        ({"mutual_start": -1}, "mutual_start"),
        ({"attention": "masactrl", "mutual_start": 1000}, "mutual_start must be at most the 2 steps"),
        ({"source_guidance_scale": -1.0}, "source_guidance_scale"),
        ({"attention": "masactrl", "reweight": {"fox": 2.0}}, "prompt-to-prompt"),
    ],
)
def test_bad_options_raise(random_model, picture, options, message):
    with pytest.raises(EditbookError, match=message):
        editbook.edit(random_model, picture, "proxedit", source=SOURCE, target=TARGET, steps=2, **options)


def test_the_background_error_falls_with_q(pocket_model):
    """From Negative-prompt Inversion's down to the reconstruction's, with soft thresholding."""
    from editbook.metrics import psnr

    task = editbook.pocket.task("cat-to-fox")
    outside = []
    for quantile in (0.0, 0.7, 0.9, 0.95, 1.0):
        options = {"steps": 10, "prox": "l1", "quantile": quantile, "pull": "none"}
        prompts = {"source": task.source_prompt, "target": task.target_prompt}
        edit = editbook.edit(pocket_model, task.source_image, "proxedit", **prompts, **options)
        outside.append(psnr(edit.image, task.source_image, 1 - task.mask))
    assert outside == sorted(outside)
    assert outside[-1] == pytest.approx(psnr(edit.reconstruction, task.source_image, 1 - task.mask), abs=0.1)
    assert outside[-1] > outside[0] + 10


def test_it_repairs_what_negative_prompt_inversion_does_around_the_edit(pocket_model):
    """Measured on eight tasks: soft thresholding gains 10 dB outside the mask, hard thresholding with this q 5 dB."""
    from editbook.metrics import truth_psnr

    tasks = [task for task in editbook.pocket.bench().of_type("change object") if task.target_scene.style == "photo"]
    outside = {"npi": 0.0, "l0": 0.0, "l1": 0.0}
    for task in tasks[:2]:
        for name in outside:
            method = "negative-prompt-inversion" if name == "npi" else "proxedit"
            options = {} if name == "npi" else {"prox": name, "quantile": 0.95, "pull": "none"}
            edit = editbook.edit(
                pocket_model,
                task.source_image,
                method,
                source=task.source_prompt,
                target=task.target_prompt,
                steps=20,
                **options,
            )
            outside[name] += truth_psnr(edit.image, task).outside / 2
    assert outside["l1"] > outside["npi"] + 4
    assert outside["l1"] > outside["l0"] > outside["npi"] + 1
