"""What holds for every inversion: bad input is refused before any work, batches where they mean something."""

from __future__ import annotations

import re

import pytest
import torch

import editbook
from editbook.errors import EditbookError
from editbook.inversion import INVERSIONS, make_inverter
from editbook.methods.base import sample_back
from editbook.sampling import Schedule

SOURCE = "a photo of a cat on the beach"
TARGET = "a photo of a fox on the beach"
NAMES = sorted(INVERSIONS)
QUICK = {"null-text-inversion": {"inner_steps": 1}}
BATCHES = [name for name in NAMES if INVERSIONS[name].takes_batch]
PROMPTED = ["edit-friendly-ddpm", "negative-prompt-inversion", "null-text-inversion", "pnp-inversion", "proxedit"]


def invert(model, name, z_0, **options):
    return make_inverter(name, QUICK.get(name, {}))(model, z_0, SOURCE, Schedule(model.scheduler, 2), **options)


def refused(model, message, run):
    """It raises, and asks nothing of the network."""
    before = model.nfe
    with pytest.raises(EditbookError, match=message):
        run()
    assert model.nfe == before


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("scale", [-1.0, float("nan"), float("inf")])
def test_guidance_below_0_is_refused(random_model, name, scale):
    z_0 = random_model.random_latent(0)
    refused(
        random_model,
        f"guidance_scale of {name} must be a finite number of at least 0",
        lambda: invert(random_model, name, z_0, guidance_scale=scale),
    )


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(1, 4, 8, 8), (1, 4, 16, 8), (1, 3, 16, 16), (4, 16, 16)])
def test_latents_of_another_size_are_refused(random_model, name, shape):
    message = rf"z_0 of {name} must be latents \(n, 4, 16, 16\)"
    refused(random_model, message, lambda: invert(random_model, name, torch.zeros(shape)))


@pytest.mark.parametrize("name", sorted(set(NAMES) - set(BATCHES)))
def test_a_batch_is_refused_where_one_picture_is_meant(random_model, name):
    z_0 = random_model.random_latent(0, 2)
    refused(random_model, f"{name} inverts one latent at a time, got 2", lambda: invert(random_model, name, z_0))


@pytest.mark.parametrize("name", BATCHES)
def test_a_batch_is_inverted_row_by_row(random_model64, name):
    model = random_model64
    z_0 = torch.cat([model.random_latent(seed) for seed in (0, 1)])
    both = invert(model, name, z_0)
    for row in range(2):
        alone = invert(model, name, z_0[row : row + 1])
        torch.testing.assert_close(both.z_T[row : row + 1], alone.z_T, rtol=0, atol=1e-9)
    refused(model, "invert them one by one", lambda: sample_back(model, both, [SOURCE, TARGET], 3.0))


def test_batches_are_taken_by_the_inversions_that_walk_plainly():
    plain = {"ddim-inversion", "direct-inversion", "exceptional-prompt", "negative-prompt-inversion", "pnp-inversion"}
    assert set(BATCHES) == plain


@pytest.mark.parametrize("editor", ["direct-inversion", "plug-and-play"])
@pytest.mark.parametrize("inversion", PROMPTED)
def test_a_missing_source_prompt_is_refused_where_the_inversion_is_made_for_it(
    random_model, picture, inversion, editor
):
    def run(**prompts):
        return editbook.edit(
            random_model,
            picture,
            editor,
            target=TARGET,
            inversion=inversion,
            steps=3,
            **prompts,
            **QUICK.get(inversion, {}),
        )

    refused(random_model, f"The inversion {inversion} needs a source prompt: give source='...'", run)
    assert run(source=SOURCE).nfe > 0


@pytest.mark.parametrize(("inversion", "scale"), [("ledits-pp", 3.5), ("edit-friendly-ddpm", 3.5)])
def test_guided_maps_need_a_prompt_and_unguided_ones_do_not(random_model, picture, inversion, scale):
    def run(scale):
        return editbook.edit(
            random_model,
            picture,
            "direct-inversion",
            target=TARGET,
            inversion=inversion,
            inversion_scale=scale,
            steps=3,
        )

    refused(random_model, "needs a source prompt", lambda: run(scale))
    assert run(0.0).nfe > 0


@pytest.mark.parametrize("inversion", PROMPTED)
@pytest.mark.parametrize(("editor", "options"), [("masactrl", {"invert_with": "empty"}), ("diffedit", {})])
def test_the_empty_prompt_is_allowed_where_the_method_wants_it(random_model, picture, inversion, editor, options):
    source = {"source": SOURCE} if editor == "masactrl" else {}
    options = {**options, **source, **QUICK.get(inversion, {})}
    edit = editbook.edit(random_model, picture, editor, target=TARGET, inversion=inversion, steps=3, **options)
    assert edit.inversion.prompt == ""


@pytest.mark.parametrize(
    ("method", "option"),
    [
        ("ddim-inversion", "inversion_scale"),
        ("pnp-inversion", "source_guidance_scale"),
        ("prompt-to-prompt", "source_guidance_scale"),
        ("masactrl", "source_guidance_scale"),
    ],
)
def test_no_guidance_on_the_way_is_below_0(random_model, picture, method, option):
    def run():
        editbook.edit(random_model, picture, method, source=SOURCE, target=TARGET, **{option: -1.0})

    refused(random_model, option, run)


# U-Net evaluations of an edit for each of its N steps: ours, and the paper's or its official code's.
COSTS = {
    "ddim-inversion": (4, 3),
    "direct-inversion": (4, 3),
    "edit-friendly-ddpm": (6, 4),
    "ledits-pp": (4, 3),
    "pnp-inversion": (4, 9),
    "negative-prompt-inversion": (4, 5),
    "proxedit": (4, 5),
    "null-text-inversion": (7, 8),  # and one for each update, in both
}


@pytest.mark.parametrize("name", sorted(COSTS))
def test_an_edit_costs_what_its_docstring_says_beside_the_paper(random_model, picture, name):
    ours, theirs = COSTS[name]
    options = {"edit-friendly-ddpm": {"skip": 0.0}, "null-text-inversion": {"inner_steps": 2, "tolerance": 0.0}}
    updates = 2 * 4 if name == "null-text-inversion" else 0
    edit = editbook.edit(random_model, picture, name, source=SOURCE, target=TARGET, steps=4, **options.get(name, {}))
    assert edit.nfe == 4 * ours + updates
    cost = " ".join(editbook.methods[name].__doc__.partition("Cost:")[2].split())
    assert cost.startswith(f"{ours} N evaluations")
    assert re.search(f"(paper's are|code takes|Editing alone takes) {theirs} N", cost)
