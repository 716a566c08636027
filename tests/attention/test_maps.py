"""Captured maps: complete, harmless, and aggregated as they say."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import editbook
from editbook.attention import AttentionMaps, Capture, Chain, Site, heights, map_height, smooth, tokens_of
from editbook.errors import EditbookError
from editbook.metrics import peak_inside
from editbook.sampling import ClassifierFreeGuidance, Schedule, follow

PROMPTS = ["a photo of a dragon on the beach", "a golden fox in the snow"]


def capture(model, prompts=PROMPTS, steps=2, embeddings=None, **options):
    control = Capture(**options)
    embeddings = model.embed(prompts) if embeddings is None else embeddings
    z = model.random_latent(0, len(prompts))
    end = follow(
        model,
        z,
        Schedule(model.scheduler, steps).sampling(),
        ClassifierFreeGuidance(embeddings),
        attention=control,
    )
    return control, end


def test_records_are_blocks_times_steps(random_model):
    control, _ = capture(random_model, steps=3, kinds=("cross", "self"))
    assert len(control.records) == 2 * 10 * 3
    assert {step for _, step in control.records} == {0, 1, 2}
    assert len({(site.kind, site.index) for site, _ in control.records}) == 20


def test_capture_leaves_the_result_unchanged(random_model64):
    model = random_model64
    _, end = capture(model, kinds=("cross", "self"))
    path = Schedule(model.scheduler, 2).sampling()
    plain = follow(model, model.random_latent(0, 2), path, ClassifierFreeGuidance(model.embed(PROMPTS)))
    torch.testing.assert_close(end, plain, rtol=0, atol=1e-11)


def test_filters_keep_what_they_name(random_model):
    narrow = Capture(("self",), resolutions=[8, 4], steps=[1], rows=[1])
    path = Schedule(random_model.scheduler, 3).sampling()
    guidance = ClassifierFreeGuidance(random_model.embed(PROMPTS))
    everything = Capture(("self",))
    follow(random_model, random_model.random_latent(0, 2), path, guidance, attention=Chain([narrow, everything]))
    expected = {(site, step) for site, step in everything.records if site.resolution in (8, 4) and step == 1}
    assert narrow.records.keys() == expected
    for key, record in narrow.records.items():
        assert torch.equal(record[0], everything.records[key][1])


def test_shuffling_the_batch_shuffles_the_maps(random_model64):
    forward, _ = capture(random_model64)
    backward, _ = capture(random_model64, prompts=PROMPTS[::-1])
    for key, record in forward.records.items():
        torch.testing.assert_close(backward.records[key].flip(0), record, rtol=0, atol=1e-6)
        assert (record[0] - record[1]).abs().max() > 1e-3


def test_constant_text_gives_uniform_maps(random_model):
    constant = torch.randn(1, 1, 128, generator=torch.Generator().manual_seed(0)).expand(1, 40, 128)
    control, _ = capture(random_model, ["a cat"], embeddings=constant)
    for record in control.records.values():
        torch.testing.assert_close(record, torch.full_like(record, 1 / 40), rtol=0, atol=1e-7)


def test_means_are_distributions_and_means_of_means(random_model):
    control, _ = capture(random_model, steps=2, kinds=("cross", "self"))
    maps = control.maps(random_model.tokenizer, PROMPTS)
    assert maps.resolutions == [16, 8, 4]
    assert maps.steps == [0, 1]
    for kind, resolution in (("cross", 16), ("cross", 4), ("self", 8)):
        mean = maps.mean(kind, resolution)
        assert mean.shape == (2, resolution, resolution, 40 if kind == "cross" else resolution**2)
        torch.testing.assert_close(mean.sum(-1), torch.ones(2, resolution, resolution), rtol=0, atol=1e-5)
    apart = torch.stack([maps.mean(resolution=8, steps=[step]) for step in (0, 1)]).mean(0)
    torch.testing.assert_close(apart, maps.mean(resolution=8))
    up, down = (maps.mean(resolution=8, sides=[side]) for side in ("up", "down"))
    torch.testing.assert_close((2 * up + down) / 3, maps.mean(resolution=8))  # two layers up, one down


def test_rows_and_columns_of_a_map_are_height_and_width(random_model):
    """A map drawn from the pixel order of one layer: row-major, as the U-Net flattens it."""
    site = Site("cross", "down", 2, 0, 2, 3)
    record = torch.zeros(1, 6, 40)
    token = tokens_of(random_model.tokenizer, "a fox", "a")[0]
    record[0, 4, token] = 1  # second row, second column
    maps = AttentionMaps({(site, 0): record}, random_model.tokenizer, ["a fox"])
    assert maps.mean("cross", 2).shape == (1, 2, 3, 40)
    heat = maps.map("a", resolution=2)
    assert heat.shape == (2, 3)
    assert np.unravel_index(heat.argmax(), heat.shape) == (1, 1)


def test_the_map_of_a_word_is_the_mean_of_its_tokens(random_model):
    control, _ = capture(random_model)
    maps = control.maps(random_model.tokenizer, PROMPTS)
    tokens = tokens_of(random_model.tokenizer, PROMPTS[0], "dragon")
    assert len(tokens) > 1
    by_hand = torch.stack([maps.mean(resolution=8)[0, :, :, token] for token in tokens]).mean(0)
    by_hand = (by_hand - by_hand.min()) / (by_hand.max() - by_hand.min())
    np.testing.assert_allclose(maps.map("dragon", resolution=8), by_hand.numpy(), atol=1e-5)


@pytest.mark.parametrize(
    "options", [{}, {"resolution": 8}, {"size": 64}, {"resolution": 4, "size": 20}, {"steps": [1]}]
)
def test_maps_span_zero_to_one(random_model, options):
    control, _ = capture(random_model)
    heat = control.maps(random_model.tokenizer, PROMPTS).map("golden", row=1, **options)
    side = options.get("size") or options.get("resolution") or 16
    assert heat.shape == (side, side)
    assert heat.dtype == np.float32
    assert heat.min() == 0
    assert heat.max() == pytest.approx(1)


def test_what_was_not_captured_raises(random_model):
    control, _ = capture(random_model, resolutions=[8])
    maps = control.maps(random_model.tokenizer, PROMPTS)
    with pytest.raises(EditbookError, match="No cross-attention of resolution 16"):
        maps.mean("cross", 16)
    with pytest.raises(EditbookError, match="No self-attention"):
        maps.mean("self")
    with pytest.raises(EditbookError, match="steps"):
        maps.mean("cross", 8, steps=[9])
    with pytest.raises(EditbookError, match="dragon"):
        maps.map("dragn")
    with pytest.raises(EditbookError, match="2 rows"):
        control.maps(random_model.tokenizer, ["one"])
    with pytest.raises(EditbookError, match="No attention was captured"):
        Capture().maps(random_model.tokenizer, PROMPTS)


def test_show_draws_the_map(random_model, picture):
    control, _ = capture(random_model)
    figure = control.maps(random_model.tokenizer, PROMPTS).show("beach", picture, resolution=8)
    assert figure.axes[0].get_title() == "beach"


def test_the_trained_model_looks_at_the_object(pocket_model):
    """The object's word points into the object's exact mask in most scenes; chance is the mask's share of the area."""
    hits, area = [], []
    for seed in range(10):
        scene = editbook.pocket.sample(seed)
        prompt, word = scene.caption(), scene.objects[0].word
        mask = scene.masks()[0]
        z_0 = pocket_model.encode(scene.image())
        control, schedule = Capture(resolutions=[8, 16]), Schedule(pocket_model.scheduler, 10)
        noise = pocket_model.random_latent(seed)
        move = schedule.sampling(0.5)[0]
        z_t = move.alpha_from**0.5 * z_0 + (1 - move.alpha_from) ** 0.5 * noise
        guidance = ClassifierFreeGuidance(pocket_model.embed(prompt))
        follow(pocket_model, z_t, [move], guidance, attention=control)
        hits.append(peak_inside(control.maps(pocket_model.tokenizer, [prompt]).map(word, size=64), mask))
        area.append(mask.mean())
    assert np.mean(hits) > np.mean(area) + 0.2


