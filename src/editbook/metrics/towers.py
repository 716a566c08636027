"""Networks that turn pictures and texts into features, and the label of every number made with one.

The pocket towers ship with the package and know the pocket world only: their scores must never stand beside published
ones. The others are the real thing, loaded from a folder or from the hub. `clip_tower`, `structure_tower` and
`fid_tower` take the real thing where it is on this machine, and the pocket towers elsewhere; they never go online.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cache
from importlib.util import find_spec
from itertools import groupby
from pathlib import Path
from textwrap import shorten
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from PIL import Image

from ..errors import EditbookError
from ..images import Picture, as_image, crop_box, image_batches, picture_list
from ..model import SHIPPED, verify

_Loaded = TypeVar("_Loaded")


class Score(float):
    """A number that a network made: a float that shows, as `tower`, which network; only one network's compare.

    It prints and formats as a float; its `repr`, which a notebook shows, has the label: 23.10 (pocket-CLIP). What is
    computed from it is a plain float again.

    Args:
        value: The number.
        tower: Name of the network.
    """

    tower: str

    def __new__(cls, value: float, tower: str) -> Score:  # noqa: D102
        score = super().__new__(cls, value)
        score.tower = tower
        return score

    def __repr__(self) -> str:
        return f"{float(self):#.4g} ({self.tower})"

    __str__ = float.__repr__

    def __getnewargs__(self) -> tuple[float, str]:  # type: ignore[override]
        return float(self), self.tower  # for copies and pickles, which else would lack the second argument


class ImageTower(Protocol):
    """Features of pictures."""

    name: str

    def images(self, pictures: Iterable[Picture]) -> torch.Tensor:
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

    def keys(self, pictures: Iterable[Picture], top: float = 1.0) -> torch.Tensor:
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
    except EditbookError:
        raise
    except ImportError as error:
        raise EditbookError(
            f"{what} needs a package that is missing ({error}): pip install editbook[scores]."
        ) from None
    except Exception as error:  # on damaged and foreign files the readers raise nearly every type there is
        reason = shorten(f"{type(error).__name__}: {error}".rstrip(": ."), 240, placeholder=" ...")
        raise EditbookError(
            f"Could not load {what} from {str(name)!r}, it is missing, damaged or something else ({reason}). Give a "
            "place that holds it, or go online once."
        ) from error


def read_pair(first: Picture, second: Picture, names: tuple[str, str]) -> list[Image.Image]:
    """Two pictures to compare, RGB.

    Raises:
        EditbookError: One cannot be read, or they have different sizes: a tower would resize them to one.
    """
    a, b = (as_image(picture, name) for picture, name in zip((first, second), names, strict=True))
    if a.size != b.size:
        sizes = f"{a.width} x {a.height} and {b.width} x {b.height} pixels"
        raise EditbookError(f"{names[0]} and {names[1]} have different sizes, {sizes}: resize one of them.")
    return [a, b]


class Pixels:
    """What a network wants to be fed: the middle square, resized and normalised.

    What a picture that is not square has beside its middle square is not looked at.

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

    def __call__(self, pictures: Iterable[Picture], top: float = 1.0) -> torch.Tensor:
        """Float32 (n, 3, size, size).

        Raises:
            EditbookError: There are none, it is a single picture, or one cannot be read; the message names it.
        """
        listed = picture_list(pictures, "pictures")
        if not listed:
            raise _none()
        return torch.stack([self._one(as_image(picture, f"pictures[{k}]"), top) for k, picture in enumerate(listed)])

    def _one(self, image: Image.Image, top: float) -> torch.Tensor:
        if image.size != (self.size, self.size):
            image = image.resize((self.size, self.size), self.resample, box=crop_box(*image.size))
        values = torch.from_numpy(np.asarray(image, np.float32) / 255).permute(2, 0, 1)
        return (values * top - self._mean) / self._std


