"""Explicit attention is the same attention; it reports where and when it should, and leaves nothing behind."""

from __future__ import annotations

import copy

import pytest
import torch

from editbook.attention import Capture, Chain, Control, sites
from editbook.errors import EditbookError
from editbook.sampling import ClassifierFreeGuidance, Schedule, follow

PROMPTS = ["a photo of a cat on the beach", "a golden fox", "a pencil sketch of a castle at night"]


class Observe(Control):
    """Keeps everything it sees, changes nothing."""

    def __init__(self, kinds=("cross", "self")):
        self.kinds, self.seen = kinds, []

    def wants(self, site):
        return site.kind in self.kinds

    def apply(self, probabilities, site):
        self.seen.append((site, probabilities))
        return probabilities


class Replace(Control):
    """Whatever a function makes of the probabilities."""

    def __init__(self, function, kind="cross"):
        self.function, self.kind = function, kind

    def wants(self, site):
        return site.kind == self.kind

    def apply(self, probabilities, site):
        return self.function(probabilities)


def noise(model, control=None, prompts=PROMPTS, z=None):
    z = model.random_latent(0, len(prompts)) if z is None else z
    embeddings = model.embed(prompts)
    with torch.no_grad():
        if control is None:
            return model.noise(z, 500, embeddings)
        with control.attached(model.unet, tuple(z.shape[-2:]), len(prompts)):
            return model.noise(z, 500, embeddings)


