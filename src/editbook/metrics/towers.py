"""Networks that turn pictures and texts into features. Every number made with one carries its `name`.

The pocket towers ship with the package and know the pocket world only: their scores must never stand beside published
ones. The others are the real thing, loaded from a folder or from the hub.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from PIL import Image

from ..errors import EditbookError
from ..images import as_image, crop_box
from ..model import SHIPPED, verify

Picture = Image.Image | np.ndarray
_Loaded = TypeVar("_Loaded")


class ImageTower(Protocol):
    """Features of pictures."""

    name: str

    def images(self, pictures: Sequence[Picture]) -> torch.Tensor:
        """One row of features for each picture, float32 (n, width), not normalised."""
        ...


class TextTower(ImageTower, Protocol):
    """Features of pictures and of texts in one space."""

    def texts(self, texts: Sequence[str]) -> torch.Tensor:
        """One row of features for each text, float32 (n, width), not normalised."""
        ...


class KeyTower(Protocol):
    """The keys of a vision transformer's last block."""

    name: str

    def keys(self, pictures: Sequence[Picture], top: float = 1.0) -> torch.Tensor:
        """Keys of all tokens, heads side by side, float32 (n, tokens, width).

        Args:
            pictures: What to look at.
            top: The value that white has before normalisation: 1, but 255 for PIE-Bench's quirk.
        """
        ...


def loaded(what: str, name: str | Path, load: Callable[[], _Loaded]) -> _Loaded:
    """The result of `load`, or one line that says what could not be loaded and what to do."""
    try:
        return load()
    except ImportError as error:
        raise EditbookError(
            f"{what} needs a package that is missing ({error}): pip install editbook[scores]."
        ) from None
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise EditbookError(
            f"Could not load {what} from {str(name)!r}: {reason} Give a folder that holds it, or go online once."
        ) from None


class Pixels:
    """What a network wants to be fed: the middle square, resized and normalised.

    Args:
        size: Side in pixels.
        mean: Subtracted from each channel of a picture in [0, 1].
        std: What each channel is divided by.
        resample: Pillow's filter for pictures of another size.
    """

    def __init__(
        self,
        size: int,
        mean: tuple[float, float, float] = (0.5, 0.5, 0.5),
        std: tuple[float, float, float] = (0.5, 0.5, 0.5),
        resample: Image.Resampling = Image.Resampling.BICUBIC,
    ) -> None:
        self.size, self.resample = size, resample
        self._mean, self._std = torch.tensor(mean)[:, None, None], torch.tensor(std)[:, None, None]

    def __call__(self, pictures: Sequence[Picture], top: float = 1.0) -> torch.Tensor:
        """Float32 (n, 3, size, size)."""
        if not len(pictures):
            raise EditbookError("pictures must hold at least one picture.")
        return torch.stack([self._one(as_image(picture), top) for picture in pictures])

    def _one(self, image: Image.Image, top: float) -> torch.Tensor:
        if image.size != (self.size, self.size):
            image = image.resize((self.size, self.size), self.resample, box=crop_box(*image.size))
        values = torch.from_numpy(np.asarray(image, np.float32) / 255).permute(2, 0, 1)
        return (values * top - self._mean) / self._std


_CLIP_PIXELS = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_BATCH = 64


class Clip:
    """CLIP's two towers (Radford et al. 2021): pictures and texts in one space, and keys of its vision transformer.

    Args:
        model: A transformers `CLIPModel`.
        tokenizer: Its tokenizer.
        pixels: How its pictures are prepared.
        name: Label of every number that comes from it.
    """

    def __init__(self, model: Any, tokenizer: Any, pixels: Pixels, name: str) -> None:
        self.model = model.eval().requires_grad_(False)
        self.tokenizer, self.pixels, self.name = tokenizer, pixels, name

    @classmethod
    def load(cls, name: str | Path = "openai/clip-vit-large-patch14", device: str = "cpu") -> Clip:
        """CLIP from the hub or a folder; the default is PIE-Bench's and torchmetrics'.

        Raises:
            EditbookError: It can be had from neither.
        """
        from transformers import CLIPModel, CLIPTokenizer

        model, tokenizer = loaded(
            "CLIP", name, lambda: (CLIPModel.from_pretrained(name), CLIPTokenizer.from_pretrained(name))
        )
        pixels = Pixels(model.config.vision_config.image_size, *_CLIP_PIXELS)
        return cls(model.to(device), tokenizer, pixels, f"CLIP {name}")

    @torch.no_grad()
    def images(self, pictures: Sequence[Picture]) -> torch.Tensor:
        """Projected features, float32 (n, width), not normalised."""
        return _in_batches(
            pictures,
            lambda part: self.model.visual_projection(
                self.model.vision_model(self.pixels(part).to(self.model.device)).pooler_output
            ),
        )

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> torch.Tensor:
        """Projected features, float32 (n, width), not normalised.

        Raises:
            EditbookError: A text has more tokens than the tower reads.
        """
        limit = self.model.config.text_config.max_position_embeddings
        for text in texts:
            if (length := len(self.tokenizer(text).input_ids)) > limit:
                raise EditbookError(f"The text {text!r} has {length} tokens; {self.name} reads {limit}. Shorten it.")
        tokens = self.tokenizer(list(texts), padding="max_length", max_length=limit, return_tensors="pt").input_ids
        return self.model.text_projection(self.model.text_model(tokens.to(self.model.device)).pooler_output).float()

    @torch.no_grad()
    def keys(self, pictures: Sequence[Picture], top: float = 1.0) -> torch.Tensor:
        """Keys of the vision transformer's last block, (n, tokens, width)."""
        return _last_keys(self.model.vision_model, self.pixels(pictures, top).to(self.model.device))


