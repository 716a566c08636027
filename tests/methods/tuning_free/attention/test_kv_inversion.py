"""KV Inversion: tuned arrays, and nothing else tuned; no step ends worse than it began."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import editbook
from editbook.attention import StoredAttention
from editbook.errors import EditbookError
from editbook.inversion import make_inverter
from editbook.methods.base import reconstruct, sample_back
from editbook.sampling import Schedule

SOURCE, TARGET = "a photo of a cat on the beach", "a photo of a jumping cat on the beach"
STEPS = 4


def invert(model, picture, name="kv-inversion", prompt=SOURCE, **options):
    if name == "kv-inversion":
        options = {"inner_steps": 3, **options}
    return make_inverter(name, options)(model, model.encode(picture), prompt, Schedule(model.scheduler, STEPS))


def error(model, inversion, scale=None):
    return float((reconstruct(model, inversion, scale) - inversion.latents[-1]).norm())


@pytest.fixture(scope="module")
def tuned(random_model64, picture):
    return invert(random_model64, picture)


def test_a_share_of_zero_is_plain_sampling(random_model64, picture):
    """beta = 0: nothing to tune, nothing read; for edits too."""
    inversion = invert(random_model64, picture, share=0.0)
    plain = invert(random_model64, picture, "ddim-inversion")
    assert inversion.losses == []
    rows = [
        sample_back(random_model64, one, [SOURCE, TARGET], 3.0, attention=control)
        for one, control in ((inversion, inversion.attention.serving("edits")), (plain, None))
    ]
    torch.testing.assert_close(rows[0], rows[1], rtol=0, atol=1e-11)


def test_without_updates_it_is_tic(random_model64, picture):
    options = {"steps": STEPS, "source": SOURCE, "target": TARGET, "guidance_scale": 3.0}
    images = [
        editbook.edit(random_model64, picture, name, **own, **options).image.tobytes()
        for name, own in (
            ("kv-inversion", {"inner_steps": 0}),
            ("tic-inversion", {"inversion_prompt": "source"}),
            ("kv-inversion", {"inner_steps": 3}),
        )
    ]
    assert images[0] == images[1]
    assert images[0] != images[2]


@pytest.mark.parametrize("options", [{}, {"from_pivot": False}, {"tuning_scale": 3.0}, {"share": 0.5}])
def test_no_loss_ends_above_where_it_began_and_what_is_kept_has_the_best(random_model64, picture, options):
    model = random_model64
    inversion = invert(model, picture, start=0.0, **options)
    assert len(inversion.losses) == STEPS
    # Where a step fits already, an update overshoots, and the recorded arrays stay.
    assert sum(min(losses) < losses[0] for losses in inversion.losses) >= 1
    if options.get("from_pivot", True):  # each step alone, from its pivot, with the arrays that were kept
        control = inversion.attention.serving("all")
        guidance = inversion.guidance(model, [SOURCE], inversion.source_scale)
        for i, move in enumerate(inversion.moves):
            control.begin_step(i, STEPS)
            z = inversion.latents[i]
            with torch.no_grad(), control.attached(model.unet, (16, 16), 1):
                loss = (move(z, guidance(model, z, move.t, i)) - inversion.latents[i + 1]).square().mean()
            assert abs(float(loss) - min(inversion.losses[i])) < 1e-12


def test_only_the_arrays_are_tuned(random_model64, picture):
    model = random_model64
    before = [parameter.clone() for parameter in model.unet.parameters()]
    inversion = invert(model, picture)
    for old, parameter in zip(before, model.unet.parameters(), strict=True):
        assert torch.equal(old, parameter)
        assert parameter.grad is None
        assert not parameter.requires_grad
    arrays = [part for pair in inversion.attention.pairs.values() for part in pair]
    assert not any(array.requires_grad for array in arrays)
    tic = invert(model, picture, "tic-inversion", inversion_prompt="source").attention.pairs
    assert set(tic) == set(inversion.attention.pairs)
    for part in (0, 1):
        assert any(not torch.equal(pair[part], tic[place][part]) for place, pair in inversion.attention.pairs.items())


def test_tuning_brings_the_picture_back_better_than_recording_and_ddim(random_model64, picture, tuned):
    """Rolled out at the w at which the arrays were tuned, 1."""
    kv = error(random_model64, tuned)
    assert kv < error(random_model64, invert(random_model64, picture, "ddim-inversion"))
    assert kv < error(random_model64, invert(random_model64, picture, "tic-inversion", inversion_prompt="source"))


def test_the_order_of_the_arrays_does_not_matter(random_model64, tuned):
    own, kept = error(random_model64, tuned), tuned.attention
    shuffled = {place: tuple(part.flip(2) for part in pair) for place, pair in kept.pairs.items()}
    tuned.attention = StoredAttention(shuffled, kept.start, serves="source")
    assert abs(error(random_model64, tuned) - own) < 1e-8
    tuned.attention = kept


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"share": 2.0}, "share"),
        ({"inner_steps": -1}, "inner_steps"),
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"tuning_scale": float("inf")}, "tuning_scale"),
        ({"side": "decodr"}, "Did you mean 'decoder'"),
    ],
)
def test_bad_options_raise(random_model, picture, options, message):
    with pytest.raises(EditbookError, match=message):
        editbook.edit(random_model, picture, "kv-inversion", source=SOURCE, target=TARGET, **options)


def test_half_precision_is_refused(random_model, picture, monkeypatch):
    monkeypatch.setattr(type(random_model), "dtype", torch.float16, raising=False)
    with pytest.raises(EditbookError, match="float32"):
        make_inverter("kv-inversion", {})(
            random_model, random_model.random_latent(0), SOURCE, Schedule(random_model.scheduler, 2)
        )


def test_cost_is_what_the_docstring_says(random_model, picture):
    before = random_model.nfe
    invert(random_model, picture, start=0.5)
    assert random_model.nfe - before == STEPS + 2 * (3 + 1) + 2


def test_tuning_halves_the_error_of_trained_weights_and_the_arrays_are_the_picture_s(pocket_model):
    model, ratios, inversions = pocket_model, [], []
    for name in ("jumping-dog", "cat-to-fox"):
        task = editbook.pocket.task(name)
        z_0, schedule = model.encode(task.source_image), Schedule(model.scheduler, 8)
        plain, tuned = (
            make_inverter(kind, options)(model, z_0, task.source_prompt, schedule)
            for kind, options in (("ddim-inversion", {}), ("kv-inversion", {"inner_steps": 4}))
        )
        ratios.append(error(model, tuned) / error(model, plain))
        inversions.append(tuned)
    assert np.mean(ratios) < 0.7
    one, other = inversions
    own = error(model, one)
    one.attention = other.attention
    assert error(model, one) > 2 * own
