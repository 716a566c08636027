"""Attention across pictures: contrast, the balanced halves, and rows that must not notice."""

from __future__ import annotations

import pytest
import torch

from editbook.attention import Capture, Chain, CrossImageAttention, IntegratedAttention, contrast, null_of, sites
from editbook.errors import EditbookError

PROMPTS = ["a photo of a cat on the beach", "a golden fox", "a pencil sketch of a castle at night"]
ALL = (0.0, 1.0)
NONE = (0.0, 0.0)


def noise(model, control=None, null=0, same=False):
    """One estimate for three rows, of other latents and prompts or all of the same, behind as many null rows."""
    count = null + 3
    z = model.random_latent(0, count) if same else torch.cat([model.random_latent(seed) for seed in range(count)])
    text = torch.cat([model.embed("").expand(null, -1, -1), model.embed([PROMPTS[0]] * 3 if same else PROMPTS)])
    with torch.no_grad():
        if control is None:
            return model.noise(z, 500, text)
        with control.attached(model.unet, (16, 16), 3):
            return model.noise(z, 500, text)


def integrated(appearance=ALL, structure=ALL, **options):
    return IntegratedAttention([16, 8], 7, appearance, structure, (0, 1, 2), **options)


def random_rows(heads=4, pixels=30, keys=64):
    return (3 * torch.randn(heads, pixels, keys, generator=torch.Generator().manual_seed(0)).double()).softmax(-1)


def test_contrast_of_strength_1_is_the_identity():
    rows = random_rows()
    for over in ("keys", "heads"):
        assert torch.equal(contrast(rows, 1.0, over), rows)


def test_contrast_is_the_formula_and_sums_to_1_before_the_clip():
    rows = random_rows()
    free = (rows - 1 / 64) * 1.67 + 1 / 64
    torch.testing.assert_close(free.sum(-1), torch.ones(4, 30).double())
    sharp = contrast(rows, 1.67)
    torch.testing.assert_close(sharp, free.clamp(0, 1))
    assert sharp.min() == 0
    assert sharp.max() <= 1
    assert sharp.sum(-1).mean() > 1.2  # keys that were clipped at 0 gave less than was taken from them
    assert not torch.allclose(sharp, contrast(rows, 1.67, "heads"))
    assert contrast(rows.half(), 1.67).dtype == torch.float16


@pytest.mark.parametrize(("base", "halved"), [("e", True), ("2", False)])
def test_the_appearance_half_carries_half_of_the_mass(base, halved):
    """With the natural log in every row; with the official log2 it does not."""
    control = integrated(base=base)
    site = next(s for s in sites_of_decoder())
    scores = 2 * torch.randn(3, 4, 64, 128, generator=torch.Generator().manual_seed(1)).double()
    rescored = control.rescore(scores, site)
    assert torch.equal(rescored[:2], scores[:2])
    assert torch.equal(rescored[2][..., 64:], scores[2][..., 64:])
    mass = rescored[2].softmax(-1)[..., :64].sum(-1)
    assert bool((mass - 0.5).abs().max() < 1e-12) == halved
    half = control.rescore(scores.half(), site)
    assert half.dtype == torch.float16
    assert torch.isfinite(half).all()
    assert torch.isfinite(control.rescore(scores * 1e4, site)).all()  # no exp overflows


def sites_of_decoder():
    from editbook.attention import Site

    return [Site("self", "up", 8, 7, 8, 8)]


