from __future__ import annotations

import pytest
import torch

from editbook import pocket
from editbook.training.stream import EditStream, SceneStream


def small(kind=SceneStream, seed=1, **options):
    return kind(seed, 8, size=16, pool=32, **options)


def batches(stream, count):
    drawn = []
    for _ in range(count):
        stream.advance()
        slots = stream.choose()
        drawn.append((stream.pictures(slots), stream.captions(slots)))
    return drawn


def same(one, other):
    return all(torch.equal(a, b) and c == d for (a, c), (b, d) in zip(one, other, strict=True))


@pytest.mark.parametrize("kind", [SceneStream, EditStream])
def test_a_stream_depends_on_its_seed_and_on_nothing_else(kind):
    assert same(batches(small(kind), 3), batches(small(kind), 3))
    assert not same(batches(small(kind), 3), batches(small(kind, seed=2), 3))


@pytest.mark.parametrize("kind", [SceneStream, EditStream])
def test_a_stream_goes_on_where_it_stood(kind):
    stream = small(kind)
    batches(stream, 11)  # beyond one turn of the ring
    state = stream.state_dict()
    resumed = small(kind)
    resumed.load_state_dict(state)
    assert same(batches(stream, 5), batches(resumed, 5))


def test_worker_processes_do_not_change_the_stream():
    alone, helped = small(), small(workers=1)
    assert same(batches(alone, 4), batches(helped, 4))
    state = helped.state_dict()
    helped.load_state_dict(state)  # what had been drawn ahead must not leak into the resumed stream
    assert same(batches(alone, 4), batches(helped, 4))


def test_pictures_and_captions_of_a_slot_belong_together():
    stream = small()
    for _ in range(10):
        stream.advance()
    scenes = {}
    for number in range(32 + 10 * stream.fresh):
        scenes[number % 32] = pocket.sample(1_000_000_000 + number)  # later scenes take the place of earlier ones
    slots = torch.arange(32)
    for slot, picture, caption in zip(slots.tolist(), stream.pictures(slots), stream.captions(slots), strict=True):
        truth = torch.from_numpy(scenes[slot].array(16)).permute(2, 0, 1) / 127.5 - 1
        assert torch.equal(picture, truth.float())
        assert caption in [scenes[slot].caption(k) for k in range(pocket.PHRASINGS)]


def test_a_batch_replaces_its_share_of_the_pool():
    stream = small()
    before = stream.pictures(torch.arange(32))
    slots = stream.advance()
    changed = (stream.pictures(torch.arange(32)) != before).flatten(1).any(1)
    assert len(slots) == stream.batch_size // 4
    assert set(changed.nonzero().flatten().tolist()) <= set(slots.tolist())
    assert changed.any()


def test_no_training_scene_is_held_out():
    assert not any(pocket.is_held_out(pocket.sample(1_000_000_000 + k)) for k in range(200))


def test_edit_pairs_are_before_and_after():
    stream = small(EditStream)
    slots = torch.arange(32)
    pairs = stream.pictures(slots)
    assert pairs.shape == (32, 2, 3, 16, 16)
    assert pairs.abs().max() <= 1
    number = 1_000_000_005
    before, after, instruction = pocket.sample_edit(number)
    expected = torch.stack([torch.from_numpy(scene.array(16)).permute(2, 0, 1) for scene in (before, after)])
    assert torch.equal(pairs[5], expected.float() / 127.5 - 1)
    assert stream.captions(slots)[5] == instruction


def test_a_batch_that_reuse_does_not_divide_is_refused():
    with pytest.raises(ValueError, match="multiple"):
        SceneStream(1, 6, reuse=4)