def test_explicit_attention_equals_fused(random_model, random_model64):
    torch.testing.assert_close(noise(random_model, Observe()), noise(random_model), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(noise(random_model64, Observe()), noise(random_model64), rtol=0, atol=1e-12)


def test_one_layer_alone_agrees_to_rounding(random_model):
    layer = random_model.unet.mid_block.attentions[0].transformer_blocks[0].attn2
    hidden = torch.randn(2, 16, 128, generator=torch.Generator().manual_seed(0))
    text = random_model.embed(PROMPTS[:2])
    with torch.no_grad():
        fused = layer(hidden, encoder_hidden_states=text)
        with Observe().attached(random_model.unet, (16, 16), 2):
            explicit = layer(hidden, encoder_hidden_states=text)
    assert (explicit - fused).abs().max() < 1e-6 * fused.abs().max()


def test_rows_sum_to_one_and_have_the_shape_of_their_site(random_model64):
    control = Observe()
    noise(random_model64, control)
    for site, probabilities in control.seen:
        pixels = site.height * site.width
        assert probabilities.shape == (3, 4, pixels, 40 if site.kind == "cross" else pixels)
        assert probabilities.min() >= 0
        torch.testing.assert_close(probabilities.sum(-1), torch.ones_like(probabilities[..., 0]), rtol=0, atol=1e-12)


@pytest.mark.parametrize("size", [(16, 16), (16, 24), (20, 12), (14, 10)])
def test_sites_stand_in_the_order_of_execution_with_their_true_sizes(random_model, size):
    unet, called, handles = random_model.unet, [], []
    for name, module in unet.named_modules():
        if name.endswith(("attn1", "attn2")):
            handles.append(
                module.register_forward_pre_hook(
                    lambda _, args, name=name: called.append((f"{name}.processor", args[0].shape[1]))
                )
            )
    try:
        noise(random_model, None, PROMPTS[:1], torch.randn(1, 4, *size))
    finally:
        for handle in handles:
            handle.remove()
    expected = [(name, site.height * site.width) for name, site in sites(unet, size).items()]
    assert called == expected


def test_sites_number_blocks_and_name_sides(random_model):
    layers = list(sites(random_model.unet, (16, 16)).values())
    assert [site.index for site in layers if site.kind == "cross"] == list(range(10))
    assert [site.index for site in layers if site.kind == "self"] == list(range(10))
    cross = [(site.side, site.resolution) for site in layers if site.kind == "cross"]
    down = [("down", 16), ("down", 8), ("down", 4)]
    up = [("up", resolution) for resolution in (4, 4, 8, 8, 16, 16)]
    assert cross == [*down, ("mid", 4), *up]


def test_controls_see_the_conditional_rows_only(random_model64):
    model, alone, guided = random_model64, Capture(), Capture()
    path = Schedule(model.scheduler, 1).sampling()
    z, text = model.random_latent(0, 2), model.embed(PROMPTS[:2])
    follow(model, z, path, ClassifierFreeGuidance(text), attention=alone)
    follow(model, z, path, ClassifierFreeGuidance(text, model.embed(""), 7.5), attention=guided)
    assert len(alone.records) == 10
    for key, record in alone.records.items():
        torch.testing.assert_close(guided.records[key], record, rtol=0, atol=1e-7)


def test_the_unconditional_half_is_left_alone(random_model64):
    model = random_model64
    path, z, null = Schedule(model.scheduler, 1).sampling(), model.random_latent(0), model.embed("")
    uniform = Replace(lambda p: torch.full_like(p, 1 / p.shape[-1]))
    batches = []

    class Spy(ClassifierFreeGuidance):
        def __call__(self, model, z_t, t, i):
            with torch.no_grad():
                batches.append(model.noise(torch.cat([z_t, z_t]), t, torch.cat([self.null, self.condition])))
            return batches[-1][1:]

    for attention in (None, uniform):
        follow(model, z, path, Spy(model.embed(PROMPTS[0]), null, 2.0), attention=attention)
    torch.testing.assert_close(batches[0][0], batches[1][0], rtol=0, atol=1e-11)
    assert (batches[0][1] - batches[1][1]).abs().max() > 1e-3


def test_step_and_total_come_from_the_sampler(random_model):
    model, steps = random_model, []

    class Watch(Observe):
        def apply(self, probabilities, site):
            steps.append((self.step, self.total))
            return probabilities

    path = Schedule(model.scheduler, 3).sampling()
    follow(
        model,
        model.random_latent(0),
        path,
        ClassifierFreeGuidance(model.embed("a cat")),
        attention=Chain([Watch(("cross",))]),
    )
    assert steps == [(i, 3) for i in range(3) for _ in range(10)]


def test_an_inactive_control_leaves_the_fused_path_bit_for_bit(random_model):
    class Asleep(Observe):
        def active(self, site):
            return False

    control = Asleep()
    assert torch.equal(noise(random_model, control), noise(random_model))
    assert not control.seen


def test_a_chain_applies_in_order(random_model):
    first, last = Observe(("cross",)), Observe(("cross",))
    uniform = Replace(lambda p: torch.full_like(p, 1 / p.shape[-1]))
    noise(random_model, Chain([first, uniform, last]))
    assert first.seen[0][1].std(-1).max() > 0.01
    assert all((probabilities == 1 / 40).all() for _, probabilities in last.seen)


def test_what_a_control_changes_reaches_the_output(random_model64):
    model = random_model64
    uniform = noise(model, Replace(lambda p: torch.full_like(p, 1 / p.shape[-1])))
    assert (uniform - noise(model)).abs().max() > 1e-2
    shuffled = noise(model, Replace(lambda p: p.flip(0)))
    assert (shuffled[1] - noise(model)[1]).abs().max() < 1e-12  # the middle row of three kept its place
    assert (shuffled[0] - noise(model)[0]).abs().max() > 1e-3


def test_a_control_that_matches_nothing_raises(random_model):
    control = Capture(resolutions=[7])
    with pytest.raises(EditbookError, match=r"Capture matches none.*16, 8, 4"):
        noise(random_model, control)
    with pytest.raises(EditbookError, match="Capture matches none"):
        noise(random_model, Chain([Observe(), control]))


def test_a_control_that_changes_the_shape_raises(random_model):
    for function in (lambda p: p[..., :-1], lambda p: p[:1], lambda p: p[:, :, :5]):
        with pytest.raises(EditbookError, match="changed the shape"):
            noise(random_model, Replace(function))


class Rescore(Replace):
    """Whatever a function makes of the scores."""

    reads_scores, reads_probabilities = True, False

    def rescore(self, scores, site):
        return self.function(scores)


class Output(Replace):
    """Whatever a function makes of a layer's output, which stays on fused attention."""

    reads_probabilities, reads_outputs = False, True

    def observe(self, output, site):
        return self.function(output)


@pytest.mark.parametrize("kind", ["cross", "self"])
def test_scores_are_what_the_softmax_makes_probabilities_of(random_model64, kind):
    untouched = noise(random_model64)
    shifted = noise(random_model64, Rescore(lambda scores: scores + 7, kind))  # a constant of each row drops out
    torch.testing.assert_close(shifted, untouched, rtol=0, atol=1e-12)
    flat = noise(random_model64, Rescore(torch.zeros_like, kind))
    uniform = noise(random_model64, Replace(lambda p: torch.full_like(p, 1 / p.shape[-1]), kind))
    torch.testing.assert_close(flat, uniform, rtol=0, atol=1e-12)
    assert (flat - untouched).abs().max() > 1e-3


def test_scores_come_before_probabilities(random_model64):
    seen = []
    chain = Chain([Replace(lambda p: seen.append(p) or p), Rescore(torch.zeros_like)])
    noise(random_model64, chain)
    assert all(torch.allclose(p, torch.full_like(p, 1 / p.shape[-1])) for p in seen)


def test_outputs_can_be_read_and_changed(random_model64):
    seen = []
    same = noise(random_model64, Output(lambda out: seen.append(out) or out))
    torch.testing.assert_close(same, noise(random_model64), rtol=0, atol=1e-12)
    assert {out.ndim for out in seen} == {3}
    assert {len(out) for out in seen} == {len(PROMPTS)}
    nothing = noise(random_model64, Output(torch.zeros_like))
    no_text = noise(random_model64, Output(torch.zeros_like), prompts=[PROMPTS[0]] * 3)
    torch.testing.assert_close(nothing, no_text, rtol=0, atol=1e-12)  # without cross-attention text has no say


@pytest.mark.parametrize("control", [Rescore, Output])
def test_the_other_places_keep_the_shape_too(random_model, control):
    with pytest.raises(EditbookError, match="changed the shape"):
        noise(random_model, control(lambda x: x[:1]))


def test_null_rows_are_not_rescored(random_model64):
    null = random_model64.embed("")
    z = random_model64.random_latent(0)
    guided = ClassifierFreeGuidance(random_model64.embed(PROMPTS[:1]), null, 0.0)  # w = 0: the null rows alone
    moves = Schedule(random_model64.scheduler, 2).sampling()
    plain = follow(random_model64, z, moves, guided)
    for control in (Rescore(torch.zeros_like), Output(torch.zeros_like)):
        torch.testing.assert_close(
            follow(random_model64, z, moves, guided, attention=control), plain, rtol=0, atol=1e-12
        )


def test_layers_with_a_mask_are_refused(random_model):
    mask = torch.ones(1, 40)
    mask[:, 5:] = 0
    z, text = random_model.random_latent(0), random_model.embed("a cat")
    with (
        torch.no_grad(),
        Observe().attached(random_model.unet, (16, 16), 1),
        pytest.raises(EditbookError, match="without masks"),
    ):
        random_model.unet(z, 1, encoder_hidden_states=text, encoder_attention_mask=mask)


def test_processors_come_back_also_after_an_exception(random_model):
    def fail(_):
        raise RuntimeError("in the middle")

    before = dict(random_model.unet.attn_processors)
    noise(random_model, Observe())
    assert random_model.unet.attn_processors == before
    with pytest.raises(RuntimeError, match="in the middle"):
        noise(random_model, Replace(fail))
    after = random_model.unet.attn_processors
    assert after.keys() == before.keys()
    assert all(after[name] is before[name] for name in before)


def test_foreign_shapes_are_named():
    class Foreign:
        config = type("Config", (), {"block_out_channels": (8, 8)})
        attn_processors = {"transformer.0.attn1.processor": None}  # noqa: RUF012

    with pytest.raises(EditbookError, match=r"transformer\.0"):
        sites(Foreign(), (8, 8))


def test_half_precision_stays_a_distribution(random_model):
    unet = copy.deepcopy(random_model.unet).bfloat16()
    control, z = Observe(), random_model.random_latent(0).bfloat16()
    with torch.no_grad(), control.attached(unet, (16, 16), 1):
        out = unet(z, 500, encoder_hidden_states=random_model.embed("a cat").bfloat16()).sample
    assert out.dtype == torch.bfloat16
    assert all(abs(float(p.float().sum(-1).mean()) - 1) < 1e-2 for _, p in control.seen)


def test_a_chain_in_a_chain_is_one_chain(random_model):
    first, second, third = Observe(), Observe(), Observe()
    assert Chain([first, Chain([second, third])]).controls == [first, second, third]
