"""Dynamic Prompt Learning: the nouns' vectors change and nothing else does; their attention comes apart."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

import editbook
from editbook.errors import EditbookError
from editbook.inversion import make_inverter
from editbook.methods.base import reconstruct
from editbook.methods.tuning_free.inversion.dynamic_prompt_learning import (
    MeanMaps,
    background_mask,
    noun_losses,
    override_tokens,
)
from editbook.pocket import Change, Scene, Thing, make_task
from editbook.sampling import Schedule

SOURCE = "a photo of a cat and a fox on the beach"
QUICK = {"noun_steps": 2, "inner_steps": 2}


def invert(model, picture, prompt=SOURCE, steps=3, name="dynamic-prompt-learning", **options):
    quick = QUICK if name == "dynamic-prompt-learning" else {"inner_steps": 2, "tolerance": 0.0}
    inverter = make_inverter(name, {**quick, **options})
    return inverter(model, model.encode(picture), prompt, Schedule(model.scheduler, steps), guidance_scale=3.0)


@pytest.mark.parametrize("options", [{"noun_steps": 0}, {"slack": float("inf")}])
def test_without_learning_it_is_null_text_inversion(random_model64, picture, options):
    model = random_model64
    theirs, ours = invert(model, picture, name="null-text-inversion"), invert(model, picture, **options)
    torch.testing.assert_close(ours.null, theirs.null, rtol=0, atol=1e-9)
    torch.testing.assert_close(reconstruct(model, ours), reconstruct(model, theirs), rtol=0, atol=1e-9)
    assert not torch.allclose(invert(model, picture).null, theirs.null, rtol=0, atol=1e-5)


def test_only_the_nouns_are_read_differently(random_model64, picture):
    model = random_model64
    table = model.text_encoder.get_input_embeddings()
    before, plain = table.weight.clone(), model.embed(SOURCE)
    inversion = invert(model, picture)
    assert inversion.nouns == ("cat", "fox")
    assert torch.equal(table.weight, before)
    assert not table._forward_hooks
    assert torch.equal(model.embed(SOURCE), plain)
    vectors = inversion.embed.vectors
    for noun in inversion.nouns:
        ids = model.tokenizer(noun).input_ids[1:-1]
        assert vectors[noun].shape == (3, len(ids), table.embedding_dim)
        moved = (vectors[noun] - before[ids]).abs().amax((1, 2))
        assert (moved.diff() > 0).all()  # each step begins where the last one ended
        assert 0 < float(moved[0]) < 2 * 1.1e-3  # two updates of AdamW with the rate 1e-3


def test_prompts_are_embedded_with_the_nouns_that_they_have(random_model64, picture):
    model = random_model64
    inversion = invert(model, picture)
    other = "a photo of a castle on the beach"
    embedded = inversion.embed(model, [SOURCE, "a bus and a Fox", other])
    assert embedded.shape == (3, 3, *model.embed("").shape[1:])
    assert torch.equal(embedded[:, 2], model.embed(other).expand(3, -1, -1))
    plain = model.embed(["a bus and a Fox"])[0]
    positions = model.tokenizer("a bus and a", add_special_tokens=True).input_ids[:-1]
    # The text encoder is causal: all before the noun is untouched, the noun and what follows is not.
    first = len(positions)
    torch.testing.assert_close(embedded[0, 1, :first], plain[:first], rtol=0, atol=1e-12)
    assert not torch.allclose(embedded[0, 1, first], plain[first], rtol=0, atol=1e-6)
    assert not torch.equal(embedded[0, 1], embedded[2, 1])


def test_overriding_by_the_same_vector_changes_nothing_and_ends_with_the_context(random_model64):
    model = random_model64
    ids = torch.tensor(model.tokenizer(SOURCE).input_ids)
    own = model.text_encoder.get_input_embeddings().weight[ids[[2, 5]]]
    plain = model.embed(SOURCE)
    with override_tokens(model, [2, 5], own):
        assert torch.equal(model.embed(SOURCE), plain)
    with override_tokens(model, [2, 5], own * 2):
        assert not torch.equal(model.embed(SOURCE), plain)
    with pytest.raises(RuntimeError), override_tokens(model, [2, 5], own[:, :-1]):
        model.embed(SOURCE)  # vectors that do not fit
    assert torch.equal(model.embed(SOURCE), plain)


def maps(*kinds, tokens=8, side=6):
    """Attention maps whose token k >= 1 follows the k-th picture; the start token has the rest."""
    stacked = torch.full((side, side, tokens), 1e-3, dtype=torch.float64)
    for k, kind in enumerate(kinds, 1):
        stacked[..., k] = kind
    return stacked / stacked.sum(-1, keepdim=True)


def test_losses_of_maps_that_are_known():
    left, right = torch.zeros(2, 6, 6, dtype=torch.float64)
    left[:, :3], right[:, 3:] = 1, 1
    apart, same = maps(left, right), maps(left, left)
    nowhere = torch.zeros(6, 6, dtype=torch.float64)
    assert noun_losses(apart, [[1], [2]], nowhere)[1:].tolist() == pytest.approx([0, 0], abs=0.01)
    assert float(noun_losses(same, [[1], [2]], nowhere)[2]) == pytest.approx(1)
    assert float(noun_losses(apart, [[1], [2]], left)[1]) == pytest.approx(0.5, abs=0.01)
    assert float(noun_losses(apart, [[1]], left)[1]) == pytest.approx(1, abs=0.01)
    peaked, flat = noun_losses(apart, [[1], [2]], nowhere)[0], noun_losses(maps(), [[1], [2]], nowhere)[0]
    assert float(peaked) < 0.01
    assert float(flat) == pytest.approx(1 - 1 / 6)  # softmax of equal values over the 6 tokens that are left
    one = noun_losses(apart, [[1]], nowhere)
    assert one[2] == 0  # a mean over no pairs would be NaN
    assert torch.isfinite(one).all()


def test_losses_lie_between_0_and_1():
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        random = (5 * torch.randn(6, 6, 8, generator=generator)).softmax(-1)
        mask = (torch.rand(6, 6, generator=generator) > 0.5).float()
        losses = noun_losses(random, [[1], [2, 3], [5]], mask)
        assert (losses >= 0).all()
        assert (losses <= 1 + 1e-6).all()


def test_the_background_is_what_no_noun_owns():
    """Three regions that attend to themselves; the nouns look at two of them."""
    region = torch.zeros(8, 8, dtype=torch.long)
    region[2:5, 0:3], region[2:5, 5:8] = 1, 2
    own = (region.flatten()[:, None] == region.flatten()[None]).double()
    cross = torch.stack([torch.ones(8, 8), *(0.05 + (region == k).float() for k in (1, 2))], -1)
    watched = MeanMaps({"cross": 8, "self": 8})
    for kind, map_ in (("self", own / own.sum(-1, keepdim=True)), ("cross", cross.flatten(0, 1))):
        watched._sums[kind], watched._counts[kind] = map_, 1
    found = background_mask(watched, [[1], [2]], 3, 0.2)
    assert torch.equal(found.bool(), region == 0)
    assert torch.equal(background_mask(watched, [[1]], 3, 0.2).bool(), region != 1)


def test_learning_is_gradual(random_model, picture):
    """A step whose losses are under the thresholds is looked at once and not updated; the thresholds fall."""
    table = random_model.text_encoder.get_input_embeddings().weight
    inversion = invert(random_model, picture, slack=float("inf"))
    assert [len(losses) for losses in inversion.noun_losses] == [1, 1, 1]
    ids = random_model.tokenizer("cat").input_ids[1:-1]
    assert torch.equal(inversion.embed.vectors["cat"][-1], table[ids])
    assert [len(losses) for losses in invert(random_model, picture, slack=0.0).noun_losses] == [2, 2, 2]
    # beta exp(-50 i / (alpha N)): of the losses as they are, find a slack under which the first step only stops.
    first = max(loss / beta for loss, beta in zip(inversion.noun_losses[0][0], (0.3, 0.7, 0.9), strict=True))
    lengths = [len(losses) for losses in invert(random_model, picture, slack=first * 1.01).noun_losses]
    assert lengths[0] == 1
    assert lengths[2] == 2


def test_cost(random_model, picture):
    before = random_model.nfe
    inversion = invert(random_model, picture)
    updates = sum(len(losses) - 1 for losses in inversion.losses)
    assert updates == 3 * 2  # no early stop
    assert random_model.nfe - before == 3 * 3 + updates + sum(map(len, inversion.noun_losses))


def test_options(random_model, picture):
    def chosen(prompt, **options):
        return list(make_inverter("dynamic-prompt-learning", options).chosen(random_model.tokenizer, prompt))

    assert chosen("a photo of a Cat, lying, and a red bus.") == ["cat", "bus"]
    assert chosen("a tiger and a cat", nouns=["tiger"]) == ["tiger"]
    with pytest.raises(EditbookError, match="nouns="):
        chosen("a tiger on a sofa")
    with pytest.raises(EditbookError, match="Did you mean 'tiger'"):
        chosen("a tiger on a sofa", nouns=["tigre"])
    for option, value in {
        "nouns": "cat",
        "noun_steps": -1,
        "noun_rate": 0.0,
        "slack": -1.0,
        "clusters": 1,
        "background_threshold": 1.5,
        "inner_steps": 0.5,
    }.items():
        with pytest.raises(EditbookError, match=option):
            make_inverter("dynamic-prompt-learning", {option: value})


def test_it_runs_under_prompt_to_prompt(random_model, picture):
    edit = editbook.edit(
        random_model,
        picture,
        "dynamic-prompt-learning",
        source=SOURCE,
        target=SOURCE.replace("fox", "dog"),
        steps=3,
        **QUICK,
    )
    assert isinstance(edit.image, Image.Image)
    assert edit.nfe == 3 * 3 + 3 * 2 + sum(map(len, edit.inversion.noun_losses)) + 3 * 4
    assert edit.inversion.background.shape == (16, 16)


def test_nouns_move_onto_their_objects(pocket_model):
    """Mass of each noun's map inside its object rises and on the other one falls; the picture still comes back."""
    model = pocket_model
    things = Thing("cat", x=0.27, size=0.42), Thing("dog", x=0.73, size=0.42)
    task = make_task(Scene("meadow", things, seed=1), Change("change object", "fox", 1))
    masks = [torch.from_numpy(mask) for mask in task.source_scene.masks(16)]
    z_0, schedule = model.encode(task.source_image), Schedule(model.scheduler, 10)
    mass, error = {}, {}
    for rate in (None, 5e-3):
        options = {"inner_steps": 4, "learning_rate": 0.05, "noun_steps": 0 if rate is None else 6}
        options |= {} if rate is None else {"noun_rate": rate}
        inversion = make_inverter("dynamic-prompt-learning", options)(model, z_0, task.source_prompt, schedule)
        watched = MeanMaps({"cross": 16})
        with watched.attached(model.unet, (16, 16), 1):
            error[rate] = float((reconstruct(model, inversion) - z_0).square().mean().sqrt())
        positions = [
            model.tokenizer(task.source_prompt).input_ids.index(model.tokenizer(w).input_ids[1]) for w in ("cat", "dog")
        ]
        heat = [watched.mean()[..., k] / watched.mean()[..., k].sum() for k in positions]
        mass[rate] = [float((heat[a] * masks[b]).sum()) for a, b in ((0, 0), (1, 1), (0, 1), (1, 0))]
    assert sum(mass[5e-3][:2]) > sum(mass[None][:2]) + 0.1
    assert sum(mass[5e-3][2:]) < sum(mass[None][2:]) - 0.1
    assert error[5e-3] < 1.5 * error[None]
