"""The audit sees what changes, where and when, and changes nothing itself."""

from __future__ import annotations

import numpy as np

import editbook
from editbook.attention import Chain, InjectFeatures, MutualSelfAttention
from editbook.attention.audit import audit, span, table
from editbook.sampling import ClassifierFreeGuidance, Schedule, follow

SOURCE, TARGET = "a photo of a cat on the beach", "a photo of a fox on the beach"


def p2p(model, target=TARGET, **options):
    return editbook.edit(model, None, source=SOURCE, target=target, steps=5, **options)


def test_prompt_to_prompt_changes_maps_as_far_and_as_long_as_it_was_told(random_model):
    with audit() as found:
        watched = p2p(random_model, cross_replace=0.4, self_replace=0.2, self_limit=8)
    assert {touch.what for touch in found} == {"map"}
    own = [touch for touch in found if touch.kind == "self"]
    cross = [touch for touch in found if touch.kind == "cross"]
    assert {touch.resolution for touch in own} == {4, 8}
    assert {touch.step for touch in own} == {0}
    assert {touch.resolution for touch in cross} == {4, 8, 16}
    assert {touch.step for touch in cross} == {0, 1}  # floor(0.4 (5 + 1)) steps
    assert {touch.control for touch in found} == {"PromptToPromptControl"}
    plain = p2p(random_model, cross_replace=0.4, self_replace=0.2, self_limit=8)
    assert np.array_equal(np.asarray(watched.image), np.asarray(plain.image))


def test_what_is_put_back_unchanged_is_no_change(random_model):
    with audit() as found:
        p2p(random_model, cross_replace=0.0, self_replace=0.0)
    assert found == []


def test_swaps_and_features_are_named(random_model):
    model = random_model
    chain = Chain([MutualSelfAttention([16], start=1), InjectFeatures(8, stop=2)])
    with audit() as found:
        follow(
            model,
            model.random_latent(0, 2),
            Schedule(model.scheduler, 3).sampling(),
            ClassifierFreeGuidance(model.embed([SOURCE, TARGET])),
            attention=chain,
        )
    assert table(found) == [
        ("residual: features", "up", "8", "first 67 %"),
        ("self: key, value", "up", "16", "from step 1"),
    ]


def test_nothing_is_left_behind(random_model):
    with audit() as outer:
        with audit() as inner:
            p2p(random_model)
        assert inner == outer != []
        count = len(outer)
    p2p(random_model)
    assert len(outer) == count


def test_spans():
    assert span([0, 1, 2], 3) == "all"
    assert span([0, 1], 5) == "first 40 %"
    assert span([4, 5], 6) == "from step 4"
    assert span([2, 3], 6) == "steps 2 to 3"
