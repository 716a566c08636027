"""Recorded keys and values: the right ones, at the right step, for the right rows; and masks at the layers' grids."""

from __future__ import annotations

import pytest
import torch

from editbook.attention import Chain, Foreground, MutualSelfAttention, Recorder, StoredAttention, WordForeground, sites
from editbook.errors import EditbookError
from editbook.inversion import ddim_inversion
from editbook.sampling import ClassifierFreeGuidance, Schedule, follow

PROMPTS = ["a photo of a cat on the beach", "a golden fox on the beach"]
STEPS = 4


@pytest.fixture(scope="module")
def recorded(random_model64, picture):
    """An inversion, and what it recorded at all layers."""
    model, recorder = random_model64, Recorder()
    schedule = Schedule(model.scheduler, STEPS)
    return ddim_inversion(model, model.encode(picture), PROMPTS[0], schedule, attention=recorder), recorder.pairs


def estimate(model, control, step, z, t, prompts=PROMPTS, null=0):
    text = torch.cat([model.embed("").expand(null, -1, -1), model.embed(prompts)])
    control.begin_step(step, STEPS)
    with torch.no_grad(), control.attached(model.unet, tuple(z.shape[-2:]), len(prompts)):
        return model.noise(z, t, text)


def test_recording_changes_nothing_and_keeps_every_layer_and_step(random_model64, picture, recorded):
    model, (inversion, pairs) = random_model64, recorded
    plain = ddim_inversion(model, model.encode(picture), PROMPTS[0], Schedule(model.scheduler, STEPS))
    torch.testing.assert_close(inversion.z_T, plain.z_T, rtol=0, atol=1e-11)
    layers = [site for site in sites(model.unet, (16, 16)).values() if site.kind == "self"]
    assert set(pairs) == {(site, step) for site in layers for step in range(STEPS)}


@pytest.mark.parametrize("step", range(STEPS))
def test_what_was_recorded_answers_the_latent_that_it_was_recorded_from(random_model64, recorded, step):
    """With the inversion's own latent and timestep its own estimate comes out; a neighbour's pairs give another."""
    model, (inversion, pairs) = random_model64, recorded
    z, t = inversion.latents[step + 1], inversion.timesteps[step]
    control = StoredAttention(pairs)
    eps = estimate(model, control, step, z, t, PROMPTS[:1])
    torch.testing.assert_close(eps, inversion.noises[step], rtol=0, atol=1e-11)
    wrong = estimate(model, control, (step + 1) % STEPS, z, t, PROMPTS[:1])
    assert (wrong - inversion.noises[step]).abs().max() > 1e-3


def test_pairs_serve_the_rows_they_are_meant_for(random_model64, recorded):
    model, (_, pairs) = random_model64, recorded
    for null in (0, 1, 2):
        z = torch.cat([model.random_latent(seed) for seed in range(2 + null)])
        free = estimate(model, StoredAttention(pairs, share=0.0), 0, z, 500, null=null)
        everyone = estimate(model, StoredAttention(pairs), 0, z, 500, null=null)
        assert (everyone - free).abs().amax((1, 2, 3)).min() > 1e-4
        source = [null, *([0] if null == 2 else [])]
        for serves in ("source", "edits"):
            eps = estimate(model, StoredAttention(pairs).serving(serves), 0, z, 500, null=null)
            for row in range(len(z)):
                expected = everyone if (row in source) == (serves == "source") else free
                torch.testing.assert_close(eps[row], expected[row], rtol=0, atol=1e-11)


def test_stored_keys_are_a_set(random_model64, recorded):
    model, (_, pairs) = random_model64, recorded
    z = model.random_latent(0, 2)
    shuffled = {place: tuple(part.flip(2) for part in pair) for place, pair in pairs.items()}
    unpaired = {place: (key.flip(2), value) for place, (key, value) in pairs.items()}
    eps = estimate(model, StoredAttention(pairs), 0, z, 500)
    torch.testing.assert_close(estimate(model, StoredAttention(shuffled), 0, z, 500), eps, rtol=0, atol=1e-11)
    assert (estimate(model, StoredAttention(unpaired), 0, z, 500) - eps).abs().max() > 1e-4


def test_half_precision_pairs_pass(random_model, picture):
    """On the CPU bfloat16 runs: the control must not mix types."""
    layer = random_model.unet.up_blocks[-1].attentions[0].transformer_blocks[0].attn1
    recorder, hidden = Recorder([16], ["up"]), torch.randn(2, 256, 64, generator=torch.Generator().manual_seed(0))
    layer, before = layer.bfloat16(), layer
    try:
        for control in (recorder, lambda: StoredAttention(recorder.pairs, share=0.5)):
            control = control if isinstance(control, Recorder) else control()
            with torch.no_grad(), control.attached(random_model.unet, (16, 16), 2):
                out = layer(hidden.bfloat16())
            assert out.dtype == torch.bfloat16
            assert torch.isfinite(out).all()
        masks = Foreground(torch.stack([torch.zeros(16, 16), torch.ones(16, 16)]))  # one side is empty
        with torch.no_grad(), MutualSelfAttention([16], start=0, foreground=masks).attached(
            random_model.unet, (16, 16), 2
        ):  # fmt: skip
            assert torch.isfinite(layer(hidden.bfloat16())).all()
    finally:
        before.float()


def test_bad_use_raises(random_model64, recorded):
    model, (inversion, pairs) = random_model64, recorded
    with pytest.raises(EditbookError, match="nothing was recorded"):
        StoredAttention({})
    with pytest.raises(EditbookError, match="Did you mean 'source'"):
        StoredAttention(pairs, serves="sources")
    with pytest.raises(EditbookError, match="share"):
        StoredAttention(pairs, share=1.5)
    guidance = ClassifierFreeGuidance(model.embed(PROMPTS[0]))
    for steps in (STEPS - 1, STEPS + 1):
        path = Schedule(model.scheduler, steps).sampling()
        with pytest.raises(EditbookError, match=f"stored for {STEPS} steps"):
            follow(model, inversion.z_T, path, guidance, attention=StoredAttention(pairs))
    with pytest.raises(EditbookError, match="matches none"):
        StoredAttention(pairs).attached(model.unet, (8, 8), 1).__enter__()
    with pytest.raises(EditbookError, match="mask_threshold"):
        WordForeground(model.tokenizer, PROMPTS, ["cat", "fox"], 8, 1.0)
    with pytest.raises(EditbookError, match="word"):
        WordForeground(model.tokenizer, PROMPTS, ["cat", "cat"], 8)


def test_word_masks_forget_the_step_before_and_leave_wordless_rows_empty(random_model64):
    model = random_model64
    words = WordForeground(model.tokenizer, PROMPTS, [None, "fox"], 8)
    coarse, fine = (
        next(site for site in sites(model.unet, (16, 16)).values() if site.resolution == height) for height in (8, 16)
    )
    assert words(fine) is None
    z = model.random_latent(0, 2)
    estimate(model, Chain([words]), 1, z, 500)
    first = words(coarse)
    assert first.shape == (2, 64)
    assert words(fine).shape == (2, 256)
    assert not first[0].any()
    assert 0 < first[1].sum() < 64
    assert torch.equal(words(fine)[1].view(16, 16)[::2, ::2].flatten(), first[1])
    words.begin_step(2, STEPS)
    assert words(fine) is None