_CLIP_PIXELS = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
PUBLISHED_CLIP = "openai/clip-vit-large-patch14"
PUBLISHED_DINO = "facebook/dino-vitb8"
_INCEPTION_FILE = "weights-inception-2015-12-05-6726825d.pth"  # torch-fidelity's release


class Clip:
    """CLIP's two towers (Radford et al. 2021): pictures and texts in one space, and keys of its vision transformer.

    Of a picture that is not square it sees the middle square, as its authors have it.

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
    def load(cls, name: str | Path = PUBLISHED_CLIP, device: str = "cpu", *, local_files_only: bool = False) -> Clip:
        """CLIP from the hub or a folder; the default is PIE-Bench's and torchmetrics'.

        Args:
            name: A hub id or a folder.
            device: Where it computes.
            local_files_only: Whether to take a hub id from the hub's cache only, and never go online.

        Raises:
            EditbookError: It can be had from neither.
        """
        from transformers import CLIPModel, CLIPTokenizer

        def load() -> tuple[Any, Any]:
            classes = (CLIPModel, CLIPTokenizer)
            model, tokenizer = (part.from_pretrained(name, local_files_only=local_files_only) for part in classes)
            return model, tokenizer

        model, tokenizer = loaded("CLIP", name, load)
        pixels = Pixels(model.config.vision_config.image_size, *_CLIP_PIXELS)
        return cls(model.to(device), tokenizer, pixels, f"CLIP {name}")

    @torch.no_grad()
    def images(self, pictures: Iterable[Picture]) -> torch.Tensor:
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
    def keys(self, pictures: Iterable[Picture], top: float = 1.0) -> torch.Tensor:
        """Keys of the vision transformer's last block, (n, tokens, width)."""
        return _last_keys(self.model.vision_model, self.pixels(pictures, top).to(self.model.device))


class Dino:
    """DINO (Caron et al. 2021): class tokens for likeness, keys for structure.

    The middle square of a picture is resized to 224 pixels and normalised as ImageNet is; square pictures are so fed as
    in Splice (Tumanyan et al. 2022), which resizes other ones whole.

    Args:
        model: A transformers `ViTModel`.
        name: Label of every number that comes from it.
        size: Side that the middle square is resized to.
    """

    def __init__(self, model: Any, name: str, size: int = 224) -> None:
        self.model, self.name = model.eval().requires_grad_(False), name
        self.pixels = Pixels(size, *_IMAGENET, resample=Image.Resampling.BILINEAR)

    @classmethod
    def load(cls, name: str | Path = PUBLISHED_DINO, device: str = "cpu", *, local_files_only: bool = False) -> Dino:
        """DINO from the hub or a folder. The default is Splice's and PIE-Bench's; EditVal uses facebook/dino-vitb16.

        Arguments and errors as in `Clip.load`.
        """
        from transformers import ViTModel

        def load() -> Any:
            return ViTModel.from_pretrained(name, add_pooling_layer=False, local_files_only=local_files_only)

        model = loaded("DINO", name, load)
        return cls(model.to(device), f"DINO {name}", model.config.image_size)

    @torch.no_grad()
    def images(self, pictures: Iterable[Picture]) -> torch.Tensor:
        """Class tokens of the last block, float32 (n, width), not normalised."""
        return _in_batches(
            pictures, lambda part: self.model(self.pixels(part).to(self.model.device)).last_hidden_state[:, 0]
        )

    @torch.no_grad()
    def keys(self, pictures: Iterable[Picture], top: float = 1.0) -> torch.Tensor:
        """Keys of the last block, (n, tokens, width), the class token first."""
        return _last_keys(self.model, self.pixels(pictures, top).to(self.model.device))


