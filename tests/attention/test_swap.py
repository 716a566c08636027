"""Exchanged queries, keys and values: the fused path stays exact, every row is seen, and nothing is left behind."""

from __future__ import annotations

import pytest
import torch
from estimates import PROMPTS, noise

from editbook.attention import Capture, Chain, Foreground, MutualSelfAttention, Swap, sites
from editbook.errors import EditbookError
from editbook.sampling import ClassifierFreeGuidance, Schedule, follow


class Through(Swap):
    """Whatever a function makes of the projections; keeps what it saw."""

    def __init__(self, function=lambda projected: projected, **options):
        super().__init__(**options)
        self.function, self.seen = function, []

    def exchange(self, projected, site, rows):
        self.seen.append((site, projected, rows))
        return self.function(projected)


def test_nothing_exchanged_changes_nothing(random_model64):
    torch.testing.assert_close(noise(random_model64, Through()), noise(random_model64), rtol=0, atol=1e-12)


def test_it_forms_no_probabilities(random_model, monkeypatch):
    calls = []
    fused = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        torch.nn.functional, "scaled_dot_product_attention", lambda *a, **k: (calls.append(1), fused(*a, **k))[1]
    )
    noise(random_model)
    plain = len(calls)
    noise(random_model, Through())
    assert len(calls) == 2 * plain
    noise(random_model, Chain([Through(), Capture(["self"])]))
    assert len(calls) == 2 * plain + plain - 10


def test_it_sees_the_whole_batch_and_how_many_rows_are_conditional(random_model):
    control = Through()
    noise(random_model, control, rows=3, null=2)
    places = [site for site in sites(random_model.unet, (16, 16)).values() if site.kind == "self"]
    assert [site for site, _, _ in control.seen] == places
    for site, projected, rows in control.seen:
        assert rows == 3
        assert projected.mask is None
        assert projected.query.shape == projected.key.shape == projected.value.shape
        assert projected.key.shape[:3] == (5, 4, site.height * site.width)


def test_places_and_steps_choose_where_and_when(random_model):
    control = Through(resolutions=[8, 16], sides=["up"], start=1, stop=3)
    steps = []
    control.function = lambda projected: (steps.append(control.step), projected)[1]
    guidance = ClassifierFreeGuidance(random_model.embed("a cat"))
    follow(random_model, random_model.random_latent(0), Schedule(random_model.scheduler, 4).sampling(), guidance,
           attention=control)  # fmt: skip
    assert [(site.side, site.resolution) for site, _, _ in control.seen[:4]] == [("up", r) for r in (8, 8, 16, 16)]
    assert steps == [1] * 4 + [2] * 4


def test_fused_and_explicit_agree_also_with_masks_and_more_keys(random_model64):
    """A capture of self-attention forces the explicit path; the estimate must not notice."""
    model, generator = random_model64, torch.Generator().manual_seed(0)

    def odd(projected):
        pixels = projected.key.shape[2]
        allowed = torch.rand(pixels, 2 * pixels, generator=generator) < 0.7
        allowed[:, 0] = True
        key, value = (torch.cat([part, part.flip(0)], dim=2) for part in (projected.key, projected.value))
        return projected._replace(query=projected.query.flip(0), key=key, value=value, mask=allowed)

    def additive(projected):
        changed = odd(projected)
        bias = torch.zeros(changed.mask.shape, dtype=torch.float64).masked_fill(~changed.mask, -torch.inf)
        return changed._replace(mask=bias)

    results = []
    for function, chain in ((odd, False), (odd, True), (additive, False), (additive, True)):
        generator.manual_seed(0)
        swap = Through(function)
        results.append(noise(model, Chain([swap, Capture(["self"])]) if chain else swap))
    assert (results[0] - noise(model)).abs().max() > 1e-3
    for other in results[1:]:
        torch.testing.assert_close(other, results[0], rtol=0, atol=1e-11)


def test_a_chain_exchanges_first_and_shows_the_probabilities_of_what_is_exchanged(random_model64):
    uniform = Through(lambda projected: projected._replace(query=torch.zeros_like(projected.query)))
    capture = Capture(["self"])
    noise(random_model64, Chain([capture, uniform]))  # whatever the order
    for (site, _), record in capture.records.items():
        torch.testing.assert_close(record, torch.full_like(record, 1 / (site.height * site.width)))