def test_smoothing_keeps_a_constant_and_the_sum_of_a_point():
    assert torch.allclose(smooth(torch.full((2, 5, 5), 0.3)), torch.tensor(0.3))
    point = torch.zeros(1, 5, 5)
    point[0, 2, 2] = 1
    assert float(smooth(point).sum()) == pytest.approx(1)
    assert float(smooth(point)[0, 2, 1] / smooth(point)[0, 2, 2]) == pytest.approx(np.exp(-1), rel=1e-5)


def test_the_smoothing_kernel_is_that_of_diffusers():
    from diffusers.pipelines.ledits_pp.pipeline_leditspp_stable_diffusion import LeditsGaussianSmoothing

    maps = torch.rand(2, 8, 8, generator=torch.Generator().manual_seed(0))
    padded = torch.nn.functional.pad(maps[:, None], (1, 1, 1, 1), mode="reflect")
    for k in range(2):
        torch.testing.assert_close(smooth(maps)[k], LeditsGaussianSmoothing("cpu")(padded[k : k + 1])[0, 0])


def test_maps_are_read_at_most_at_sixteen_cells(random_model):
    unet = random_model.unet  # three levels
    assert heights(unet, 64) == [64, 32, 16]
    assert heights(unet, 15) == [15, 8, 4]
    assert map_height(unet, 64) == map_height(unet, 128) - 16 == 16
    assert (map_height(unet, 16), map_height(unet, 16, below_finest=True)) == (16, 8)
    assert map_height(unet, 64, limit=32) == 32
