"""Filling a hole from what is around it: a small network that stands in for LaMa, and the real one."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional

from ..errors import EditbookError
from ..images import as_image
from ..model import SHIPPED
from .base import Picture, loaded


class Inpainter(Protocol):
    """From a picture with a hole to a picture without; no text is read."""

    name: str

    def inpaint(self, image: Picture, mask: np.ndarray) -> Image.Image:
        """Fill the hole.

        Args:
            image: The picture, of any size.
            mask: The hole: what is above 0, (height, width). Outside it the picture stays as it is, to the last bit.

        Raises:
            EditbookError: The mask has not the picture's size.
        """
        ...


class FourierUnit(nn.Module):
    """A 1x1 convolution of the spectrum: each output reads the whole picture, as if it went on periodically.

    Args:
        width: Channels in and out.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        # Real and imaginary parts as channels.
        self.layers = nn.Sequential(nn.Conv2d(2 * width, 2 * width, 1), nn.GroupNorm(4, 2 * width), nn.ReLU())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Of the shape of x, (n, width, h, w)."""
        spectrum = torch.fft.rfft2(x.float(), norm="ortho")  # no half precision: its transforms know few sizes
        parts = self.layers(torch.cat([spectrum.real, spectrum.imag], 1)).float()
        real, imaginary = parts.chunk(2, 1)
        back = torch.fft.irfft2(torch.complex(real, imaginary), s=x.shape[-2:], norm="ortho")
        return back.to(x.dtype)


class SpectralTransform(nn.Module):
    """The global branch: a Fourier unit at half the width, and around it a short cut.

    Args:
        width: Channels in and out.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.enter = nn.Sequential(nn.Conv2d(width, width // 2, 1), nn.GroupNorm(4, width // 2), nn.ReLU())
        self.spectrum = FourierUnit(width // 2)
        self.leave = nn.Conv2d(width // 2, width, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Of the shape of x, (n, width, h, w)."""
        x = self.enter(x)
        return self.leave(x + self.spectrum(x))


class _Local(nn.Conv2d):
    """What stands in place of the spectral transform in a network without Fourier units: a 3x3 convolution."""

    def __init__(self, width: int) -> None:
        super().__init__(width, width, 3, padding=1)


class FourierConvolution(nn.Module):
    """Fast Fourier convolution: local channels through 3x3 convolutions, global ones also through the spectrum.

    Args:
        local: Local channels.
        across: Global channels.
        fourier: False puts a 3x3 convolution in the spectrum's place, to compare.
    """

    def __init__(self, local: int, across: int, fourier: bool = True) -> None:
        super().__init__()
        self.local = nn.Conv2d(local + across, local, 3, padding=1)
        self.from_local = nn.Conv2d(local, across, 3, padding=1)
        self.across: nn.Module = SpectralTransform(across) if fourier else _Local(across)
        self.norm_local, self.norm_across = nn.GroupNorm(4, local), nn.GroupNorm(4, across)

    def forward(self, local: torch.Tensor, across: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Both groups of channels anew."""
        new_local = self.local(torch.cat([local, across], 1))
        new_across = self.from_local(local) + self.across(across)
        return functional.relu(self.norm_local(new_local)), functional.relu(self.norm_across(new_across))


class _Block(nn.Module):
    def __init__(self, local: int, across: int, fourier: bool) -> None:
        super().__init__()
        self.split = [local, across]
        self.first = FourierConvolution(local, across, fourier)
        self.second = FourierConvolution(local, across, fourier)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        local, across = x.split(self.split, 1)
        return x + torch.cat(self.second(*self.first(local, across)), 1)


class PocketLaMa(nn.Module):
    """LaMa's generator, a hundredth of its size: two halvings, four Fourier blocks, two doublings, a sigmoid.

    Args:
        width: Channels at full size; four times as many in the blocks.
        blocks: Residual blocks.
        ratio: Share of the blocks' channels that see the spectrum.
        fourier: False gives a network without Fourier units, of which each output sees only what is near.
    """

    def __init__(self, width: int = 16, blocks: int = 4, ratio: float = 0.75, fourier: bool = True) -> None:
        super().__init__()
        inside = 4 * width
        across = round(ratio * inside)

        def down(before: int, after: int, stride: int = 2) -> nn.Sequential:
            convolution = nn.Conv2d(before, after, 3, stride, padding=1)
            return nn.Sequential(convolution, nn.GroupNorm(4, after), nn.ReLU())

        def up(before: int, after: int) -> nn.Sequential:
            convolution = nn.ConvTranspose2d(before, after, 4, 2, padding=1)
            return nn.Sequential(convolution, nn.GroupNorm(4, after), nn.ReLU())

        self.down = nn.Sequential(down(4, width, 1), down(width, 2 * width), down(2 * width, inside))
        self.blocks = nn.Sequential(*(_Block(inside - across, across, fourier) for _ in range(blocks)))
        self.up = nn.Sequential(up(inside, 2 * width), up(2 * width, width))
        self.last = nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """The network's picture, everywhere; the hole is filled with `mask * result + (1 - mask) * x`.

        Args:
            x: Pictures (n, 3, h, w) in [0, 1]; h and w are multiples of 4. What is in the hole is not looked at.
            mask: 1 in the hole, (n, 1, h, w).
        """
        h = self.blocks(self.down(torch.cat([x * (1 - mask), mask], 1)))
        return self.last(self.up(h)).float().sigmoid()


def hole_of(image: Image.Image, mask: np.ndarray) -> np.ndarray:
    """The hole as bool (height, width).

    Raises:
        EditbookError: The mask has not the picture's size, or holds what is no number.
    """
    hole = np.asarray(mask)
    if hole.shape != (image.height, image.width):
        raise EditbookError(
            f"The mask must have the picture's size, (height, width) = ({image.height}, {image.width}); "
            f"its shape is {hole.shape}."
        )
    if hole.dtype.kind not in "buif" or not np.isfinite(hole.astype(np.float64)).all():
        raise EditbookError("The mask of an inpainter holds finite numbers, above 0 in the hole.")
    return np.asarray(hole > 0)


def padded(x: torch.Tensor, multiple: int) -> torch.Tensor:
    """Right and bottom extended by reflection to sides that are multiples of a number, (n, channels, h, w)."""
    for dim in (-2, -1):
        side = x.shape[dim]
        at = torch.arange(-(-side // multiple) * multiple)
        period = max(2 * (side - 1), 1)
        at = at % period
        x = x.index_select(dim, torch.where(at < side, at, period - at).to(x.device))
    return x


def composite(image: Image.Image, filled: np.ndarray, hole: np.ndarray) -> Image.Image:
    """The picture, with what is filled in (uint8 or float in [0, 255], (height, width, 3)) in the hole."""
    pixels = np.array(image)
    pixels[hole] = np.asarray(filled, np.float64).round().clip(0, 255)[hole].astype(np.uint8)
    return Image.fromarray(pixels)


class _NetworkInpainter:
    """What the pocket inpainter and the real one share: padding, and the untouched rest of the picture.

    Args:
        network: From pictures (n, 3, h, w) in [0, 1] and holes (n, 1, h, w) to pictures in [0, 1].
        name: What it is, for pages and errors.
        multiple: Of what the network's sides must be multiples.
    """

    def __init__(self, network: nn.Module, name: str, multiple: int) -> None:
        self.network = network.eval()
        for parameter in network.parameters():  # TorchScript has no `requires_grad_` for all of them
            parameter.requires_grad_(False)
        self.name, self.multiple = name, multiple

    @torch.no_grad()
    def inpaint(self, image: Picture, mask: np.ndarray) -> Image.Image:
        """See `Inpainter.inpaint`."""
        image = as_image(image)
        hole = hole_of(image, mask)
        if not hole.any():
            return image
        device = next(self.network.parameters()).device
        x = torch.from_numpy(np.array(image, np.float32)).permute(2, 0, 1)[None].to(device) / 255
        m = torch.from_numpy(hole.astype(np.float32))[None, None].to(device)
        filled = self.network(padded(x, self.multiple), padded(m, self.multiple))[0, :, : image.height, : image.width]
        return composite(image, filled.float().permute(1, 2, 0).cpu().numpy() * 255, hole)


class PocketInpainter(_NetworkInpainter):
    """Fills holes with a trained `PocketLaMa`, at 64 pixels at its best: it has seen pictures of no other size.

    It stands in for LaMa (Suvorov et al. 2022), whose generator it has, but not its adversarial training: where LaMa
    draws a sharp guess, this one is blurred. It was trained on scenes of the pocket world, mostly without objects, and
    on removals, whose right answer is known here. It knows nothing else.
    """

    def __init__(self, network: PocketLaMa) -> None:
        super().__init__(network, "pocket inpainter (stand-in for LaMa)", 4)


class LamaInpainter(_NetworkInpainter):
    """The real LaMa, from a TorchScript file (`big-lama.pt`, 206 MB; 51 M parameters).

    Args:
        network: The script: (picture in [0, 1], hole) -> picture in [0, 1], sides multiples of 8.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__(network, "LaMa", 8)


class BorderInpainter:
    """Fills a hole with the mean colour of the pixels along its border: what any inpainter has to beat."""

    name = "mean border colour"

    def inpaint(self, image: Picture, mask: np.ndarray) -> Image.Image:
        """See `Inpainter.inpaint`; where nothing is outside the hole, the fill is grey."""
        image = as_image(image)
        hole = hole_of(image, mask)
        if not hole.any():
            return image
        wide = np.pad(hole, 1, mode="edge")
        near = np.zeros_like(hole)
        for dy in (0, 1, 2):
            for dx in (0, 1, 2):
                near |= wide[dy : dy + hole.shape[0], dx : dx + hole.shape[1]]
        border = np.asarray(image, np.float64)[near & ~hole]
        colour = border.mean(0) if len(border) else np.full(3, 127.5)
        return composite(image, np.broadcast_to(colour, (*hole.shape, 3)), hole)


@cache
def load_inpainter(name: str | Path = "pocket", device: str = "cpu") -> Inpainter:
    """An inpainter.

    Args:
        name: "pocket", the shipped stand-in; a folder that `editbook train inpainter` wrote; or a TorchScript file of
            the real LaMa (`.pt`, `.jit`). Nothing is downloaded.
        device: Where it runs.

    Raises:
        EditbookError: There is none there, or its file does not fit this network.
    """
    path = SHIPPED / "inpainter" if str(name) == "pocket" else Path(name)
    if path.suffix in (".pt", ".jit", ".ts"):
        # Torch's own error for a file that is not there is a RuntimeError too.
        return LamaInpainter(loaded("LaMa", name, lambda: torch.jit.load(str(path), map_location=device)))
    return PocketInpainter(load_network(path).to(device))


def load_network(folder: Path) -> PocketLaMa:
    """The network of a folder, in float32.

    Raises:
        EditbookError: See `load_inpainter`.
    """
    path = folder / "model.safetensors"
    if not path.is_file():
        raise EditbookError(
            f"There is no inpainter in {str(folder)!r}: give 'pocket', a folder that `editbook train inpainter` wrote, "
            "or a TorchScript file of LaMa."
        )
    network = PocketLaMa()
    try:
        network.load_state_dict({name: value.float() for name, value in load_file(path).items()})
    except (SafetensorError, RuntimeError, OSError) as error:
        raise EditbookError(f"{path} does not hold this version's inpainter: {error}".splitlines()[0]) from None
    return network
