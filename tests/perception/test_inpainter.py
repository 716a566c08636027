"""Inpainters: what is outside the hole stays to the last bit, for any picture and any network."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from editbook.errors import EditbookError
from editbook.perception import BorderInpainter, LamaInpainter, PocketInpainter, load_inpainter
from editbook.perception.inpainter import FourierUnit, PocketLaMa, padded
from editbook.pocket import sample_held_out


@pytest.fixture(scope="module")
def random_inpainter():
    torch.manual_seed(0)
    return PocketInpainter(PocketLaMa())


class Shades(torch.nn.Module):
    """Answers with the hole's own place: red is x, green is y; in the manner of a TorchScript LaMa."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        h, w = x.shape[-2], x.shape[-1]
        rows = torch.arange(h, device=x.device).float()[:, None].expand(h, w) / 255
        columns = torch.arange(w, device=x.device).float()[None].expand(h, w) / 255
        return torch.stack([columns, rows, torch.full_like(rows, (h % 8 + w % 8) / 255)])[None] * self.weight


def picture(width, height, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


@pytest.mark.parametrize(("width", "height"), [(64, 64), (61, 47), (5, 130), (3, 3), (1, 1), (100, 64)])
def test_the_picture_is_unchanged_outside_and_keeps_its_size(random_inpainter, width, height):
    image, mask = picture(width, height), np.zeros((height, width))
    mask[height // 3 :, : (width + 1) // 2] = 1
    for inpainter in (random_inpainter, LamaInpainter(Shades()), BorderInpainter()):
        filled = np.asarray(inpainter.inpaint(image, mask))
        assert filled.shape == image.shape
        assert (filled[mask == 0] == image[mask == 0]).all()


def test_what_is_in_the_hole_is_not_looked_at(random_inpainter):
    mask = np.zeros((64, 64), bool)
    mask[20:40, 10:50] = True
    one, other = picture(64, 64), picture(64, 64)
    other[mask] = picture(64, 64, 1)[mask]
    assert random_inpainter.inpaint(one, mask).tobytes() == random_inpainter.inpaint(other, mask).tobytes()
    assert random_inpainter.inpaint(one, mask).tobytes() != Image.fromarray(one).tobytes()


def test_an_empty_hole_gives_the_picture_and_a_full_one_does_not_crash(random_inpainter):
    image = picture(40, 30)
    for inpainter in (random_inpainter, BorderInpainter()):
        assert inpainter.inpaint(image, np.zeros((30, 40))).tobytes() == image.tobytes()
        assert inpainter.inpaint(image, np.ones((30, 40))).size == (40, 30)


def test_any_value_above_0_is_hole(random_inpainter):
    image, mask = picture(64, 64), np.zeros((64, 64))
    mask[10:20, 10:20] = 1
    for scale in (0.1, 255):
        filled = random_inpainter.inpaint(image, (mask * scale).astype(np.float32))
        assert filled.tobytes() == random_inpainter.inpaint(image, mask).tobytes()


@pytest.mark.parametrize("mask", [np.ones((64, 63)), np.ones((1, 64, 64)), np.full((64, 64), np.nan), 3.0])
def test_a_wrong_mask_is_refused(random_inpainter, mask):
    with pytest.raises(EditbookError, match="mask"):
        random_inpainter.inpaint(picture(64, 64), mask)


def test_padding_reflects():
    x = torch.arange(6.0).reshape(1, 1, 2, 3)
    assert padded(x, 4)[0, 0].tolist() == [[0, 1, 2, 1], [3, 4, 5, 4], [0, 1, 2, 1], [3, 4, 5, 4]]
    assert padded(x[..., :1], 8).shape == (1, 1, 8, 8)
    assert padded(x, 1) is not None
    wide = torch.rand(1, 1, 13, 5)
    assert torch.equal(padded(wide, 8)[..., :13, :5], wide)


def test_a_fourier_unit_sees_everything_and_turns_with_the_picture():
    torch.manual_seed(0)
    unit, x = FourierUnit(4), torch.randn(1, 4, 16, 16)
    rolled = unit(x.roll((3, 5), (-2, -1)))
    moved = x.clone()
    moved[..., 0, 0] += 1
    assert ((unit(moved) - unit(x)).abs() > 1e-7).float().mean() > 0.9
    assert unit(torch.randn(2, 4, 15, 17)).shape == (2, 4, 15, 17), "odd sides"
    assert rolled.shape == x.shape


def test_the_network_has_under_a_million_weights_and_a_twin_without_fourier_units():
    count, plain = (sum(p.numel() for p in PocketLaMa(fourier=fourier).parameters()) for fourier in (True, False))
    assert count < 1_000_000
    assert plain > count, "the twin to compare with is not the smaller one"


def test_the_real_one_is_a_torchscript_file(tmp_path):
    torch.jit.script(Shades()).save(tmp_path / "big-lama.pt")
    lama = load_inpainter(tmp_path / "big-lama.pt")
    image, mask = picture(61, 47), np.ones((47, 61), bool)
    filled = np.asarray(lama.inpaint(image, mask))
    assert (filled[..., 0] == np.arange(61)).all()
    assert (filled[..., 1] == np.arange(47)[:, None]).all()
    assert (filled[..., 2] == 0).all(), "its sides are multiples of 8"
    assert lama.name == "LaMa"


def test_files(tmp_path):
    with pytest.raises(EditbookError, match="There is no inpainter"):
        load_inpainter(tmp_path)
    with pytest.raises(EditbookError, match="LaMa"):
        load_inpainter(tmp_path / "none.pt")
    network = PocketLaMa()
    save_file({name: value.half() for name, value in network.state_dict().items()}, tmp_path / "model.safetensors")
    assert "stand-in for LaMa" in load_inpainter(tmp_path).name
    save_file({"weight": torch.zeros(1)}, tmp_path / "model.safetensors")
    load_inpainter.cache_clear()
    with pytest.raises(EditbookError, match="this version's inpainter"):
        load_inpainter(tmp_path)


def test_the_shipped_one_beats_the_mean_border_colour_on_unseen_removals():
    from editbook.training.inpainter import hole_psnr, removal, widened

    ours, theirs, found = load_inpainter(), BorderInpainter(), []
    for scene in (sample_held_out(60_000_000 + seed) for seed in range(40)):
        if scene.objects:
            before, truth, masks = removal(scene, 0)
            hole = widened(masks[..., 1] > 127, 1)
            found.append([hole_psnr(np.asarray(one.inpaint(before, hole)), truth, hole) for one in (ours, theirs)])
    network, border = np.mean(found, 0)
    assert network > border + 1
