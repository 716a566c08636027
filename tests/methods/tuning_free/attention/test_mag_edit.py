"""MAG-Edit: the ratios by hand, what the gradient moves and what it leaves alone, and its effect on trained weights."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

import editbook
from editbook import pocket
from editbook.attention import Site
from editbook.errors import EditbookError
from editbook.methods.tuning_free.attention.mag_edit import LateBlend, WordMaps, spatial_ratio, token_ratio
from editbook.metrics import truth_psnr
from editbook.model import Model
from editbook.pocket import Change, Scene, Thing
from editbook.sampling import Move, Step

SOURCE, TARGET = "a photo of a cat on the beach", "a photo of a golden cat on the beach"
MASK = np.zeros((16, 16))
MASK[4:10, 3:9] = 1
INSIDE = torch.from_numpy(MASK > 0)


def run(model, image, steps=4, **options):
    """The edit, and the steps of the common walk."""
    walked = []
    options = {"mask": MASK, "inversion": "ddim-inversion", "guidance_scale": 3.0, "iterations": 2, **options}
    edit = editbook.edit(
        model,
        image,
        "mag-edit",
        **{"source": SOURCE, "target": TARGET, **options},
        steps=steps,
        callbacks=[lambda step: walked.append(step) if len(step.z_next) == 2 else None],
    )
    return edit, walked


def test_the_ratios_by_hand():
    """Two pixels inside, two outside; three tokens; rows that do not sum to 1."""
    maps = torch.tensor([[[1.0, 1.0, 2.0], [0.0, 3.0, 3.0], [9.0, 0.0, 0.0], [1.0, 4.0, 5.0]]])
    mask = torch.tensor([True, True, False, False])
    assert token_ratio([maps], [1], mask).tolist() == [[[(1 / 4 + 3 / 6) / 2]]]
    assert spatial_ratio([maps], [1], mask).tolist() == [[[4 / 8]]]
    assert token_ratio([maps, maps], [0, 2], mask).shape == (2, 1, 2)
    other = maps.clone()
    other[:, 2:] = torch.rand(1, 2, 3)
    assert torch.equal(token_ratio([maps], [1], mask), token_ratio([other], [1], mask))
    assert not torch.equal(spatial_ratio([maps], [1], mask), spatial_ratio([other], [1], mask))


def test_the_ratios_are_0_and_1_at_the_ends():
    mask = torch.tensor([True, False])
    all_of_it = torch.tensor([[[0.0, 1.0], [1.0, 0.0]]])
    for ratio in (token_ratio, spatial_ratio):
        assert float(ratio([all_of_it], [1], mask)) == 1
        assert float(ratio([all_of_it], [0], mask)) == 0
        random = ratio([torch.rand(2, 9, 5)], [1, 3], torch.arange(9) < 4)
        assert ((random >= 0) & (random <= 1)).all()


def test_without_updates_it_is_prompt_to_prompt(random_model64, picture):
    """With the late blend off, exactly; with it the two differ from the blend on."""
    p2p = []
    editbook.edit(
        random_model64,
        picture,
        "prompt-to-prompt",
        source=SOURCE,
        target=TARGET,
        steps=4,
        guidance_scale=3.0,
        edit="refine",
        self_replace=0.5,
        callbacks=[lambda step: p2p.append(step.z_next) if len(step.z_next) == 2 else None],
    )
    for options in ({"iterations": 0}, {"guided": 0.0}, {"scale": 0.0}):
        _, walked = run(random_model64, picture, blend_last=0.0, **options)
        torch.testing.assert_close(walked[-1].z_next, p2p[-1], rtol=0, atol=1e-9)
    _, blended = run(random_model64, picture, iterations=0, blend_last=0.25)
    torch.testing.assert_close(blended[-2].z_next, p2p[-2], rtol=0, atol=1e-9)
    assert (blended[-1].z_next - p2p[-1]).abs().max() > 1e-3


@pytest.mark.parametrize("weights", [(1.0, 0.0), (0.0, 1.0)])
def test_a_small_update_raises_its_ratio(random_model64, picture, weights):
    edit, _ = run(random_model64, picture, scale=0.5, iterations=1, token_weight=weights[0], spatial_weight=weights[1])
    assert [one.step for one in edit.guided] == [0, 1]
    for one in edit.guided:
        raised = one.token if weights[0] else one.spatial
        assert raised[1] > raised[0]


def test_guidance_moves_the_edit_inside_the_mask_only(random_model64, picture):
    """The step is made from the moved latent; the source row is that of Prompt-to-Prompt to the bit."""
    _, plain = run(random_model64, picture, iterations=0, blend_last=0.0)
    edit, walked = run(random_model64, picture, blend_last=0.0)
    for a, b in zip(plain, walked, strict=True):
        torch.testing.assert_close(a.z_next[0], b.z_next[0], rtol=0, atol=1e-9)
    field = edit.guided[0].field
    assert (field[~INSIDE] == 0).all()
    assert (field[INSIDE] > 0).any()
    step = walked[0]  # z_next = move(z + shift, eps(z + shift)): take the shift out again
    shift = (step.z_next - step.move(step.z_t, step.eps))[1] / (step.move.alpha_to / step.move.alpha_from) ** 0.5
    torch.testing.assert_close(shift.norm(dim=0).float(), field, rtol=1e-4, atol=1e-6)
    moved = torch.cat([step.z_t[:1], step.z_t[1:] + shift])
    torch.testing.assert_close(step.move(moved, step.eps), step.z_next, rtol=0, atol=1e-9)


def test_outside_the_grown_mask_the_edit_ends_as_the_source(random_model64, picture):
    edit, walked = run(random_model64, picture)
    grown = torch.zeros(16, 16, dtype=torch.bool)
    grown[3:11, 2:10] = True
    source, target = walked[-1].z_next
    assert torch.equal(target[:, ~grown], source[:, ~grown])
    assert (target[:, grown] != source[:, grown]).any()
    assert np.array_equal(edit.mask > 0, grown.numpy())


def test_the_blend_begins_in_the_official_step():
    blend, on = LateBlend(torch.zeros(1, 1, 1, 1), 0.3), []
    for i in range(50):
        z = torch.tensor([0.0, 1.0]).view(2, 1, 1, 1)
        on.append(bool(blend(Step(i, 50, Move(0, 0.5, 0.6), z, z, z))[1] == 0))
    assert on == [50 - i <= 15 for i in range(50)]


def test_the_model_gets_no_gradient_and_nothing_keeps_a_graph(random_model, picture):
    before = [parameter.clone() for parameter in random_model.unet.parameters()]
    _, walked = run(random_model, picture)
    assert all(torch.equal(a, b) for a, b in zip(before, random_model.unet.parameters(), strict=True))
    assert not any(p.requires_grad or p.grad is not None for p in random_model.unet.parameters())
    assert not any(step.z_next.requires_grad or step.eps.requires_grad for step in walked)


def test_maps_are_kept_only_when_asked_for():
    maps, site = WordMaps(8), Site("cross", "up", 8, 0, 8, 8)
    assert maps.wants(site)
    assert not maps.wants(Site("cross", "mid", 8, 0, 8, 8))
    assert not maps.wants(Site("self", "up", 8, 0, 8, 8))
    assert not maps.active(site)


def test_cost_is_two_rows_an_update_and_two_to_look(random_model, picture):
    edit, _ = run(random_model, picture, iterations=2)
    assert edit.nfe == 4 + 3 * 4 + 2 * (2 + 1) * 2
    assert [len(one.token) for one in edit.guided] == [3, 3]


def test_it_stops_when_it_is_enough(random_model, picture):
    edit, _ = run(random_model, picture, enough=0.0)
    assert [len(one.token) for one in edit.guided] == [1, 1]


def test_half_precision_takes_the_gradient_in_float32(random_model, picture):
    parts = (random_model.unet, random_model.vae, random_model.text_encoder)
    half = Model(*(copy.deepcopy(p).bfloat16() for p in parts), random_model.tokenizer, random_model.scheduler)
    before = [parameter.clone() for parameter in half.unet.parameters()]
    edit, walked = run(half, picture, steps=2, scale=0.5, iterations=1)
    assert half.dtype == torch.bfloat16
    assert walked[-1].z_next.dtype == torch.bfloat16
    assert all(torch.equal(a, b) for a, b in zip(before, half.unet.parameters(), strict=True))
    assert all(one.token[1] > one.token[0] for one in edit.guided)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mask": None}, "needs a mask"),
        ({"target": SOURCE}, "has none"),
        ({"words": "cat"}, "must be new"),
        ({"words": "dragon"}, "Did you mean|not in|dragon"),
        ({"edit": "swap"}, "edit='refine'"),
        ({"blend": "cat"}, "blend=None"),
        ({"scale": -1.0}, "scale"),
        ({"spatial_weight": float("nan")}, "spatial_weight"),
        ({"guided": 1.5}, "guided"),
        ({"iterations": -1}, "iterations"),
        ({"resolution": 7}, "resolution 7"),
        ({"resolution": "8"}, "resolution"),
    ],
)
def test_bad_options_raise_before_any_work(random_model, picture, options, message):
    before = random_model.nfe
    with pytest.raises(EditbookError, match=message):
        run(random_model, picture, **options)
    assert random_model.nfe == before


def test_the_mask_says_what_the_text_does_not(pocket_model):
    """Two cars, "a golden car": Prompt-to-Prompt gilds both. The blend saves the other, guidance makes this one too."""
    scene = Scene("beach", (Thing("car", x=0.27, size=0.42), Thing("car", x=0.73, size=0.42)), seed=40)
    task = pocket.make_task(scene, Change("change material", "golden", 0))
    texts = {"source": "a photo of a car on the beach", "target": "a photo of a golden car on the beach"}
    options = {**texts, "mask": task.mask, "steps": 12, "scale": 10.0}
    p2p, blended, mag = (
        run(pocket_model, task.source_image, **options, **own)[0]
        for own in ({"iterations": 0, "blend_last": 0.0}, {"iterations": 0}, {"iterations": 3})
    )
    alone, kept, guided = (truth_psnr(edit.image, task) for edit in (p2p, blended, mag))
    assert kept.outside > alone.outside + 3
    assert guided.outside > kept.outside
    assert guided.inside > kept.inside + 0.7
    assert all(one.token[-1] > one.token[0] and one.spatial[-1] > one.spatial[0] for one in mag.guided)
