"""CLIP as a guide: its distance, and its warps."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional

import editbook
from editbook.clip_guidance import ClipDistance, Warps, homography, load_clip_distance, spherical_distance
from editbook.errors import EditbookError


def unit(n, seed):
    return functional.normalize(
        torch.randn(n, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)), dim=-1
    )


def test_the_distance_is_half_the_squared_angle():
    u, v = unit(50, 0), unit(50, 1)
    angle = (u * v).sum(-1).clamp(-1, 1).acos()
    assert torch.allclose(spherical_distance(u, v), angle.square() / 2, atol=1e-6)


def test_at_the_text_the_distance_is_0_and_its_gradient_finite():
    u = unit(3, 0).requires_grad_()
    distance = spherical_distance(u, u.detach().clone())
    distance.sum().backward()
    assert distance.max() < 1e-11
    assert torch.isfinite(u.grad).all()
    opposite = spherical_distance(unit(3, 0), -unit(3, 0))
    assert torch.isfinite(opposite).all()


@pytest.fixture(scope="module")
def pocket_clip(pocket_model):
    return load_clip_distance("pocket")


def test_it_is_the_models_own_clip(pocket_clip, pocket_model):
    task = editbook.pocket.task("cat-to-fox")
    pixels = torch.from_numpy(np.asarray(task.source_image, np.float32)).permute(2, 0, 1)[None] / 127.5 - 1
    tokens = pocket_model.tokenizer([task.source_prompt], padding="max_length", return_tensors="pt").input_ids
    clip = pocket_model.clip
    with torch.no_grad():
        u = functional.normalize(clip.visual_projection(clip.vision_model(pixels).pooler_output), dim=-1)
        v = functional.normalize(clip.text_projection(clip.text_model(tokens).pooler_output), dim=-1)
        distance = pocket_clip(pixels, pocket_clip.embed(task.source_prompt))
    assert torch.allclose(distance, spherical_distance(u, v), atol=1e-5)
    with pytest.raises(EditbookError, match="limit is 40"):
        pocket_clip.embed("cat " * 60)
    with pytest.raises(EditbookError, match="Could not load the CLIP"):
        load_clip_distance("/nowhere")


def test_pictures_are_nearer_to_their_own_text(pocket_clip):
    scenes = [editbook.pocket.sample_held_out(seed) for seed in range(12)]
    pixels = torch.from_numpy(np.stack([scene.array() for scene in scenes])).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.no_grad():
        table = torch.stack([pocket_clip(pixels, pocket_clip.embed(scene.caption())) for scene in scenes])
    assert (table.argmin(0) == torch.arange(12)).float().mean() > 0.7


def test_other_towers_get_their_own_normalisation(pocket_clip):
    grey = torch.zeros(1, 3, 64, 64)
    other = ClipDistance(pocket_clip.clip, pocket_clip.tokenizer)
    text = pocket_clip.embed("a cat")
    with torch.no_grad():
        assert not torch.allclose(other(grey, text), pocket_clip(grey, text))


def test_a_homography_takes_points_to_points():
    generator = torch.Generator().manual_seed(0)
    corners = torch.tensor([[-1.0, -1.0], [1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]], dtype=torch.float64).expand(5, 4, 2)
    start = corners * (0.5 + 0.5 * torch.rand(5, 4, 2, dtype=torch.float64, generator=generator))
    mapped = functional.pad(start, (0, 1), value=1.0) @ homography(start, corners).mT
    assert torch.allclose(mapped[..., :2] / mapped[..., 2:], corners, atol=1e-10)


def test_without_chance_views_are_the_picture():
    pictures = torch.rand(3, 3, 32, 32)
    assert torch.allclose(
        Warps.apply(pictures, *Warps(chance=0.0).draw(3, torch.Generator().manual_seed(0))), pictures, atol=1e-5
    )


def test_a_shift_moves_pixels_and_repeats_the_edge():
    picture = torch.zeros(1, 1, 16, 16)
    picture[..., 0] = 1
    shifted = torch.tensor([[[1.0, 0.0, -0.5], [0.0, 1.0, 0.0]]])  # reads four pixels further to the left
    seen = Warps.apply(picture, shifted, torch.eye(3)[None])
    assert torch.allclose(seen[..., :5], torch.ones(()), atol=1e-5)
    assert torch.allclose(seen[..., 5:], torch.zeros(()), atol=1e-5)


def test_perspective_shrinks_the_picture_onto_grey():
    """Corners come in: what was at the border is inside, and around it there is mid-grey, 0."""
    warps = Warps(degrees=0.0, shift=0.0, chance=1.0)
    affine, projective = warps.draw(20, torch.Generator().manual_seed(0))
    seen = Warps.apply(torch.ones(20, 3, 32, 32), affine, projective)
    assert 0.2 < float(seen.mean()) < 0.95
    assert (seen.amax((1, 2, 3)) > 0.99).all()
    assert (seen >= -1e-5).all()


def test_views_differ_and_repeat_with_their_seed():
    picture = torch.rand(1, 3, 32, 32).expand(6, 3, 32, 32)
    one, same = (Warps.apply(picture, *Warps().draw(6, torch.Generator().manual_seed(1))) for _ in range(2))
    assert torch.equal(one, same)
    other = Warps.apply(picture, *Warps().draw(6, torch.Generator().manual_seed(2)))
    assert not torch.equal(one, other)
    assert not torch.allclose(one[0], one[1])