class Dino:
    """DINO (Caron et al. 2021): class tokens for likeness, keys for structure.

    The picture is resized to 224 pixels and normalised as ImageNet is, as in Splice (Tumanyan et al. 2022).

    Args:
        model: A transformers `ViTModel`.
        name: Label of every number that comes from it.
        size: Side that pictures are resized to.
    """

    def __init__(self, model: Any, name: str, size: int = 224) -> None:
        self.model, self.name = model.eval().requires_grad_(False), name
        self.pixels = Pixels(size, *_IMAGENET, resample=Image.Resampling.BILINEAR)

    @classmethod
    def load(cls, name: str | Path = "facebook/dino-vitb8", device: str = "cpu") -> Dino:
        """DINO from the hub or a folder. The default is Splice's and PIE-Bench's; EditVal uses facebook/dino-vitb16.

        Raises:
            EditbookError: It can be had from neither.
        """
        from transformers import ViTModel

        model = loaded("DINO", name, lambda: ViTModel.from_pretrained(name, add_pooling_layer=False))
        return cls(model.to(device), f"DINO {name}", model.config.image_size)

    @torch.no_grad()
    def images(self, pictures: Sequence[Picture]) -> torch.Tensor:
        """Class tokens of the last block, float32 (n, width), not normalised."""
        return _in_batches(
            pictures, lambda part: self.model(self.pixels(part).to(self.model.device)).last_hidden_state[:, 0]
        )

    @torch.no_grad()
    def keys(self, pictures: Sequence[Picture], top: float = 1.0) -> torch.Tensor:
        """Keys of the last block, (n, tokens, width), the class token first."""
        return _last_keys(self.model, self.pixels(pictures, top).to(self.model.device))


class Inception:
    """The 2048 features that FID is published with: Inception-v3 in its TensorFlow port, through torch-fidelity.

    Args:
        weights: A local copy of its weight file; None lets torch-fidelity download it.
        device: Where it computes.

    Raises:
        EditbookError: torch-fidelity is not installed, or the weights cannot be had.
    """

    def __init__(self, weights: str | Path | None = None, device: str = "cpu") -> None:
        def load() -> Any:
            from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

            path = None if weights is None else str(weights)
            return FeatureExtractorInceptionV3("inception", ["2048"], feature_extractor_weights_path=path)

        self.model = loaded("Inception", weights or "torch-fidelity's release", load).to(device)
        self.device, self.name = device, "Inception-v3"

    @torch.no_grad()
    def images(self, pictures: Sequence[Picture]) -> torch.Tensor:
        """The last pooled features, float32 (n, 2048). torch-fidelity resizes to 299 pixels as TensorFlow does."""

        def features(part: Sequence[Picture]) -> torch.Tensor:
            arrays = np.stack([np.asarray(as_image(picture)) for picture in part])
            return self.model(torch.from_numpy(arrays).permute(0, 3, 1, 2).to(self.device))[0]

        return _in_batches(pictures, features)


@cache
def pocket_clip(folder: Path = SHIPPED / "pocket") -> Clip:
    """The towers that ship with the package, trained on the pocket world.

    Raises:
        EditbookError: The shipped files are missing or damaged.
    """
    from transformers import CLIPModel, CLIPTokenizer

    verify(folder)
    model = CLIPModel.from_pretrained(folder / "clip", dtype=torch.float32, use_safetensors=True)
    tokenizer = CLIPTokenizer.from_pretrained(folder, subfolder="tokenizer")
    size = model.config.vision_config.image_size
    return Clip(model, tokenizer, Pixels(size, resample=Image.Resampling.BOX), "pocket-CLIP")


def _in_batches(pictures: Sequence[Picture], features: Callable[[Sequence[Picture]], torch.Tensor]) -> torch.Tensor:
    parts = [features(pictures[k : k + _BATCH]).float() for k in range(0, max(len(pictures), 1), _BATCH)]
    return torch.cat(parts)


def _last_keys(network: Any, pixels: torch.Tensor) -> torch.Tensor:
    """What the last block's key projection returns on the way."""
    projection = [module for name, module in network.named_modules() if name.endswith("k_proj")][-1]
    caught: list[torch.Tensor] = []
    handle = projection.register_forward_hook(lambda module, inputs, output: caught.append(output))
    try:
        network(pixels)
    finally:
        handle.remove()
    return caught[0].float()
