"""Prompt-to-Prompt: its identities on random weights, and its effect on trained ones."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

import editbook
from editbook.attention import Site, tokens_of
from editbook.errors import EditbookError
from editbook.methods.tuning_free.attention.prompt_to_prompt import PromptToPrompt
from editbook.metrics import mse
from editbook.model import Model
from editbook.sampling import ClassifierFreeGuidance, Schedule, follow, whole_steps

SOURCE = "a photo of a cat on the beach"
TARGET = "a photo of a dragon on the beach"
LONGER = "a photo of a golden cat on the beach"
CROSS, SELF = Site("cross", "up", 8, 0, 8, 8), Site("self", "up", 8, 0, 8, 8)


def run(model, image=None, source=SOURCE, target=TARGET, steps=4, **options):
    """The edit, and the latents (source, target) after each step of the common walk."""
    walked = []
    edit = editbook.edit(
        model,
        image,
        "prompt-to-prompt",
        source=source,
        target=target,
        steps=steps,
        callbacks=[lambda step: walked.append(step.z_next) if len(step.z_next) == 2 else None],
        **options,
    )
    return edit, walked


def plain(model, prompt, steps=4, scale=7.5, seed=0):
    guidance = ClassifierFreeGuidance(model.embed(prompt), model.embed(""), scale)
    return follow(model, model.random_latent(seed), Schedule(model.scheduler, steps).sampling(), guidance)


@pytest.mark.parametrize("taus", [(0.0, 0.0), (0.8, 0.4), (1.0, 1.0)])
@pytest.mark.parametrize("kind", ["swap", "refine"])
def test_the_same_prompt_twice_gives_the_source(random_model64, taus, kind):
    cross, own = taus
    edit, walked = run(random_model64, target=SOURCE, edit=kind, cross_replace=cross, self_replace=own)
    for source, target in walked:
        torch.testing.assert_close(target, source, rtol=0, atol=1e-9)
    assert np.abs(np.asarray(edit.image, int) - np.asarray(edit.source_image, int)).max() <= 1


@pytest.mark.parametrize("target", [TARGET, LONGER])
def test_without_injection_it_is_plain_sampling(random_model64, target):
    _, walked = run(random_model64, target=target, cross_replace=0.0, self_replace=0.0)
    torch.testing.assert_close(walked[-1][1:], plain(random_model64, target), rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"cross_replace": 1.0, "self_replace": 1.0},
        {"reweight": {"dragon": 5.0}},
        {"blend": ("cat", "dragon")},
        {"self_limit": 16, "word_replace": {"dragon": 0.2}},
    ],
)
def test_the_source_row_never_changes(random_model64, options):
    _, walked = run(random_model64, **options)
    torch.testing.assert_close(walked[-1][:1], plain(random_model64, SOURCE), rtol=0, atol=1e-9)
    assert (walked[-1][1] - walked[-1][0]).abs().max() > 1e-3


def test_each_kind_of_injection_has_an_effect(random_model64):
    off = {"cross_replace": 0.0, "self_replace": 0.0}
    ends = [
        run(random_model64, **{**off, **options})[1][-1][1]
        for options in ({}, {"cross_replace": 1.0}, {"self_replace": 1.0}, {"self_replace": 1.0, "self_limit": 16})
    ]
    for i, one in enumerate(ends):
        for other in ends[:i]:
            assert (one - other).abs().max() > 1e-3


def test_full_injection_does_not_give_the_source(random_model64):
    """Values and the unconditional half still differ; a method that returned the source would have copied too much."""
    _, walked = run(random_model64, cross_replace=1.0, self_replace=1.0, self_limit=16)
    assert (walked[-1][1] - walked[-1][0]).abs().max() > 1e-3


def control(tokenizer, source=SOURCE, target=TARGET, step=0, total=10, **options):
    made = PromptToPrompt(**options).control(tokenizer, source, target, 16)
    made.begin_step(step, total)
    return made


def probabilities(tokens=40, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, 4, 64, tokens, generator=generator, dtype=torch.float64).mul(2).softmax(-1)


def test_weight_one_changes_nothing_and_weight_zero_empties_the_column(tokenizer):
    p, dragon = probabilities(), tokens_of(tokenizer, TARGET, "dragon")
    unweighted = control(tokenizer).apply(p, CROSS)
    assert torch.equal(control(tokenizer, reweight={"dragon": 1.0}).apply(p, CROSS), unweighted)
    without = control(tokenizer, reweight={"dragon": 0.0}).apply(p, CROSS)
    others = [k for k in range(40) if k not in dragon]
    assert without[1][..., dragon].eq(0).all()
    assert torch.equal(without[1][..., others], unweighted[1][..., others])
    assert torch.equal(without[0], p[0])


def test_a_weight_adds_its_share_to_the_row_sums(tokenizer):
    p, beach = probabilities(), tokens_of(tokenizer, TARGET, "beach")
    unweighted = control(tokenizer).apply(p, CROSS)[1]
    weighted = control(tokenizer, reweight={"beach": 3.0}).apply(p, CROSS)[1]
    torch.testing.assert_close(weighted.sum(-1), 1 + 2 * unweighted[..., beach].sum(-1))


def test_a_swap_keeps_distributions_and_takes_the_sources_columns(tokenizer):
    p = probabilities()
    edited = control(tokenizer).apply(p, CROSS)
    torch.testing.assert_close(edited.sum(-1), torch.ones_like(edited[..., 0]))
    for word in ("photo", "beach"):
        a, b = (tokens_of(tokenizer, prompt, word) for prompt in (SOURCE, TARGET))
        assert torch.equal(edited[1][..., b], p[0][..., a])
    cat, dragon = tokens_of(tokenizer, SOURCE, "cat"), tokens_of(tokenizer, TARGET, "dragon")
    torch.testing.assert_close(edited[1][..., dragon].sum(-1), p[0][..., cat].sum(-1))


def test_refinement_leaves_new_words_their_own_map(tokenizer):
    p = probabilities()
    edited = control(tokenizer, target=LONGER).apply(p, CROSS)[1]
    golden = tokens_of(tokenizer, LONGER, "golden")
    assert torch.equal(edited[..., golden], p[1][..., golden])
    a, b = (tokens_of(tokenizer, prompt, "beach") for prompt in (SOURCE, LONGER))
    assert torch.equal(edited[..., b], p[0][..., a])


def test_gates_close_at_their_step(tokenizer):
    p, dragon = probabilities(), tokens_of(tokenizer, TARGET, "dragon")
    others = [k for k in range(40) if k not in dragon]
    for step in range(10):
        made = control(tokenizer, step=step, cross_replace=0.8, word_replace={"dragon": 0.2}, self_replace=0.4)
        edited = made.apply(p, CROSS)
        assert torch.equal(edited[1][..., dragon], p[1][..., dragon]) == (step >= 2)  # floor(0.2 * 11)
        assert torch.equal(edited[1][..., others], p[1][..., others]) == (step >= 8)  # floor(0.8 * 11)
        assert made.active(SELF) == (step < 4)
        assert made.active(CROSS)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_gates_do_not_depend_on_the_number_format(tokenizer, dtype):
    for tau, total in ((0.7, 9), (0.1, 9), (0.3, 999), (0.9, 49), (0.29, 99)):
        last = whole_steps(tau, total + 1) - 1
        p = probabilities().to(dtype)
        held = control(tokenizer, step=last, total=total, cross_replace=tau).apply(p, CROSS)
        free = control(tokenizer, step=last + 1, total=total, cross_replace=tau).apply(p, CROSS)
        assert not torch.equal(held[1], p[1])
        assert torch.equal(free[1], p[1])


def test_self_attention_is_the_sources_up_to_the_limit(tokenizer):
    made, p = control(tokenizer), probabilities(64)
    edited = made.apply(p, SELF)
    assert torch.equal(edited[1], p[0])
    assert torch.equal(edited[0], p[0])
    assert made.wants(SELF)
    assert not made.wants(Site("self", "up", 16, 0, 16, 16))
    assert control(tokenizer, self_limit=16).wants(Site("self", "up", 16, 0, 16, 16))
    assert not control(tokenizer, self_limit=0).wants(SELF)


def test_auto_chooses_by_the_number_of_words(tokenizer):
    for target, chosen in ((TARGET, "swap"), (LONGER, "refine")):
        auto, named = control(tokenizer, target=target), control(tokenizer, target=target, edit=chosen)
        assert torch.equal(auto.mapper, named.mapper)
    refined = control(tokenizer, edit="refine")
    assert not torch.equal(refined.mapper, control(tokenizer).mapper)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"edit": "swop"}, "Did you mean 'swap'"),
        ({"cross_replace": 1.5}, "cross_replace"),
        ({"self_replace": -0.1}, "self_replace"),
        ({"self_replace": float("nan")}, "self_replace"),
        ({"word_replace": {"dragon": 2}}, "'dragon' is a fraction"),
        ({"reweight": {"dragn": 2.0}}, "Did you mean 'dragon'"),
        ({"word_replace": {"castle": 0.5}}, "Unknown word"),
        ({"blend": "dragon"}, "Unknown word"),
        ({"blend": ("cat",)}, "one word for each"),
        ({"inversion": "ddim-invert"}, "Did you mean 'ddim-inversion'"),
        ({"edit": "swap", "target": LONGER}, "refine"),
        ({"target": "dragon " * 50}, "limit is 40"),
        ({"reweight": {"dragon": float("nan")}}, "not finite"),
        ({"self_limit": 2, "cross_replace": 0.0, "steps": 0}, "steps must be"),
    ],
)
def test_bad_options_raise(random_model, picture, options, message):
    with pytest.raises(EditbookError, match=message):
        run(random_model, picture, **options)


def test_unusable_prompts_cost_no_evaluation(random_model, picture):
    before = random_model.nfe
    for options in ({"target": "dragon " * 50}, {"reweight": {"castle": 2.0}}, {"blend": "dragon"}):
        with pytest.raises(EditbookError):
            run(random_model, picture, **options)
    assert random_model.nfe == before


@pytest.mark.parametrize(("steps", "options", "rows"), [(50, {}, 1 + 3), (3, {"source_guidance_scale": 7.5}, 1 + 4)])
def test_cost_of_a_real_picture(random_model, picture, steps, options, rows):
    edit, _ = run(random_model, picture, steps=steps, **options)
    assert edit.nfe == steps * rows


def test_cost_of_a_generated_picture(random_model):
    assert run(random_model, steps=3)[0].nfe == 3 * 4
    assert run(random_model, steps=3, guidance_scale=1.0)[0].nfe == 3 * 2


def test_a_real_picture_keeps_its_reconstruction_as_source_row(random_model64, picture):
    model = random_model64
    edit, walked = run(model, picture, steps=5)
    guidance = ClassifierFreeGuidance(model.embed(SOURCE))
    back = follow(model, edit.inversion.z_T, edit.inversion.moves, guidance)
    torch.testing.assert_close(walked[-1][:1], back, rtol=0, atol=1e-9)
    gap = edit.inversion.gap()
    torch.testing.assert_close(gap.left, gap.right, rtol=1e-9, atol=1e-9)
    assert edit.source_image.tobytes() == picture.tobytes()


def test_a_mask_keeps_the_outside_exactly(random_model, picture):
    mask = np.zeros((64, 64), np.float32)
    mask[:, 32:] = 1
    edit, walked = run(random_model, picture, mask=mask)
    for source, target in walked:
        assert torch.equal(target[:, :, :8], source[:, :, :8])
    assert (walked[-1][1] - walked[-1][0])[:, :, 8:].abs().max() > 1e-3
    assert edit.mask.shape == (16, 16)
    assert edit.mask[:, 8:].all()
    assert not edit.mask[:, :8].any()


def test_local_blend_pastes_outside_its_mask(random_model):
    edit, walked = run(random_model, blend=("cat", "dragon"), blend_threshold=0.9)
    inside = torch.from_numpy(edit.mask) > 0
    assert 0 < inside.sum() < inside.numel()
    source, target = walked[-1]
    assert torch.equal(target[:, ~inside], source[:, ~inside])
    assert (target - source)[:, inside].abs().max() > 1e-3


def test_a_mask_narrows_local_blend(random_model):
    mask = np.zeros((64, 64), np.float32)
    mask[:, 32:] = 1
    edit, walked = run(random_model, blend=("cat", "dragon"), blend_threshold=0.05, mask=mask)
    assert not edit.mask[:, :8].any()
    source, target = walked[-1]
    assert torch.equal(target[:, :, :8], source[:, :, :8])


def test_attention_of_both_prompts_is_kept(random_model):
    edit, _ = run(random_model, steps=3)
    assert edit.attention.prompts == [SOURCE, TARGET]
    assert edit.attention.resolutions == [16, 8]
    assert edit.attention.steps == [0, 1, 2]
    assert edit.attention.map("dragon", row=1).shape == (16, 16)


def test_larger_latents_choose_layers_that_exist(random_model):
    """No side of 16 cells here: the layers for maps and blend follow from the U-Net, not from a table."""
    unet = copy.deepcopy(random_model.unet)
    parts = (random_model.vae, random_model.text_encoder, random_model.tokenizer, random_model.scheduler)
    for side, kept in ((40, [20, 10]), (80, [20])):
        unet.register_to_config(sample_size=side)
        edit, _ = run(Model(unet, *parts), steps=1, guidance_scale=1.0, blend=("cat", "dragon"))
        assert edit.attention.resolutions == kept
        assert edit.mask.shape == (side, side)


def test_the_edit_stays_closer_to_the_source_than_plain_sampling(pocket_model):
    """Trained weights: with the same seed, injected attention keeps the layout that plain sampling loses."""
    held, lost = [], []
    for seed in range(5):
        pair = {"source": SOURCE, "target": "a photo of a fox on the beach", "seed": seed, "steps": 15}
        edit = editbook.edit(pocket_model, None, "prompt-to-prompt", **pair)
        off = editbook.edit(pocket_model, None, "prompt-to-prompt", cross_replace=0.0, self_replace=0.0, **pair)
        held.append(mse(edit.image, edit.source_image))
        lost.append(mse(off.image, off.source_image))
    assert all(kept < free for kept, free in zip(held, lost, strict=True))
    assert np.mean(held) < 0.9 * np.mean(lost)
    assert np.mean(held) > 0
