"""Residual features: the right blocks, before the shortcut, beside attention controls, and nothing is left behind."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from estimates import PROMPTS
from estimates import noise as estimate

from editbook.attention import (
    Capture,
    CaptureFeatures,
    Chain,
    Features,
    InjectFeatures,
    InjectQueriesKeys,
    MutualSelfAttention,
    blocks,
    components,
)
from editbook.errors import EditbookError
from editbook.sampling import ClassifierFreeGuidance, Schedule, follow

noise = partial(estimate, rows=2)


class Through(Features):
    """Whatever a function makes of the features, everywhere; keeps what it saw."""

    def __init__(self, function=lambda features: features, resolution=None):
        self.function, self.resolution, self.seen = function, resolution, []

    def wants(self, block):
        return self.resolution in (None, block.resolution)

    def apply(self, features, block, rows):
        self.seen.append((block, features, rows, self.step))
        return self.function(features)


def hooks(model):
    return sum(len(module._forward_hooks) for module in model.unet.modules())


def test_blocks_are_listed_in_the_order_of_execution(random_model):
    ran = []
    known = blocks(random_model.unet, (16, 16))
    handles = [
        random_model.unet.get_submodule(name).register_forward_hook(lambda *_, name=name: ran.append(name))
        for name in known
    ]
    control = Through()
    noise(random_model, control)
    for handle in handles:
        handle.remove()
    assert ran == list(known)
    assert [block for block, *_ in control.seen] == list(known.values())
    for block, features, rows, _ in control.seen:
        assert features.shape[0] == rows == 2
        assert features.shape[2:] == (block.height, block.width)
    ups = [(block.resolution, block.index) for block in known.values() if block.side == "up"]
    assert ups == [(4, 0), (4, 1), (8, 0), (8, 1), (16, 0), (16, 1)]


def test_sizes_that_are_not_square_or_even(random_model):
    z = torch.randn(1, 4, 18, 10, generator=torch.Generator().manual_seed(0))
    control = Through()
    with torch.no_grad(), control.attached(random_model.unet, (18, 10), 1):
        random_model.noise(z, 500, random_model.embed("a cat"))
    assert all(features.shape[2:] == (block.height, block.width) for block, features, *_ in control.seen)


def test_reading_changes_nothing(random_model):
    assert torch.equal(noise(random_model, Through()), noise(random_model))
    assert torch.equal(noise(random_model, CaptureFeatures()), noise(random_model))


def test_the_branch_is_what_the_block_adds_to_its_shortcut(random_model64):
    """With the branch set to zero, the block is its shortcut alone."""
    block = random_model64.unet.up_blocks[1].resnets[1]
    seen = []
    handle = block.register_forward_hook(lambda module, inputs, output: seen.append((inputs[0], output)))
    noise(random_model64, Through(torch.zeros_like, resolution=8))
    handle.remove()
    hidden, output = seen[0]
    torch.testing.assert_close(output, block.conv_shortcut(hidden), rtol=0, atol=1e-12)
    assert (output - hidden[:, : output.shape[1]]).abs().max() > 1e-3


@pytest.mark.parametrize("null", [0, 1, 2])
def test_injection_gives_every_row_the_source_and_leaves_the_source(random_model64, null):
    """A null row reads the source's null row where there is one, else its conditional row."""
    before, after = CaptureFeatures([8]), Through(resolution=8)
    noise(random_model64, Chain([before, InjectFeatures(8), after]), null=null)
    block, features, _, _ = next(record for record in after.seen if record[0].side == "up" and record[0].index == 1)
    sources = [0, 1] if null == 2 else [null]
    for row in range(null + 2):
        read = 0 if null == 2 and row < 2 else null
        assert torch.equal(features[row], features[read])
    torch.testing.assert_close(features[null:][:1].float(), before.records[block, 0][:1])
    free, injected = (noise(random_model64, control, null=null) for control in (None, InjectFeatures(8)))
    moved = (injected - free).abs().amax((1, 2, 3))
    own = {null, 0} if null == 2 else set(sources)
    assert all((value < 1e-12) == (row in own) for row, value in enumerate(moved))


def test_another_row_can_be_the_source(random_model64):
    after = Through(resolution=8)
    noise(random_model64, Chain([InjectFeatures(8, row=1), after]), null=1)
    features = next(record[1] for record in after.seen if record[0].side == "up" and record[0].index == 1)
    assert all(torch.equal(features[row], features[2]) for row in range(3))
    assert not torch.equal(noise(random_model64, InjectFeatures(8, row=1)), noise(random_model64, InjectFeatures(8)))


def test_steps_choose_when(random_model):
    seen, capture = Through(resolution=8), CaptureFeatures([8], steps=[1])
    seen.active = lambda block: seen.step >= 2
    guidance = ClassifierFreeGuidance(random_model.embed(PROMPTS[:2]))
    path, z = Schedule(random_model.scheduler, 4).sampling(), random_model.random_latent(0, 2)
    follow(random_model, z, path, guidance, attention=Chain([seen, capture]))
    assert {step for *_, step in seen.seen} == {2, 3}
    assert {step for _, step in capture.records} == {1}

    def walk(stop):
        return follow(random_model, z, path, guidance, attention=InjectFeatures(8, stop=stop))

    free = follow(random_model, z, path, guidance)
    assert torch.equal(walk(0), free)
    assert torch.equal(walk(None), walk(4))
    assert not torch.equal(walk(1), free)
    assert not torch.equal(walk(3), walk(4))


