"""TF-ICON: where each score comes from, where each cell's latent does, and that the object takes on the style."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

import editbook
from editbook import pocket
from editbook.attention import Chain, Control, sites
from editbook.errors import EditbookError
from editbook.inversion.exceptional import exceptional_inversion
from editbook.masks.place import box_of, paste
from editbook.methods.tuning_free.attention.tf_icon import ComposeScores
from editbook.metrics import psnr
from editbook.sampling import ClassifierFreeGuidance, Schedule, follow

TARGET = "a watercolour of a cat on the beach"


def area(rows, columns):
    mask = torch.zeros(1, 1, 16, 16, dtype=torch.bool)
    mask[..., slice(*rows), slice(*columns)] = True
    return mask


BOX, THING = area((4, 14), (4, 14)), area((6, 12), (6, 12))


class Keep(Control):
    """Queries, keys, scores before and after, and probabilities of every self-attention layer."""

    reads_scores = True

    def __init__(self):
        self.projected, self.scores, self.probabilities = {}, {}, {}

    def wants(self, site):
        return site.kind == "self"

    def exchange(self, projected, site, rows):
        self.projected[site] = projected
        return projected

    def rescore(self, scores, site):
        self.scores[site] = scores
        return scores

    def apply(self, probabilities, site):
        self.probabilities[site] = probabilities
        return probabilities


def noise(model, control=None):
    z = torch.cat([model.random_latent(seed) for seed in range(4)])  # a null row, then the three
    text = model.embed(["", "", "", TARGET])
    with torch.no_grad():
        if control is None:
            return model.noise(z, 400, text)
        control.begin_step(0, 4)
        with control.attached(model.unet, (16, 16), 3):
            return model.noise(z, 400, text)


def test_every_block_of_the_scores_comes_from_where_it_should(random_model64):
    model, before, after = random_model64, Keep(), Keep()
    compose = ComposeScores(BOX, THING, 1, 1)
    noise(model, Chain([before, compose, after]))
    for site, scores in after.scores.items():
        own, edited = before.scores[site], scores[2]
        assert torch.equal(scores[:2], own[:2])
        inside, thing = compose.at(BOX, site), compose.at(THING & BOX, site)
        if site.resolution == 16:
            assert torch.equal(inside, BOX.flatten())
            assert torch.equal(thing, THING.flatten())
        query, key = (part[1:] for part in before.projected[site][:2])
        mixed = query[0] @ key[1].transpose(-1, -2) * query.shape[-1] ** -0.5
        assert torch.equal(edited[:, ~inside][:, :, ~inside], own[0][:, ~inside][:, :, ~inside])
        assert torch.equal(edited[:, thing][:, :, thing], own[1][:, thing][:, :, thing])
        torch.testing.assert_close(edited[:, ~thing][:, :, thing], mixed[:, ~thing][:, :, thing])
        torch.testing.assert_close(edited[:, thing][:, :, ~thing], mixed[:, ~thing][:, :, thing].transpose(-1, -2))
        around = inside & ~thing
        assert torch.equal(edited[:, around][:, :, ~thing], own[2][:, around][:, :, ~thing])
        torch.testing.assert_close(scores.softmax(-1), after.probabilities[site])
    assert any(compose.at(THING & BOX, site).any() for site in after.scores)


def test_the_gates_and_an_empty_object(random_model64):
    model, plain = random_model64, noise(random_model64)
    closed = noise(model, ComposeScores(BOX, THING, 0, 0))
    torch.testing.assert_close(closed, plain, rtol=0, atol=1e-12)
    parts = [ComposeScores(BOX, THING, *stops) for stops in ((1, 0), (0, 1), (1, 1))]
    estimates = [noise(model, part) for part in parts]
    for estimate in estimates:
        torch.testing.assert_close(estimate[:3], plain[:3], rtol=0, atol=1e-12)  # only the composite changes
        assert (estimate[3] - plain[3]).abs().max() > 1e-3
    empty = noise(model, ComposeScores(BOX, torch.zeros_like(THING), 1, 1))
    torch.testing.assert_close(empty, estimates[0], rtol=0, atol=1e-12)


def test_half_precision(random_model):
    """The control by itself: scores keep their format."""
    control = ComposeScores(BOX, THING, 1, 1)
    site = next(site for site in sites(random_model.unet, (16, 16)).values() if site.kind == "self")
    control._mixed = torch.randn(2, 256, 256).bfloat16()
    scores = torch.randn(3, 2, 256, 256).bfloat16()
    assert control.rescore(scores, site).dtype == torch.bfloat16


@pytest.fixture(scope="module")
def thing():
    scene = pocket.Scene("snow", (pocket.Thing("apple", size=0.5),), "photo", seed=3)
    return {"reference": scene.image(), "reference_mask": scene.masks()[0]}


def test_plain_sampling_from_the_composed_noise_with_all_gates_closed(random_model64, picture, thing):
    model, walks = random_model64, []
    options = {"background_until": 0.0, "tau_a": 0.0, "tau_b": 0.0, "box": (0.25, 0.25, 0.875, 0.875)}
    edit = editbook.edit(
        model, picture, "tf-icon", target=TARGET, steps=3, seed=4, callbacks=[walks.append], **options, **thing
    )
    start = walks[3].z_t
    both = exceptional_inversion(model, model.encode([picture, picture]), Schedule(model.scheduler, 3))
    region = torch.from_numpy(edit.mask)[None, None] > 0
    assert torch.equal(region, area((4, 14), (4, 14)))
    torch.testing.assert_close(start[:1], both.z_T[:1])
    outside, fresh = ~region[0].expand(4, -1, -1), model.random_latent(4)[0]
    torch.testing.assert_close(start[2][outside], start[0][outside])
    theirs, new = start[2] == start[1], start[2] == fresh
    assert (theirs | new)[region[0].expand(4, -1, -1)].all()
    assert theirs.any()
    assert new.any()
    guidance = ClassifierFreeGuidance(model.embed(TARGET), model.embed(""), 5.0)
    sampled = follow(model, start[2:], Schedule(model.scheduler, 3).sampling(), guidance)
    torch.testing.assert_close(walks[-1].z_next[2:], sampled, rtol=0, atol=1e-9)


def test_tau_b_of_1_keeps_the_background_exactly(random_model, picture, thing):
    for tau_b, kept in ((1.0, True), (0.5, False)):
        walks = []
        edit = editbook.edit(
            random_model, picture, "tf-icon", target=TARGET, steps=4, tau_b=tau_b, callbacks=[walks.append], **thing
        )
        outside = torch.from_numpy(edit.mask) == 0
        z = walks[-1].z_next
        assert torch.equal(z[2][:, outside], z[0][:, outside]) == kept
        assert edit.nfe == 4 * (2 + 4)
        gap = edit.inversion.gap()
        assert (gap.left - gap.right).abs().max() < 1e-3


def test_the_object_goes_into_the_box_with_its_proportions(thing):
    from editbook.masks.place import place

    old = box_of(thing["reference_mask"])
    image, mask = place(thing["reference"], thing["reference_mask"], old, 64)
    assert image.tobytes() == thing["reference"].tobytes()
    np.testing.assert_allclose(mask, thing["reference_mask"], atol=1 / 255)
    _, small = place(thing["reference"], thing["reference_mask"], (0.5, 0.0, 1.0, 0.25), 64)
    left, top, right, bottom = box_of(small)
    assert 0.5 <= left < right <= 1
    assert 0 <= top < bottom <= 0.25 + 1 / 64
    assert abs((right - left) / (bottom - top) - (old[2] - old[0]) / (old[3] - old[1])) < 0.15
    assert abs((left + right) / 2 - 0.75) <= 1 / 64


def test_the_same_domain_starts_from_the_pasted_picture(random_model, picture, thing):
    options = {"target": TARGET, "steps": 2, "domain": "same", **thing}
    edit = editbook.edit(random_model, picture, "tf-icon", **options)
    pasted = paste(picture, thing["reference"], thing["reference_mask"])
    assert pasted.tobytes() != picture.tobytes() == edit.source_image.tobytes()
    z_0 = random_model.encode([pasted, pasted])
    torch.testing.assert_close(edit.inversion.latents[-1], z_0[:1], rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"reference": None}, "reference="),
        ({"reference_mask": None}, "reference_mask="),
        ({"reference_mask": np.ones((5, 5))}, "must be the same"),
        ({"reference_mask": np.zeros((64, 64))}, "0 everywhere"),
        ({"box": (0.5, 0.5, 0.2, 0.9)}, "box"),
        ({"box": (0.5, 0.5)}, "box"),
        ({"box": (0.5, 0.5, 0.51, 0.51)}, "larger box"),
        ({"domain": "other"}, "domain"),
        ({"tau_a": 1.5}, "tau_a"),
        ({"token": "cat"}, "token"),
    ],
)
def test_bad_options(bad, message, random_model, picture, thing):
    before = random_model.nfe
    with pytest.raises(EditbookError, match=message):
        editbook.edit(random_model, picture, "tf-icon", target=TARGET, steps=2, **{**thing, **bad})
    assert random_model.nfe == before  # before any walk


def test_the_object_takes_on_the_style_and_stays_itself(pocket_model):
    """Against the exact composite: nearer in colour than the pasted object; and still at its place."""
    mine, pasted = [], []
    for word, background in (("apple", "meadow"), ("fox", "beach")):
        item = pocket.Thing(word, size=0.5)
        photo = pocket.Scene("snow", (item,), "photo", seed=3)
        truth = pocket.Scene(background, (item,), "watercolour", seed=7)
        empty, mask = pocket.Scene(background, (), "watercolour", seed=7).image(), photo.masks()[0]
        edit = editbook.edit(
            pocket_model, empty, "tf-icon", target=truth.caption(), reference=photo.image(), reference_mask=mask,
            steps=15, guidance_scale=2.5,
        )  # fmt: skip
        mine.append(psnr(edit.image, truth.image(), mask))
        pasted.append(psnr(Image.composite(photo.image(), empty, Image.fromarray((mask * 255).astype(np.uint8))),
                           truth.image(), mask))  # fmt: skip
        assert psnr(edit.image, photo.image(), mask) > psnr(empty, photo.image(), mask) + 3
    assert np.mean(mine) > np.mean(pasted) + 3