def test_integrated_attention_is_its_definition(random_model64):
    """At one layer of the decoder, written out with Q, K and V of the three rows."""
    model = random_model64
    layer = model.unet.up_blocks[-1].attentions[0].transformer_blocks[0].attn1
    hidden = torch.randn(3, 256, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with torch.no_grad(), integrated().attached(model.unet, (16, 16), 3):
        out = layer(hidden)
    with torch.no_grad():
        q, k, v = (
            part(hidden).unflatten(-1, (layer.heads, -1)).transpose(1, 2)
            for part in (layer.to_q, layer.to_k, layer.to_v)
        )
        scale = layer.scale
        along = contrast((q[0] @ k[0].mT * scale).softmax(-1), 1.67)
        own = q[2] @ k[2].mT * scale
        b = along @ (q[2] @ k[1].mT * scale)
        c = (own.exp().sum(-1, keepdim=True) / b.exp().sum(-1, keepdim=True)).log()
        mixed = contrast(torch.cat([b + c, own], -1).softmax(-1), 1.67) @ torch.cat([v[1], v[2]], -2)
        expected = layer.to_out[0](mixed.transpose(0, 1).flatten(1))
        helper = layer.to_out[0]((((q[1] @ k[1].mT) * scale).softmax(-1) @ v[1]).transpose(0, 1).flatten(1))
    torch.testing.assert_close(out[2], expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(out[1], helper, rtol=0, atol=1e-12)


CONTROLS = {
    "both": integrated,
    "appearance": lambda: integrated(structure=NONE),
    "halves": lambda: integrated(structure=NONE, always=True),
    "structure": lambda: integrated(appearance=NONE),
    "cross": lambda: CrossImageAttention({16: ALL, 8: ALL}, (0, 1, 2), 1.67, 0.0),
    "mixed": lambda: CrossImageAttention({16: ALL, 8: ALL}, (0, 1, 2), 1.67, 1.0),
}


@pytest.mark.parametrize("null", [0, 1, 2, 3])
@pytest.mark.parametrize("name", CONTROLS)
def test_only_the_targets_conditional_row_changes(random_model64, name, null):
    moved = (noise(random_model64, CONTROLS[name](), null) - noise(random_model64, null=null)).abs().amax((1, 2, 3))
    assert (moved[:-1] < 1e-11).all()
    assert moved[-1] > 1e-4


@pytest.mark.parametrize("name", ["appearance", "structure"])
def test_paths_that_are_all_equal_give_the_path(random_model64, name):
    out = noise(random_model64, CONTROLS[name](), same=True)
    torch.testing.assert_close(out[2], noise(random_model64, same=True)[0], rtol=0, atol=1e-11)


def test_phases_follow_the_spans(random_model):
    control = integrated((0.08, 0.8), (0.0, 0.5))
    fine, coarse = (
        next(s for s in sites(random_model.unet, (16, 16)).values() if s.kind == "self" and s.index == index)
        for index in (8, 6)
    )
    found = {}
    for step in range(50):
        control.begin_step(step, 50)
        found.setdefault((control.phase(fine), control.phase(coarse)), []).append(step)
    assert found == {
        ("structure", ""): list(range(4)),
        ("both", "appearance"): list(range(4, 25)),
        ("appearance", "appearance"): list(range(25, 40)),
        ("", ""): list(range(40, 50)),
    }
    quiet = integrated(NONE, ALL, structure_alone=False)
    assert quiet.phase(fine) == ""


def test_the_structure_answers_in_every_fifth_of_the_early_steps(random_model64):
    """There keys and values are the structure's own, as with the appearance in its place."""
    one, other = CONTROLS["mixed"](), CrossImageAttention({16: ALL, 8: ALL}, (0, 0, 2), 1.67, 0.0)
    for step, equal in {0: True, 1: False, 5: True, 6: False}.items():
        for control in (one, other):
            control.begin_step(step, 10)
        same = torch.equal(noise(random_model64, one), noise(random_model64, other))
        assert same == equal
    one.enabled = False
    assert torch.equal(noise(random_model64, one), noise(random_model64))


def test_helpers_keep_their_maps_beside_it(random_model64):
    capture = Capture(["self"], [16])
    noise(random_model64, Chain([integrated(), capture]))
    for (site, _), record in capture.records.items():
        torch.testing.assert_close(record[:2].sum(-1), torch.ones(2, 256))
        assert record.shape[-1] == (512 if site.side == "up" else 256)


@pytest.mark.parametrize(
    ("row", "batch", "rows", "null"), [(0, 6, 3, 0), (2, 6, 3, 2), (2, 4, 3, 0), (1, 4, 3, None), (0, 3, 3, None)]
)
def test_null_rows_are_those_of_the_last_rows(row, batch, rows, null):
    assert null_of(row, batch, rows) == null


def test_bad_options_raise():
    with pytest.raises(EditbookError, match="Did you mean 'keys'"):
        integrated(over="key")
    with pytest.raises(EditbookError, match="base of the logarithm"):
        integrated(base="10")
    with pytest.raises(EditbookError, match="in order"):
        integrated((0.8, 0.2))