def test_it_works_beside_controls_of_attention(random_model64):
    """Each does what it does alone, whatever the order, and maps can be read on top of it."""
    features, attention = InjectFeatures(8), MutualSelfAttention([16], start=0)
    capture = Capture(["self"])
    one = noise(random_model64, Chain([features, attention]))
    other = noise(random_model64, Chain([Chain([attention]), capture, features]))
    torch.testing.assert_close(one, other, rtol=0, atol=1e-11)
    assert capture.records
    for alone in (features, attention):
        assert (one - noise(random_model64, alone)).abs().max() > 1e-6


@pytest.mark.parametrize("null", [0, 1, 2])
def test_injected_queries_and_keys_give_the_sources_map(random_model64, null):
    """softmax(Q_s K_s^T) is the same in every row, the values are not; the source row is left alone."""
    capture = Capture(["self"])
    inject = InjectQueriesKeys(first=6)
    injected = noise(random_model64, Chain([inject, capture]), null=null)
    for (site, _), record in capture.records.items():
        equal = torch.allclose(record[1], record[0], rtol=0, atol=1e-6)
        assert equal == (site.side == "up" and site.index >= 6), site
    free = noise(random_model64, null=null)
    torch.testing.assert_close(injected, noise(random_model64, inject, null=null), rtol=0, atol=1e-11)
    sources = {null, 0} if null == 2 else {null}
    moved = (injected - free).abs().amax((1, 2, 3))
    assert all((value < 1e-12) == (row in sources) for row, value in enumerate(moved))


def test_hooks_go_also_when_something_fails(random_model):
    before = hooks(random_model)
    with Through().attached(random_model.unet, (16, 16), 2):
        assert hooks(random_model) == before + len(blocks(random_model.unet, (16, 16)))
    assert hooks(random_model) == before

    def fail(features):
        raise RuntimeError("in the block")

    with pytest.raises(RuntimeError, match="in the block"):
        noise(random_model, Chain([InjectFeatures(8), Through(fail), MutualSelfAttention()]))
    with pytest.raises(EditbookError, match="matches none"):
        noise(random_model, Chain([Through(), InjectFeatures(7)]))
    assert hooks(random_model) == before


def test_what_does_not_fit_raises(random_model):
    with pytest.raises(EditbookError, match=r"InjectFeatures matches none of the residual blocks.*'up', 8"):
        noise(random_model, InjectFeatures(7))
    with pytest.raises(EditbookError, match="changed the shape of features at"):
        noise(random_model, Through(lambda features: features[:1]))
    with pytest.raises(EditbookError, match="not shaped like Stable Diffusion"):
        blocks(_Headless(), (16, 16))


class _Headless(torch.nn.Module):
    """A U-Net without blocks."""

    class config:
        block_out_channels = (1, 1)


def test_half_precision_keeps_its_format():
    features = torch.randn(3, 4, 2, 2).half()
    inject = InjectFeatures(2)
    changed = inject.apply(features, None, 2)
    assert changed.dtype == torch.float16
    assert torch.equal(changed, features[[1, 1, 1]])


def test_components_find_the_parts_that_two_maps_share():
    """Two maps of three kinds of cells, elsewhere placed: equal kinds get equal colours, others do not."""
    generator = torch.Generator().manual_seed(0)
    kinds = torch.randn(3, 6, generator=generator)
    places = torch.randint(3, (2, 4, 5), generator=generator)
    maps = kinds[places].permute(0, 3, 1, 2)
    colours = components(maps, 2)
    assert colours.shape == (2, 4, 5, 2)
    assert colours.dtype == "float32"
    assert colours.min() == 0
    assert colours.max() == pytest.approx(1)
    by_kind = [colours[(places == kind).numpy()] for kind in range(3)]
    for found in by_kind:
        assert abs(found - found[0]).max() < 1e-6
    assert min(abs(by_kind[a][0] - by_kind[b][0]).max() for a, b in ((0, 1), (0, 2), (1, 2))) > 0.1
    # The axes are those of the covariance: variance falls, and no linear map of the channels' basis matters.
    turn = torch.linalg.qr(torch.randn(6, 6, generator=generator)).Q
    turned = components(torch.einsum("ij,njhw->nihw", turn, maps), 2)
    for k in range(2):  # up to the sign
        assert min(abs(turned[..., k] - colours[..., k]).max(), abs(1 - turned[..., k] - colours[..., k]).max()) < 1e-5
    assert components(torch.ones(1, 4, 2, 2)).max() == 0
    with pytest.raises(EditbookError, match="count must be from 1 to 4"):
        components(torch.ones(1, 4, 2, 2), 5)
