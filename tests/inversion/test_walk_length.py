"""An inversion may skip steps: an editor's fractions are of the steps that are left."""

from __future__ import annotations

import pytest

from editbook import edit
from editbook.attention import InjectFeatures, MutualSelfAttention
from editbook.methods import REGISTRY
from editbook.pocket import task as pocket_task

SKIPPING = {"inversion": "edit-friendly-ddpm", "skip": 0.5, "steps": 8}


@pytest.mark.parametrize(("options", "length"), [({"steps": 8}, 8), (SKIPPING, 4)])
def test_the_walk_is_as_long_as_the_inversion_leaves_it(random_model, options, length):
    for name in ("masactrl", "plug-and-play", "ti-guided-edit", "pfb-diff"):
        assert REGISTRY[name].configured(**options).walk_length(random_model) == length


def test_mutual_self_attention_and_features_count_the_steps_that_are_walked(random_model):
    control = REGISTRY["masactrl"].configured(**SKIPPING).control(random_model, ["a cat", "a dog"])
    assert isinstance(control, MutualSelfAttention)
    assert control.start == round(4 * 4 / 50)
    chain = REGISTRY["plug-and-play"].configured(**SKIPPING).control(random_model)
    features = next(part for part in chain.controls if isinstance(part, InjectFeatures))
    assert features.stop == int(0.8 * 4)


def test_a_negative_prompt_fades_over_the_steps_that_are_walked(random_model):
    """With half of the steps skipped the share still ends at 0, so the last of them runs the U-Net once, not twice."""
    task = pocket_task("cat-to-fox", size=random_model.image_size)
    texts = {"source": task.source_prompt, "target": task.target_prompt, "negative_prompt": "a sketch"}
    plain, fading = (
        edit(random_model, task.source_image, "plug-and-play", **SKIPPING, **texts, negative_schedule=schedule).nfe
        for schedule in ("constant", "linear")
    )
    # Constant at 1 is the empty prompt alone; linear mixes in all steps but the first and the last.
    row = (fading - plain) / 2
    assert row == int(row)
    assert row > 0
    assert row == 4  # of one step: both rows, with and without their prompts


@pytest.mark.parametrize("name", ["masactrl", "plug-and-play", "ti-guided-edit", "pfb-diff"])
def test_the_edit_can_be_made(random_model, name):
    task = pocket_task("cat-to-fox", size=random_model.image_size)
    mask = task.mask if name == "pfb-diff" else None
    made = edit(
        random_model,
        task.source_image,
        name,
        source=task.source_prompt,
        target=task.target_prompt,
        mask=mask,
        **SKIPPING,
    )
    assert len(made.inversion.moves) == 4
