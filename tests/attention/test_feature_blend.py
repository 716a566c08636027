"""Running features: every passage once and in order, blends that equal two separate calls, and masked words."""

from __future__ import annotations

import contextlib
import dataclasses
from types import SimpleNamespace

import pytest
import torch
from diffusers import UNet2DConditionModel
from estimates import PROMPTS
from estimates import noise as estimate
from torch.nn import functional

from editbook.attention import Capture, Chain, MutualSelfAttention, Projected, Site, sites
from editbook.attention.feature_blend import BlendFeatures, MaskWords, Passage, mask_at, passages
from editbook.errors import EditbookError
from editbook.methods.tuning_free.mask.pfb_diff import feature_places, word_layers

SIZE = (16, 16)


def half(side=16):
    mask = torch.zeros(1, 1, side, side, dtype=torch.float64)
    mask[..., : side // 2] = 1
    return mask


def noise(model, control=None, rows=2, null=0):
    return estimate(model, control, rows=rows, null=null)


@pytest.fixture(scope="module")
def diffusion_shaped():
    """A U-Net with the blocks of Stable Diffusion 1.x, and few channels."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=64,
        block_out_channels=(8, 8, 16, 16),
        layers_per_block=2,
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        cross_attention_dim=8,
        attention_head_dim=2,
        norm_num_groups=4,
    )
    return SimpleNamespace(unet=unet.eval().requires_grad_(False), latent_shape=(4, 64, 64))


def test_the_chosen_places_are_the_official_blocks(diffusion_shaped):
    """Inputs of the encoder's blocks 8 to 11 (or from 7 on), the middle, and the decoder's blocks 1 to 5."""
    encoder = {7: (16, 0), 8: (16, 1), 9: (16, 2), 10: (8, 0), 11: (8, 1)}
    decoder = {1: (8, 1), 2: (8, 2), 3: (16, 0), 4: (16, 1), 5: (16, 2)}
    for preset, first in (("object", 8), ("background", 7)):
        expected = [Passage("down", *encoder[k]) for k in range(first, 12)]
        expected += [Passage("mid", 8, 0), *(Passage("up", *decoder[k]) for k in range(1, 6))]
        assert feature_places(diffusion_shaped, 2, preset) == expected


def test_words_are_masked_in_the_official_layers(diffusion_shaped):
    """Transformers in the order of execution: encoder 64, 64, 32, 32, 16, 16, middle 8, decoder three of each level."""
    assert word_layers(diffusion_shaped, 2) == [4, 5, 6, 7, 8, 9, 10, 11]
    assert sorted(word_layers(diffusion_shaped, 2, "background")) == [2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]
    assert len(word_layers(diffusion_shaped, 4)) == 16


def test_passages_follow_the_order_of_execution_and_have_their_size(random_model, diffusion_shaped):
    for unet, side, width in ((random_model.unet, 16, 128), (diffusion_shaped.unet, 64, 8)):
        ran, handles = [], []
        for place, (name, enters) in passages(unet, (side, side)).items():

            def note(feature, place=place, ran=ran):
                feature = feature[0] if isinstance(feature, tuple) else feature
                ran.append(place)
                assert feature.shape[-2] == place.resolution

            module = unet.get_submodule(name)
            register = module.register_forward_pre_hook if enters else module.register_forward_hook
            handles.append(register(lambda module, *seen, note=note: note(seen[-1])))
        with torch.no_grad():
            unet(torch.randn(1, 4, side, side), 500, encoder_hidden_states=torch.randn(1, 5, width))
        for handle in handles:
            handle.remove()
        assert ran == list(passages(unet, (side, side)))


def test_an_open_mask_changes_nothing_and_a_closed_one_gives_the_source(random_model64):
    unet = random_model64.unet
    places = list(passages(unet, SIZE))
    free = noise(random_model64)
    assert torch.equal(noise(random_model64, BlendFeatures(torch.ones(1, 1, 16, 16), places)), free)
    for place in places:
        name, enters = passages(unet, SIZE)[place]
        seen = []
        closed = BlendFeatures(torch.zeros(1, 1, 16, 16), [place])
        with closed.attached(unet, SIZE, 2):
            module = unet.get_submodule(name)
            register = module.register_forward_pre_hook if enters else module.register_forward_hook
            handle = register(lambda module, *given, seen=seen: seen.append(given[-1]))
            z = torch.cat([random_model64.random_latent(seed) for seed in (0, 1)])
            with torch.no_grad():
                random_model64.noise(z, 500, random_model64.embed(PROMPTS[:2]))
            handle.remove()
        feature = seen[0][0] if isinstance(seen[0], tuple) else seen[0]
        assert torch.equal(feature[1], feature[0]), place


@pytest.mark.parametrize("null", [0, 1, 2])
def test_one_batch_equals_separate_calls(random_model64, null):
    """As the official code does it: the source first, its features kept, and then each other row with them."""
    model, places = random_model64, feature_places(random_model64, 2)
    known, mask = passages(model.unet, SIZE), half()
    z = torch.cat([model.random_latent(seed) for seed in range(null + 2)])
    texts = torch.cat([model.embed("").expand(null, -1, -1), model.embed(PROMPTS[:2])])
    kept = {}

    def hooked(row, blend):
        handles = []
        for place in places:
            name, enters = known[place]

            def enter(module, inputs, place=place):
                if blend:
                    size = inputs[0].shape[-2:]
                    open_ = functional.adaptive_avg_pool2d(mask, size)
                    return (inputs[0] * open_ + kept[place] * (1 - open_), *inputs[1:])
                kept[place] = inputs[0]
                return None

            def leave(module, inputs, output, enter=enter):
                whole = output if isinstance(output, tuple) else (output,)
                changed = enter(module, whole)
                return changed if changed is None or isinstance(output, tuple) else changed[0]

            module = model.unet.get_submodule(name)
            handles.append(module.register_forward_pre_hook(enter) if enters else module.register_forward_hook(leave))
        with torch.no_grad():
            eps = model.noise(z[row : row + 1], 500, texts[row : row + 1])
        for handle in handles:
            handle.remove()
        return eps

    together = noise(model, BlendFeatures(mask, places, how="area"), null=null)
    source = {0: [0], 1: [1], 2: [2, 0]}[null]  # a null row reads its own source's null row where there is one
    for first in source:
        alone = hooked(first, False)
        torch.testing.assert_close(together[first : first + 1], alone, rtol=0, atol=1e-11)
        readers = {0: [1], 1: [0, 2], 2: [3] if first == 2 else [1]}[null]
        for row in readers:
            blended = hooked(row, True)
            torch.testing.assert_close(together[row : row + 1], blended, rtol=0, atol=1e-11)
    assert (together - noise(model, null=null)).abs().max() > 1e-3


def test_it_ends_and_stands_beside_other_controls(random_model64):
    places = feature_places(random_model64, 2)
    blend = BlendFeatures(half(), places, stop=3)
    free = noise(random_model64)
    for step, acts in ((0, True), (2, True), (3, False)):
        blend.begin_step(step, 5)
        assert torch.equal(noise(random_model64, blend), free) != acts
    blend.begin_step(0, 5)
    mutual = MutualSelfAttention([16], start=0)
    both = [noise(random_model64, Chain(order)) for order in ([blend, mutual], [mutual, blend])]
    torch.testing.assert_close(*both, rtol=0, atol=1e-11)
    assert (both[0] - noise(random_model64, blend)).abs().max() > 1e-6


def test_hooks_go_and_what_does_not_fit_raises(random_model):
    def hooks():
        return sum(len(one._forward_hooks) + len(one._forward_pre_hooks) for one in random_model.unet.modules())

    before = hooks()
    blend = BlendFeatures(half(), passages(random_model.unet, SIZE))
    with contextlib.suppress(ZeroDivisionError), blend.attached(random_model.unet, SIZE, 2):
        assert hooks() > before
        raise ZeroDivisionError
    assert hooks() == before
    for places in ([], [Passage("down", 5, 0)]):
        with pytest.raises(EditbookError, match="needs passages of this U-Net"):
            noise(random_model, BlendFeatures(half(), places))
    with pytest.raises(EditbookError, match="not shaped like Stable Diffusion"):
        passages(torch.nn.Linear(1, 1), SIZE)
    assert hooks() == before


def test_masks_on_coarser_grids():
    mask = torch.zeros(1, 1, 16, 16)
    mask[..., 5, 9] = 1
    assert mask_at(mask, (4, 4))[0, 0, 1, 2] == 1
    assert mask_at(mask, (4, 4)).sum() == 1
    assert mask_at(mask, (4, 4), "area")[0, 0, 1, 2] == 1 / 16
    bicubic = mask_at(half().float(), (8, 8), "bicubic")
    assert bicubic.min() == 0
    assert bicubic.max() == 1
    assert mask_at(half().half(), (8, 8), "bicubic").dtype == torch.float16
    assert torch.equal(mask_at(mask, (16, 16), "area"), mask)
    with pytest.raises(EditbookError, match="Did you mean 'area'"):
        mask_at(mask, (4, 4), "aera")


@pytest.mark.parametrize("null", [0, 1, 2])
def test_masked_words_have_no_attention_where_they_may_not_act(random_model64, null):
    mask, layers = half(), range(10)
    control = MaskWords(mask, [3, 4], [5], layers)
    capture, free = Capture(), Capture()
    estimate(random_model64, Chain([control, capture]), rows=2, null=null)
    estimate(random_model64, free, rows=2, null=null)
    for (site, _), maps in capture.records.items():
        inside = (mask_at(mask, (site.height, site.width)) > 0.5).flatten()
        torch.testing.assert_close(maps.sum(-1), torch.ones_like(maps[..., 0]), rtol=0, atol=1e-6)
        assert maps[1][~inside][:, [3, 4]].eq(0).all()
        assert maps[1][inside][:, 5].eq(0).all()
        assert maps[1][inside][:, [3, 4]].gt(0).all()
        assert maps[0].gt(0).all()
    first = next(iter(free.records))
    torch.testing.assert_close(capture.records[first][0], free.records[first][0], rtol=0, atol=1e-12)


@pytest.mark.parametrize("null", [0, 1, 2])
def test_null_rows_of_the_targets_are_masked_too(null):
    site = Site("cross", "up", 4, 0, 4, 4)
    query, key = torch.zeros(null + 2, 1, 16, 2), torch.zeros(null + 2, 1, 6, 2)
    mask = MaskWords(half(4), [2], [], [0]).exchange(Projected(query, key, key), site, 2).mask
    masked = [row for row in range(null + 2) if not mask[row].all()]
    assert masked == {0: [1], 1: [0, 2], 2: [1, 3]}[null]
    assert not mask[masked][..., 2].flatten(0, 1)[:, 2:4].any()


def test_a_mask_that_stands_there_already_is_kept():
    site = Site("cross", "up", 4, 0, 4, 4)
    control = MaskWords(half(4), [2], [], [0])
    query, key = torch.zeros(2, 1, 16, 2), torch.zeros(2, 1, 6, 2)
    earlier = torch.ones(1, 1, 16, 6, dtype=torch.bool)
    earlier[..., 4] = False
    both = control.exchange(Projected(query, key, key, earlier), site, 2).mask
    assert not both[..., 4].any()
    assert not both[1, 0, 2:4, 2].any()
    added = control.exchange(Projected(query, key, key, torch.full((1, 1, 1, 6), 0.5)), site, 2).mask
    assert added[0].eq(0.5).all()
    assert added[1, 0, 2, 2] == -torch.inf


def test_a_word_acts_at_every_level_however_small_its_place():
    mask = torch.zeros(1, 1, 16, 16)
    mask[..., 5, 9] = 1
    inside, outside = MaskWords(mask, [1], [], [0], how="area").cells((4, 4))
    assert inside.sum() == 1
    assert outside.all()
    inside, outside = MaskWords(1 - mask, [1], [], [0], how="area").cells((4, 4))
    assert inside.all()
    assert outside.sum() == 1


def test_masked_words_stay_fused_and_never_include_the_start(random_model):
    control = MaskWords(half(), [2], [], [0, 1])
    assert not control.reads_probabilities
    assert {site.index for site in sites(random_model.unet, SIZE).values() if control.wants(site)} == {0, 1}
    assert not control.wants(dataclasses.replace(Site("self", "up", 4, 0, 4, 4)))
    with pytest.raises(EditbookError, match="start token"):
        MaskWords(half(), [0], [], [0])
