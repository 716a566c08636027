"""The diffusion model of pixels: patches lose nothing, and predictions of all kinds mean the same."""

from __future__ import annotations

import pytest
import torch
from diffusers import UNet2DModel

from editbook.errors import EditbookError
from editbook.model import SHIPPED
from editbook.pixel_diffusion import PixelDiffusion, load_pixel_diffusion
from editbook.sampling import Schedule, add_noise, clean_estimate
from editbook.training.pixel import (
    as_pictures,
    build_pixel_scheduler,
    build_pixel_unet,
    denoising_loss,
    sample_pixels,
)
from editbook.training.vae import held_out_pictures


@pytest.fixture(scope="module")
def pixels():
    torch.manual_seed(0)
    return PixelDiffusion(build_pixel_unet(), build_pixel_scheduler(), "random")


class Oracle(torch.nn.Module):
    """A network that gives the right answer of each kind, in patches of k pixels."""

    def __init__(self, kind, x_0, noise, alphas, k):
        super().__init__()
        self.config = UNet2DModel(
            sample_size=16, in_channels=3 * k**2, out_channels=3 * k**2, norm_num_groups=8, block_out_channels=(8,) * 4
        ).config
        self.answers, self.alphas, self.k = {"epsilon": noise, "sample": x_0}, alphas, k
        self.kind, self.x_0, self.noise = kind, x_0, noise

    def forward(self, x, t):
        alpha = self.alphas[t]
        v = alpha.sqrt() * self.noise - (1 - alpha).sqrt() * self.x_0
        answer = {**self.answers, "v_prediction": v}[self.kind]
        return type("Out", (), {"sample": torch.nn.functional.pixel_unshuffle(answer, self.k)})


@pytest.mark.parametrize("k", [1, 4])
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_all_predictions_are_the_same_noise(kind, k):
    scheduler = build_pixel_scheduler(kind)
    x_0, noise = torch.randn(2, 3, 16, 16, dtype=torch.float64), torch.randn(2, 3, 16, 16, dtype=torch.float64)
    alphas = scheduler.alphas_cumprod.double()
    pixels = PixelDiffusion(Oracle(kind, x_0, noise, alphas, k), scheduler)
    assert pixels.patch == k
    for t in (5, 400, 990):
        x_t = add_noise(x_0, noise, float(alphas[t]))
        assert torch.allclose(pixels.noise(x_t, t), noise, atol=1e-6)
        assert torch.allclose(pixels.clean(x_t, t), x_0, atol=1e-6)


def test_the_clean_picture_is_that_of_the_noise(pixels):
    x_t = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        noise, clean = pixels.noise(x_t, 300), pixels.clean(x_t, 300)
    alpha = float(pixels.scheduler.alphas_cumprod[300])
    assert noise.shape == x_t.shape
    assert torch.allclose(clean_estimate(x_t, noise, alpha), clean, atol=1e-4)


def test_every_pixel_is_read(pixels):
    """A change of one pixel is seen, whichever place in its patch it has."""
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        before = pixels.noise(x, 500)
        for row, column in ((0, 0), (1, 2), (3, 3), (62, 61)):
            changed = x.clone()
            changed[0, 1, row, column] += 1
            assert not torch.equal(pixels.noise(changed, 500), before)


def test_what_is_no_picture_or_no_such_model_is_refused(pixels):
    for shape in ((1, 4, 64, 64), (3, 64, 64), (1, 3, 66, 64)):
        with pytest.raises(EditbookError, match="multiples of 4"):
            pixels.noise(torch.zeros(shape), 5)
    with pytest.raises(EditbookError, match="not finite"):
        pixels.noise(torch.full((1, 3, 64, 64), float("nan")), 5)
    odd = UNet2DModel(sample_size=16, in_channels=3, out_channels=6, norm_num_groups=8, block_out_channels=(8,) * 4)
    with pytest.raises(EditbookError, match="gives 6"):
        PixelDiffusion(odd, build_pixel_scheduler())


@pytest.mark.filterwarnings("ignore")
def test_load_reads_both_layouts(pixels, tmp_path):
    pixels.unet.save_pretrained(tmp_path / "a" / "unet")
    pixels.scheduler.save_pretrained(tmp_path / "a" / "scheduler")
    pixels.unet.save_pretrained(tmp_path / "b")  # as the first published checkpoints
    pixels.scheduler.save_pretrained(tmp_path / "b")
    x = torch.randn(1, 3, 64, 64)
    for name in "ab":
        loaded = load_pixel_diffusion(str(tmp_path / name))
        assert loaded.image_size == 64
        with torch.no_grad():
            assert torch.allclose(loaded.noise(x, 300), pixels.noise(x, 300), atol=1e-5)
    assert load_pixel_diffusion(str(tmp_path / "a"), dtype=torch.float64).unet.dtype == torch.float64
    with pytest.raises(EditbookError, match="Could not load"):
        load_pixel_diffusion(str(tmp_path / "nothing"))


@pytest.fixture(scope="module")
def shipped():
    if not (SHIPPED / "pixel").is_dir():
        pytest.skip("src/editbook/weights/pixel is absent")
    return load_pixel_diffusion()


def test_the_shipped_one_denoises_pictures_it_never_saw(shipped):
    """Far better than the best constant guess, mid-grey, whose error is the mean square of the pictures."""
    shown = held_out_pictures(32)
    x_t = add_noise(shown, torch.randn_like(shown), alpha := float(shipped.scheduler.alphas_cumprod[500]))
    assert alpha < 0.1
    with torch.no_grad():
        error = (shipped.clean(x_t, 500) - shown).square().mean()
    assert error < 0.35 * (shown - shown.mean((0, 2, 3), keepdim=True)).square().mean()
    assert denoising_loss(shipped, shown) < 0.2
    assert sum(p.numel() for p in shipped.unet.parameters()) <= 2_500_000


def test_its_samples_are_pictures(shipped):
    """Their colours spread like the world's, and none looks like another."""
    drawn = sample_pixels(shipped, 6, steps=20)
    assert [picture.size for picture in drawn] == [(64, 64)] * 6
    x = torch.stack([torch.tensor(list(picture.getdata())).float() for picture in drawn]) / 127.5 - 1
    world = held_out_pictures(64)
    assert 0.7 < float(x.std() / world.std()) < 1.3
    assert min(float((x[i] - x[j]).abs().mean()) for i in range(6) for j in range(i)) > 0.1
    assert as_pictures(torch.full((1, 3, 4, 4), 2.0))[0].getpixel((0, 0)) == (255, 255, 255)
    assert Schedule(shipped.scheduler, 20).alpha(-1) == 1.0