class Inception:
    """The 2048 features that FID is published with: Inception-v3 in its TensorFlow port, through torch-fidelity.

    Args:
        model: A network from pictures, uint8 (n, 3, height, width), to a tuple that begins with features (n, 2048).
        device: Where it computes.
    """

    def __init__(self, model: Any, device: str = "cpu") -> None:
        self.model, self.device, self.name = model.to(device), device, "Inception-v3"

    @classmethod
    def load(cls, weights: str | Path | None = None, device: str = "cpu") -> Inception:
        """torch-fidelity's network.

        Args:
            weights: A local copy of its weight file; None lets torch-fidelity download it.
            device: Where it computes.

        Raises:
            EditbookError: torch-fidelity is not installed, or the weights cannot be had.
        """

        def load() -> Any:
            from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

            if weights is not None:
                # It would unpickle whatever it is given: look first whether there is nothing but weights in it.
                torch.load(weights, map_location="cpu", weights_only=True)
            path = None if weights is None else str(weights)
            return FeatureExtractorInceptionV3("inception", ["2048"], feature_extractor_weights_path=path)

        return cls(loaded("Inception", weights or "torch-fidelity's release", load), device)

    @torch.no_grad()
    def images(self, pictures: Iterable[Picture]) -> torch.Tensor:
        """The last pooled features, float32 (n, 2048).

        torch-fidelity resizes to 299 x 299 pixels as TensorFlow does: pictures may differ in size, and one that is not
        square is squeezed.
        """

        def features(part: Sequence[Image.Image]) -> torch.Tensor:
            rows = []
            for _, alike in groupby(part, key=lambda image: image.size):
                arrays = np.stack([np.asarray(image) for image in alike])
                rows.append(self.model(torch.from_numpy(arrays).permute(0, 3, 1, 2).to(self.device))[0])
            return torch.cat(rows)

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


def clip_tower(folder: str | Path | None = None, device: str = "cpu") -> Clip:
    """For CLIP scores: OpenAI's ViT-L/14 if it is on this machine, the pocket CLIP otherwise; never goes online.

    Args:
        folder: A CLIP in a folder, taken instead; None looks into the hub's cache.
        device: Where the published one computes; the pocket towers stay on the CPU.

    Returns:
        A tower whose `name` says which it is.

    Raises:
        EditbookError: `folder` holds no CLIP, or what the cache holds is damaged.
    """
    if folder is not None:
        return Clip.load(folder, device)
    return Clip.load(device=device, local_files_only=True) if _is_cached(PUBLISHED_CLIP) else pocket_clip()


def structure_tower(folder: str | Path | None = None, device: str = "cpu") -> KeyTower:
    """For structure distances: DINO ViT-B/8, or the pocket CLIP; chosen as `clip_tower` chooses."""
    if folder is not None:
        return Dino.load(folder, device)
    return Dino.load(device=device, local_files_only=True) if _is_cached(PUBLISHED_DINO) else pocket_clip()


def fid_tower(weights: str | Path | None = None, device: str = "cpu") -> ImageTower:
    """For FID: Inception-v3, or the pocket CLIP; chosen as `clip_tower` chooses.

    Args:
        weights: The weight file; None looks where torch-fidelity leaves it once it has been downloaded.
        device: Where Inception computes.
    """
    if weights is None:
        kept = Path(torch.hub.get_dir()) / "checkpoints" / _INCEPTION_FILE
        weights = kept if kept.is_file() and find_spec("torch_fidelity") else None
    return pocket_clip() if weights is None else Inception.load(weights, device)


def cached_file(repository: str, file: str) -> Path | None:
    """Where the hub's cache on this machine keeps a file, if it does."""
    from huggingface_hub import try_to_load_from_cache

    path = try_to_load_from_cache(repository, file)
    return Path(path) if isinstance(path, str) else None  # it may also say that the hub has no such file


def _is_cached(repository: str) -> bool:
    return any(cached_file(repository, file) for file in ("model.safetensors", "pytorch_model.bin"))


def _none() -> EditbookError:
    return EditbookError("pictures must hold at least one picture.")


def _in_batches(pictures: Iterable[Picture], features: Callable[[Sequence[Image.Image]], torch.Tensor]) -> torch.Tensor:
    parts = [features(part).float() for part in image_batches(pictures, "pictures")]
    if not parts:
        raise _none()
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
