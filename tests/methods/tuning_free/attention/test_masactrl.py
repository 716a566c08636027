"""MasaCtrl: equal prompts give equal pictures, the source is never touched, and the source's looks arrive."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import editbook
from editbook.attention import MutualSelfAttention, finest_levels
from editbook.errors import EditbookError
from editbook.methods.tuning_free.attention.masactrl import MasaCtrl

SOURCE, TARGET = "a photo of a cat on the beach", "a photo of a jumping cat on the beach"


def edit(model, picture=None, source=SOURCE, target=TARGET, **options):
    return editbook.edit(
        model, picture, "masactrl", source=source, target=target, **{"steps": 4, "guidance_scale": 3.0, **options}
    )


def same(a, b):
    return a.tobytes() == b.tobytes()


@pytest.mark.parametrize("start", [0.0, 0.5])
@pytest.mark.parametrize("options", [{"levels": 1}, {"levels": 3}, {"keys": "joint"}, {"word": "cat"}])
def test_equal_prompts_give_equal_pictures(random_model64, start, options):
    """On a generated pair both rows are guided, and are the same in every layer."""
    one = edit(random_model64, target=SOURCE, start=start, **options)
    if "word" in options:  # masked, each half of the target sees less than the source does
        assert not same(one.image, one.source_image)
    else:
        assert same(one.image, one.source_image)


def test_reading_the_wrong_guidance_half_breaks_it(random_model64, monkeypatch):
    """The test above can fail: let c_t read the keys of u_s, and it does."""
    monkeypatch.setattr("editbook.attention.swap.source_of", lambda batch, rows: [0, 0, 2, 0])
    one = edit(random_model64, target=SOURCE, start=0.0)
    assert not same(one.image, one.source_image)


def test_no_control_is_plain_sampling(random_model64, picture):
    never = edit(random_model64, picture, start=1.0, invert_with="source")
    plain = editbook.edit(
        random_model64, picture, "ddim-inversion", source=SOURCE, target=TARGET, steps=4, guidance_scale=3.0
    )
    assert same(never.image, plain.image)
    assert not same(edit(random_model64, picture, start=0.0, invert_with="source").image, plain.image)


def test_the_paper_inverts_without_words(random_model64, picture):
    """The empty source row ignores the source prompt, and is the same for every w; its own prompt is not ignored."""
    free = [
        edit(random_model64, picture, source=source, guidance_scale=w).reconstruction
        for source, w in ((SOURCE, 3.0), ("a castle", 3.0), (SOURCE, 7.5))
    ]
    assert same(free[0], free[1])
    assert same(free[0], free[2])
    assert edit(random_model64, picture).inversion.prompt == ""
    for options in ({"invert_with": "source"}, {"word": "cat"}, {"inversion": "pnp-inversion"}):
        assert edit(random_model64, picture, **options).inversion.prompt == SOURCE


def test_masks_everywhere_or_nowhere_are_no_masks_and_others_are(random_model64, picture):
    whole, part = np.ones((64, 64)), np.zeros((64, 64))
    part[:, :32] = 1
    free = edit(random_model64, picture).image
    assert same(edit(random_model64, picture, source_mask=whole, target_mask=whole).image, free)
    assert not same(edit(random_model64, picture, source_mask=part, target_mask=1 - part).image, free)


def test_automatic_masks_follow_the_threshold(random_model64, picture):
    free = edit(random_model64, picture, invert_with="source").image
    images = [edit(random_model64, picture, word="cat", mask_threshold=t).image for t in (0.1, 0.5)]
    assert not same(images[0], images[1])
    assert not same(images[0], free)
    pair = edit(random_model64, picture, target="a photo of a fox on the beach", word=("cat", "fox"))
    assert pair.nfe == 16


def test_fractions_are_the_paper_s_steps_and_levels_its_layers(random_model):
    assert finest_levels(random_model.unet, random_model.latent_shape[1], 2) == [16, 8]
    control = MasaCtrl().control(random_model, [SOURCE, TARGET])
    assert isinstance(control, MutualSelfAttention)
    assert control.start == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keys": "sources"}, "Did you mean 'source'"),
        ({"invert_with": "emty"}, "Did you mean 'empty'"),
        ({"start": 1.5}, "fraction"),
        ({"levels": 0}, "levels must be from 1 to 3"),
        ({"levels": 4}, "levels must be from 1 to 3"),
        ({"mask_threshold": 0.0}, "mask_threshold"),
        ({"word": 3}, "word"),
        ({"word": ("cat", "cat", "cat")}, "word"),
        ({"word": "dog"}, "word"),
        ({"word": "cat", "invert_with": "empty"}, "leaves the source row"),
        ({"source_mask": np.ones((4, 4))}, "go together"),
        ({"source_mask": np.ones((4, 4)), "target_mask": np.zeros((4, 4))}, "0 everywhere"),
        ({"source_mask": np.ones((4, 4)), "target_mask": np.ones((4, 4)), "word": "cat"}, "one of them"),
    ],
)
def test_bad_options_raise_before_any_walk(random_model, picture, options, message):
    before = random_model.nfe
    with pytest.raises(EditbookError, match=message):
        edit(random_model, picture, **options)
    assert random_model.nfe == before


def test_what_the_prompt_leaves_open_comes_from_the_source(pocket_model):
    """The wall of a room: no prompt says its colour, and a free target paints another one."""
    distances = {"free": [], "mutual": []}
    for seed in (4, 5):
        for name, start in {"free": 1.0, "mutual": 0.08}.items():
            one = edit(
                pocket_model,
                source="a photo of a cat in the room",
                target="a photo of a cat lying on its side in the room",
                start=start,
                seed=seed,
                steps=16,
                guidance_scale=5.0,
            )
            wall = [np.asarray(image, float)[:32, :8] for image in (one.image, one.source_image)]
            distances[name].append(np.abs(wall[0] - wall[1]).mean())
    assert np.mean(distances["mutual"]) < 0.7 * np.mean(distances["free"])


def test_a_pose_changes_under_control(pocket_model):
    """The object leaves its place for the truth's: inside the mask the edit is closer to the truth than the source."""
    from editbook.metrics import truth_psnr

    task = editbook.pocket.task("jumping-dog")
    one = edit(
        pocket_model,
        task.source_image,
        source=task.source_prompt,
        target=task.target_prompt,
        steps=16,
        guidance_scale=5.0,
    )
    assert truth_psnr(one.image, task).inside > truth_psnr(task.source_image, task).inside + 2
    assert torch.isfinite(one.inversion.gap().left).all()