def test_keys_and_values_of_one_walk_serve_another(random_model64):
    """What TIC and KV Inversion need: record in one walk, replay in the next, by place and step."""
    model, kept = random_model64, {}

    class Record(Swap):
        def exchange(self, projected, site, rows):
            kept[site, self.step] = projected.key[-rows:], projected.value[-rows:]
            return projected

    class Replay(Swap):
        def exchange(self, projected, site, rows):
            key, value = kept[site, self.step]
            return projected._replace(key=key, value=value)

    path, z = Schedule(model.scheduler, 2).sampling(), model.random_latent(3)
    guidance = ClassifierFreeGuidance(model.embed(PROMPTS[0]))
    plain = follow(model, z, path, guidance, attention=Record())
    torch.testing.assert_close(follow(model, z, path, guidance, attention=Replay()), plain, rtol=0, atol=1e-12)
    other = model.random_latent(4)
    moved = follow(model, other, path, guidance, attention=Replay()) - follow(model, other, path, guidance)
    assert moved.abs().max() > 1e-3


@pytest.mark.parametrize("null", [0, 2, 3])
def test_mutual_self_attention_is_the_source_where_all_else_is_equal(random_model64, null):
    """Rows of the same latent and prompt are unchanged by it, whoever reads whom; source rows always are."""
    model, rows = random_model64, 3
    free = noise(model, rows=rows, null=null)
    for mode in MutualSelfAttention.MODES:
        mutual = noise(model, MutualSelfAttention(start=0, inject=mode, inject_null=mode), rows=rows, null=null)
        sources = [null, *([0] if null == rows else [])]
        torch.testing.assert_close(mutual[sources], free[sources], rtol=0, atol=1e-12)
        others = [row for row in range(null + rows) if row not in sources]
        moved = (mutual[others] - free[others]).abs().amax((1, 2, 3))
        assert (moved < 1e-12).all() if mode == "none" else (moved > 1e-3).all()
    z = model.random_latent(0, 2)
    text = model.embed([PROMPTS[0]] * 2)
    with torch.no_grad(), MutualSelfAttention(start=0).attached(model.unet, (16, 16), 2):
        both = model.noise(z, 500, text)
    torch.testing.assert_close(both[1], both[0], rtol=0, atol=1e-12)


def test_halves_can_differ(random_model64):
    model = random_model64
    half = noise(model, MutualSelfAttention(start=0, inject="source", inject_null="none"), rows=2, null=2)
    whole = noise(model, MutualSelfAttention(start=0, inject="source", inject_null="source"), rows=2, null=2)
    free = noise(model, rows=2, null=2)
    torch.testing.assert_close(half[:2], free[:2], rtol=0, atol=1e-12)
    torch.testing.assert_close(half[2:], whole[2:], rtol=0, atol=1e-12)
    mixed = noise(model, MutualSelfAttention(start=0, inject="source", inject_null="joint"), rows=2, null=2)
    torch.testing.assert_close(mixed[2:], whole[2:], rtol=0, atol=1e-12)  # keys given twice change no average
    assert (mixed[1] - whole[1]).abs().max() > 1e-3


