"""Contrastive Denoising Score: the contrast by itself, what it adds to DDS, and that it holds the picture."""

from __future__ import annotations

import math

import pytest
import torch

import editbook
from editbook import pocket
from editbook.attention import sites
from editbook.errors import EditbookError
from editbook.methods.tuning_free.attention.contrastive_denoising_score import (
    ContrastiveGradient,
    PatchFeatures,
    info_nce,
    patches,
)
from editbook.methods.tuning_free.attention.delta_denoising_score import DeltaGradient
from editbook.metrics import psnr, truth_psnr
from editbook.score import descend, draws

SOURCE, TARGET = "a photo of a cat on the beach", "a photo of a fox on the beach"


def made(model, z, target=TARGET, scale=3.0, **options):
    return ContrastiveGradient(DeltaGradient(model, z, SOURCE, target, scale), model.embed(target), **options)


def random(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_the_contrast_of_known_patches():
    different = torch.eye(12, dtype=torch.float64)
    expected = math.log(1 + 11 * math.exp(-1 / 0.07))
    torch.testing.assert_close(info_nce(different, different, 0.07), torch.full((12,), expected, dtype=torch.float64))
    alike = torch.ones(12, 5, dtype=torch.float64)
    torch.testing.assert_close(info_nce(alike, alike, 0.07), torch.full((12,), math.log(12), dtype=torch.float64))


def test_the_official_form_with_a_masked_diagonal():
    """CUT concatenates the right answer with a row whose diagonal is -10: one term exp(-10 / tau) more, nothing."""
    source, edited = (torch.nn.functional.normalize(part, dim=-1) for part in random(2, 30, 8))
    right = (source * edited).sum(-1, keepdim=True)
    wrong = (source @ edited.T).masked_fill(torch.eye(30, dtype=torch.bool), -10.0)
    logits = torch.cat([right, wrong], 1) / 0.07
    official = torch.nn.functional.cross_entropy(logits, torch.zeros(30, dtype=torch.long), reduction="none")
    torch.testing.assert_close(info_nce(source, edited, 0.07), official, rtol=0, atol=1e-12)


def test_the_contrast_sees_directions_and_pairs_only():
    source, edited = random(2, 30, 8)
    loss, order = info_nce(source, edited, 0.07), torch.randperm(30, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(info_nce(3.0 * source, 0.2 * edited, 0.07), loss)
    torch.testing.assert_close(info_nce(source[order], edited[order], 0.07), loss[order])
    assert info_nce(source, edited[order], 0.07).mean() > info_nce(source, source, 0.07).mean() + 1


def test_patches_are_means_of_squares(random_model):
    site = next(site for site in sites(random_model.unet, (16, 16)).values() if site.resolution == 8)
    features = random(64, 5)
    grid = features.reshape(8, 8, 5)
    torch.testing.assert_close(patches(features, site, 2)[5], grid[2:4, 2:4].mean((0, 1)))
    assert torch.equal(patches(features, site, 1), features)


def test_features_are_the_outputs_of_the_decoders_self_attention(random_model64):
    model, seen = random_model64, {}
    names = [name for name, site in sites(model.unet, (16, 16)).items() if site.kind == "self" and site.side == "up"]
    kept, z = PatchFeatures(), model.random_latent(0)
    hooks = [
        model.unet.get_submodule(name.removesuffix(".processor")).register_forward_hook(
            lambda module, inputs, output, name=name: seen.update({name: output})
        )
        for name in names
    ]
    plain = model.noise(z, 500, model.embed(SOURCE))
    with kept.attached(model.unet, (16, 16), 1):
        torch.testing.assert_close(model.noise(z, 500, model.embed(SOURCE)), plain, rtol=0, atol=1e-12)
    for hook in hooks:
        hook.remove()
    assert len(kept.outputs) == len(names) > 2
    for (site, output), name in zip(kept.outputs.items(), names, strict=True):
        assert sites(model.unet, (16, 16))[name] == site
        torch.testing.assert_close(output, seen[name][0], rtol=0, atol=1e-12)


def test_weight_0_is_dds_to_the_bit(random_model, picture):
    options = {"source": SOURCE, "target": TARGET, "steps": 3, "seed": 2}
    dds = editbook.edit(random_model, picture, "delta-denoising-score", **options)
    free = editbook.edit(random_model, picture, "contrastive-denoising-score", contrastive_weight=0.0, **options)
    held = editbook.edit(random_model, picture, "contrastive-denoising-score", contrastive_weight=2000.0, **options)
    assert free.image.tobytes() == dds.image.tobytes() != held.image.tobytes()
    assert free.nfe == dds.nfe == held.nfe - 3


def test_equal_prompts_leave_the_contrast_alone(random_model):
    """DDS is 0 there; the contrast is not, as neighbouring patches are alike: only weight 0 stays where it is."""
    z = 0.5 * random_model.random_latent(0)
    g, pull, _ = made(random_model, z, SOURCE).parts(random_model, z, next(iter(draws(random_model, 1))))
    assert g.abs().max() == 0
    assert pull.abs().max() > 0
    still = descend(random_model, z, made(random_model, z, SOURCE, weight=0.0), steps=2, step_size=1.0)
    assert torch.equal(still, z)


def test_the_gradient_is_that_of_the_loss(random_model64):
    """Against a finite difference, along a random direction, with the official factor 3 H W / 2000."""
    model = random_model64
    z, edited = 0.5 * model.random_latent(0), 0.5 * model.random_latent(1)
    draw, gradient = next(iter(draws(model, 1, seed=1))), made(model, z)
    _, pull, _ = gradient.parts(model, edited, draw)

    def loss(latent, text):
        kept = PatchFeatures()
        with torch.no_grad(), kept.attached(model.unet, (16, 16), 1):
            model.noise(draw(latent), draw.t, model.embed(text))
        return kept.outputs

    source, direction = loss(z, SOURCE), model.random_latent(2)
    ends = [float(gradient.contrast(source, loss(edited + sign * 1e-4 * direction, TARGET))) for sign in (1, -1)]
    slope = (ends[0] - ends[1]) / 2e-4
    assert float((pull * direction).sum()) == pytest.approx(3.0 * 256 / 2000 * slope, rel=1e-4)


def test_nothing_of_the_network_is_touched(random_model):
    before = {name: value.clone() for name, value in random_model.unet.named_parameters()}
    z = random_model.random_latent(0)
    descend(random_model, z, made(random_model, z), steps=2, step_size=0.05)
    for name, value in random_model.unet.named_parameters():
        assert torch.equal(value, before[name])
        assert value.grad is None


@pytest.mark.parametrize(
    ("bad", "message"),
    [({"contrastive_weight": -1.0}, "contrastive_weight"), ({"temperature": 0.0}, "temperature"),
     ({"positions": 1}, "positions"), ({"contrastive_weight": math.nan}, "contrastive_weight")],
)  # fmt: skip
def test_bad_options(bad, message, random_model, picture):
    with pytest.raises(EditbookError, match=message):
        editbook.edit(random_model, picture, "contrastive-denoising-score", source=SOURCE, target=TARGET, **bad)


def test_the_leash_holds(pocket_model):
    """More weight: less change, and less error outside the mask than DDS at as many updates."""
    task = pocket.task("golden-car")
    changes, outside = [], []
    for weight in (0.0, 100.0, 1000.0):
        edit = editbook.edit(
            pocket_model,
            task.source_image,
            "contrastive-denoising-score",
            source=task.source_prompt,
            target=task.target_prompt,
            contrastive_weight=weight,
            guidance_scale=4.0,
            steps=20,
        )
        changes.append(psnr(edit.image, task.source_image))
        outside.append(truth_psnr(edit.image, task).outside)
    assert changes == sorted(changes)
    assert outside[0] < outside[1]