def test_what_reads_the_keys_is_the_definition(random_model64):
    """At one layer: softmax(Q_target K_source) V_source, written out."""
    layer = random_model64.unet.up_blocks[-1].attentions[0].transformer_blocks[0].attn1
    hidden = torch.randn(2, 256, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with torch.no_grad():
        with MutualSelfAttention(start=0).attached(random_model64.unet, (16, 16), 2):
            out = layer(hidden)
        q, k, v = (
            part.unflatten(-1, (layer.heads, -1)).transpose(0, 1)
            for part in (layer.to_q(hidden[1]), layer.to_k(hidden[0]), layer.to_v(hidden[0]))
        )
        expected = layer.to_out[0](((q @ k.mT * layer.scale).softmax(-1) @ v).transpose(0, 1).flatten(1))
    torch.testing.assert_close(out[1], expected, rtol=0, atol=1e-12)


def halves(*rows):
    """Masks (rows, 16, 16): the left half is object ("l"), all is ("1"), nothing is ("0")."""
    masks = torch.zeros(len(rows), 16, 16)
    for mask, name in zip(masks, rows, strict=True):
        mask[:, : {"l": 8, "1": 16, "0": 0}[name]] = 1
    return Foreground(masks)


@pytest.mark.parametrize("null", [0, 1, 2])
@pytest.mark.parametrize("mode", ["source", "joint"])
def test_masks_that_divide_nothing_are_no_masks(random_model64, null, mode):
    def masked(foreground):
        control = MutualSelfAttention(start=0, inject=mode, inject_null=mode, foreground=foreground)
        return noise(random_model64, control, rows=2, null=null)

    plain = masked(None)
    for rows in ("11", "00", "10", "01")[: 4 if mode == "source" else 2]:  # an empty side sees everything
        torch.testing.assert_close(masked(halves(*rows)), plain, rtol=0, atol=1e-12)
    divided = masked(halves("l", "l"))
    torch.testing.assert_close(divided[null], plain[null], rtol=0, atol=1e-12)  # the source row sees all
    assert (divided[-1] - plain[-1]).abs().max() > 1e-4


def test_masked_attention_is_the_paper_s_mixture_of_two(random_model64):
    """At one layer: m_t F + (1 - m_t) G with log m_s and log(1 - m_s) on the scores, written out."""
    layer = random_model64.unet.up_blocks[-1].attentions[0].transformer_blocks[0].attn1
    hidden = torch.randn(2, 256, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    m_s, m_t = torch.zeros(16, 16), torch.zeros(16, 16)
    m_s[2:9, 3:12], m_t[6:15, 1:9] = 1, 1
    with torch.no_grad():
        masks = Foreground(torch.stack([m_s, m_t]))
        with MutualSelfAttention(start=0, foreground=masks).attached(random_model64.unet, (16, 16), 2):
            out = layer(hidden)
        q, k, v = (
            part.unflatten(-1, (layer.heads, -1)).transpose(0, 1)
            for part in (layer.to_q(hidden[1]), layer.to_k(hidden[0]), layer.to_v(hidden[0]))
        )
        scores, m_s, m_t = q @ k.mT * layer.scale, m_s.flatten().double(), m_t.flatten().double()[:, None]
        inside, outside = ((scores + mask.log()).softmax(-1) @ v for mask in (m_s, 1 - m_s))
        expected = layer.to_out[0]((m_t * inside + (1 - m_t) * outside).transpose(0, 1).flatten(1))
    torch.testing.assert_close(out[1], expected, rtol=0, atol=1e-12)


def test_source_values_inside_the_mask_do_not_reach_the_target_s_background(random_model64):
    layer = random_model64.unet.up_blocks[-1].attentions[0].transformer_blocks[0].attn1
    hidden = torch.randn(2, 256, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    masks = halves("l", "l")
    inside = masks.masks[0].flatten() > 0.5
    changed = hidden.clone()
    changed[0, inside] += 1
    with torch.no_grad(), MutualSelfAttention(start=0, foreground=masks).attached(random_model64.unet, (16, 16), 2):
        before, after = layer(hidden)[1], layer(changed)[1]
    torch.testing.assert_close(after[~inside], before[~inside], rtol=0, atol=1e-12)
    assert (after[inside] - before[inside]).abs().max() > 1e-3


def test_constant_source_values_make_a_constant_output(random_model64):
    """The output lies in the convex hull of the source's values."""

    class Flat(Swap):
        def exchange(self, projected, site, rows):
            value = projected.value.clone()
            value[0] = value[0, :, :1]
            return projected._replace(value=value)

    layer = random_model64.unet.up_blocks[-1].attentions[0].transformer_blocks[0].attn1
    hidden = torch.randn(2, 256, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with torch.no_grad(), Chain([Flat(), MutualSelfAttention(start=0)]).attached(random_model64.unet, (16, 16), 2):
        out = layer(hidden)[1]
    torch.testing.assert_close(out, out[:1].expand_as(out), rtol=0, atol=1e-12)


def test_bad_options_and_shapes_raise(random_model):
    with pytest.raises(EditbookError, match="Did you mean 'up'"):
        Swap(sides=["upp"])
    with pytest.raises(EditbookError, match="in order"):
        Swap(start=5, stop=2)
    with pytest.raises(EditbookError, match="Did you mean 'joint'"):
        MutualSelfAttention(inject="jiont")
    with pytest.raises(EditbookError, match="Through matches none"):
        noise(random_model, Through(resolutions=[7]))
    for function in (
        lambda p: p._replace(query=p.query[:1]),
        lambda p: p._replace(key=p.key[:, :, :5]),
        lambda p: p._replace(key=p.key[:1], value=p.value[:1]),
    ):
        with pytest.raises(EditbookError, match="to the shapes"):
            noise(random_model, Through(function))


def test_processors_come_back(random_model):
    before = dict(random_model.unet.attn_processors)
    noise(random_model, MutualSelfAttention())
    after = random_model.unet.attn_processors
    assert all(after[name] is before[name] for name in before)
