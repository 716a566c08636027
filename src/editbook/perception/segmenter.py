"""Outlines from clicks and boxes: a small network that stands in for Segment Anything, and the real one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional

from ..errors import EditbookError
from ..images import as_image
from ..model import SHIPPED, verify
from .base import LEVELS, Picture, Segmenter, check_boxes, check_prompts, exclusive, loaded
from .layers import Residual, doubled, mean_under
from .reader import ReaderNetwork, load_reader

SIDE = 64  # pixels
TEXT = 128  # width of the shipped CLIP's texts
MAPS = 3  # positive clicks, negative clicks, box
_ASKED = 2 * MAPS  # and of each, what belongs to it
Seen = dict[str, torch.Tensor]
"""What the reader sees of a picture, see `look_at`."""
_BLOB = 2.0  # standard deviation of a click's blob, in pixels
SCALE = 16.0  # of cosine similarities
_COARSE, _MIDDLE, _FINE = 160, 96, 48  # the reader's widths


class SegmenterNetwork(nn.Module):
    """From features of a picture and what is asked about it to three masks.

    It is a decoder, as Segment Anything's is: the picture is looked at once, by the shipped reader (see `look_at`), and
    each question costs little. Clicks and the box are maps beside the features, and so is what belongs to them (see
    `belonging`). A phrase acts where things are recognised: features are compared with it as CLIP compares pictures and
    texts, and it scales and shifts their channels.

    Args:
        width: Channels at 16 x 16 cells.
        fine: Channels at 32 x 32.
    """

    def __init__(self, width: int = 64, fine: int = 32) -> None:
        super().__init__()
        self.enter = nn.Sequential(nn.Conv2d(_COARSE + _MIDDLE, width, 1), Residual(width))
        self.look = nn.Sequential(nn.SiLU(), nn.Conv2d(width, TEXT, 1))
        self.gate = nn.Sequential(nn.Linear(TEXT, width), nn.SiLU(), nn.Linear(width, 2 * width))
        self.asked = nn.Conv2d(width + _ASKED + 1, width, 1)
        self.far = Residual(width)
        self.near = Residual(width)
        self.narrow = nn.Conv2d(width, fine, 1)
        self.up = nn.Sequential(nn.Conv2d(fine + 2 * _FINE + _ASKED + 1, fine, 1), Residual(fine))
        self.pixels = nn.Sequential(
            nn.Conv2d(fine // 4 + 6 + _ASKED, 16, 3, padding=1), nn.SiLU(), nn.Conv2d(16, len(LEVELS), 3, padding=1)
        )
        self.judge = nn.Sequential(
            nn.Linear(width + len(LEVELS) * (width + 1) + 1, 96), nn.SiLU(), nn.Linear(96, len(LEVELS) + 1)
        )
        self.centre: torch.Tensor
        self.register_buffer("centre", torch.zeros(TEXT))  # the mean text: what all have in common says nothing

    def direction(self, texts: torch.Tensor) -> torch.Tensor:
        """Texts (n, 128) as CLIP gives them, seen from their centre and of length 1; rows of zeros stay zero."""
        given = texts.abs().sum(-1, keepdim=True) > 0
        return functional.normalize((texts - self.centre).float(), dim=-1) * given

    def forward(
        self, seen: dict[str, torch.Tensor], maps: torch.Tensor, texts: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Logits.

        Args:
            seen: From `look_at`.
            maps: Positive clicks, negative clicks and box, (n, 3, 64, 64) in [0, 1].
            texts: CLIP's features of a phrase, (n, 128); zeros for none.

        Returns:
            "masks" (n, 3, 64, 64); "ious" (n, 3), logits of each mask's IoU with the truth; "presence" (n,), whether
            there is what was asked for; "look" (n, 128, 16, 16), the features that are compared with texts.
        """
        features = self.enter(torch.cat([doubled(seen["coarse"]), seen["middle"]], 1))
        look = functional.normalize(self.look(features).float(), dim=1)
        text = self.direction(texts)
        alike = SCALE / 4 * torch.einsum("nchw,nc->nhw", look, text)[:, None].to(features)
        gain, shift = self.gate(SCALE * text.to(features))[..., None, None].chunk(2, 1)
        maps = torch.cat([maps, belonging(seen["pixels"][:, 3:], maps)], 1)
        maps_32 = functional.max_pool2d(maps, 2)
        maps_16 = functional.max_pool2d(maps_32, 2)
        asked = self.asked(torch.cat([features * (1 + gain) + shift, alike, maps_16], 1))
        asked = self.near(asked + doubled(self.far(functional.avg_pool2d(asked, 2))))
        up = doubled(torch.cat([self.narrow(asked), alike], 1))
        up = self.up(torch.cat([up, seen["fine"], seen["found"], maps_32], 1))
        masks = self.pixels(torch.cat([functional.pixel_shuffle(up, 2), seen["pixels"], maps], 1))
        inside = functional.adaptive_avg_pool2d(masks.float().detach().sigmoid(), asked.shape[-1]).to(asked)
        under = mean_under(asked, inside, floor=0.5)
        best = alike.flatten(1).amax(1, keepdim=True)
        judged = self.judge(torch.cat([asked.mean((2, 3)), under.flatten(1), inside.amax((2, 3)), best], 1))
        return {"masks": masks, "ious": judged[:, :-1], "presence": judged[:, -1], "look": look}


@torch.no_grad()
def look_at(reader: ReaderNetwork, x: torch.Tensor) -> Seen:
    """What the segmenter is told of pictures: features of the reader, which is not trained further.

    Args:
        reader: A trained one; the segmenter fits that only with which it was trained.
        x: Pictures (n, 3, 64, 64) in [-1, 1].

    Returns:
        "coarse" (n, 160, 8, 8), "middle" (n, 96, 16, 16), "fine" and "found" (n, 48, 32, 32), before and after the
        reader's own way down and up; "pixels" (n, 6, 64, 64): the picture, and its own masks of two objects and ground.
    """
    fine = reader.fine(reader.stem(x))
    middle = reader.middle(fine)
    coarse = reader.coarse(middle)
    up_middle = reader.up_middle(torch.cat([doubled(coarse), middle], 1))
    found = reader.up_fine(torch.cat([doubled(up_middle), fine], 1))
    masks = reader.pixels(torch.cat([functional.pixel_shuffle(found, 2), x], 1)).softmax(1)
    return {"coarse": coarse, "middle": up_middle, "fine": fine, "found": found, "pixels": torch.cat([x, masks], 1)}


def belonging(masks: torch.Tensor, maps: torch.Tensor) -> torch.Tensor:
    """Which pixels are of one thing with what was shown: the chance that the reader puts both under one mask.

    A click is a spot; where a second object stands beside, convolutions alone cannot tell how far its own reaches.

    Args:
        masks: Probabilities of the reader's masks, ground and two objects, (n, 3, h, w); they sum to 1 at each pixel.
        maps: Clicks and box, (n, 3, h, w).

    Returns:
        (n, 3, h, w) in [0, 1]; zero where nothing was shown.
    """
    shown = mean_under(masks, maps, floor=1e-6)
    return torch.einsum("nsk,nkhw->nshw", shown, masks).to(maps)


def prompt_maps(points: np.ndarray, labels: np.ndarray, box: np.ndarray | None) -> np.ndarray:
    """What was shown, as three maps: float32 (3, 64, 64) in [0, 1].

    Args:
        points: (k, 2), in the network's pixels; pixel i covers i to i + 1.
        labels: (k,), 1 or 0.
        box: x0, y0, x1, y1, or None.
    """
    maps = np.zeros((MAPS, SIDE, SIDE), np.float32)
    at = np.arange(SIDE, dtype=np.float32) + 0.5
    for (x, y), label in zip(points, labels, strict=True):
        blob = np.exp(-((at[None, :] - x) ** 2 + (at[:, None] - y) ** 2) / (2 * _BLOB**2))
        row = 0 if label else 1
        maps[row] = np.maximum(maps[row], blob)
    if box is not None:
        x0, y0, x1, y1 = box
        maps[2] = np.clip(np.minimum(x1, at + 0.5) - np.maximum(x0, at - 0.5), 0, 1)[None, :]
        maps[2] *= np.clip(np.minimum(y1, at + 0.5) - np.maximum(y0, at - 0.5), 0, 1)[:, None]
    return maps


@cache
def _text_tower(folder: Path = SHIPPED / "pocket") -> tuple[Any, Any]:
    from transformers import CLIPModel, CLIPTokenizer

    verify(folder)
    model = CLIPModel.from_pretrained(folder / "clip", dtype=torch.float32, use_safetensors=True)
    return model.eval().requires_grad_(False), CLIPTokenizer.from_pretrained(folder, subfolder="tokenizer")


@torch.no_grad()
def embed_phrases(phrases: Sequence[str]) -> torch.Tensor:
    """The shipped CLIP's features of phrases, float32 (n, 128), of length sqrt(128).

    Raises:
        EditbookError: A phrase has more tokens than the tower reads.
    """
    model, tokenizer = _text_tower()
    limit = model.config.text_config.max_position_embeddings
    tokens = tokenizer(list(phrases), padding="max_length", max_length=limit, return_tensors="pt").input_ids
    if tokens.shape[1] > limit:
        raise EditbookError(f"A phrase has more than the {limit} tokens that the pocket grounder reads: shorten it.")
    features = model.text_projection(model.text_model(tokens).pooler_output).float()
    return functional.normalize(features, dim=-1) * TEXT**0.5


def reader_sum() -> str:
    """SHA-256 of the shipped reader's weights: a segmenter is of use with the reader that it was trained on only."""
    return hashlib.sha256((SHIPPED / "reader" / "model.safetensors").read_bytes()).hexdigest()


@cache
def load_network(folder: Path = SHIPPED / "segmenter") -> SegmenterNetwork:
    """The shipped network, or one that was trained by `editbook train segmenter`.

    Raises:
        EditbookError: There is none in the folder, its file does not fit this network, or it was trained on the
            features of another reader than the shipped one.
    """
    path = Path(folder) / "model.safetensors"
    if not path.is_file():
        raise EditbookError(f"{path} is missing: train it with `editbook train segmenter`, or reinstall editbook.")
    network = SegmenterNetwork()
    try:
        network.load_state_dict({name: value.float() for name, value in load_file(path).items()})
        of = json.loads((path.parent / "record.json").read_text())["reader"]
    except (SafetensorError, RuntimeError, OSError, ValueError, KeyError) as error:
        raise EditbookError(f"{path} does not hold this version's segmenter: {error}".splitlines()[0]) from None
    if of != reader_sum():
        raise EditbookError(f"{path} was trained on another reader than the shipped one: train the segmenter anew.")
    return network.eval().requires_grad_(False)


class Canvas:
    """A picture as the network sees it: long side 64, right or below continued with its own edge.

    Args:
        picture: Of any size.
    """

    def __init__(self, picture: Picture) -> None:
        image = as_image(picture)
        self.size = image.size
        width, height = image.size
        self.scale = SIDE / max(width, height)
        inner = max(1, round(width * self.scale)), max(1, round(height * self.scale))
        if inner != image.size:
            smooth = Image.Resampling.BOX if self.scale < 1 else Image.Resampling.BILINEAR
            image = image.resize(inner, smooth)
        array = np.pad(np.asarray(image, np.float32), ((0, SIDE - inner[1]), (0, SIDE - inner[0]), (0, 0)), "edge")
        self.pixels = torch.from_numpy(array).permute(2, 0, 1)[None] / 127.5 - 1

    def seen(self) -> Seen:
        """What the reader sees of it, see `look_at`."""
        return look_at(load_reader().network, self.pixels)

    def back(self, masks: torch.Tensor) -> np.ndarray:
        """Logits (..., 64, 64) as masks of the picture, bool (..., height, width)."""
        side = max(self.size)
        if side != SIDE:
            flat = masks.reshape(-1, 1, SIDE, SIDE)
            masks = functional.interpolate(flat, (side, side), mode="bilinear").reshape(*masks.shape[:-2], side, side)
        found: np.ndarray = (masks[..., : self.size[1], : self.size[0]] > 0).numpy()
        return found


class PocketSegmenter:
    """A stand-in for Segment Anything (Kirillov et al. 2023) that knows the pocket world only.

    Its three masks for a click are the part that was clicked (an accessory, else empty), the object, and the object
    with its shadow. Unlike Segment Anything, it has no masks for pieces of the background.

    Args:
        network: A trained `SegmenterNetwork`.
        least: A mask for a click whose score is lower is given back empty: there is no such part, or no object.
    """

    name = "pocket segmenter (stand-in for Segment Anything)"

    def __init__(self, network: SegmenterNetwork, least: float = 0.25) -> None:
        self.network, self.least = network.eval().requires_grad_(False), least

    @torch.no_grad()
    def _ask(self, canvas: Canvas, maps: Sequence[np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
        """Masks (n, 3, 64, 64) as logits, and scores (n, 3)."""
        count = len(maps)
        seen = {name: value.expand(count, -1, -1, -1) for name, value in canvas.seen().items()}
        answers = self.network(seen, torch.from_numpy(np.stack(maps)), torch.zeros(count, TEXT))
        scores = answers["ious"].sigmoid() * answers["presence"].sigmoid()[:, None]
        return answers["masks"], scores

    def segment(
        self,
        image: Picture,
        points: Sequence[Sequence[float]] | np.ndarray | None = None,
        labels: Sequence[int] | np.ndarray | None = None,
        boxes: Sequence[Sequence[float]] | np.ndarray | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """See `Segmenter.segment`."""
        canvas = Canvas(image)
        clicks = check_prompts(canvas.size, points, labels, boxes)
        if clicks is not None:
            # A click at whole numbers means the middle of that pixel.
            maps = [prompt_maps((clicks[0] + 0.5) * canvas.scale, clicks[1], None)]
            masks, scores = self._ask(canvas, maps)
            return canvas.back(masks[0]) & (scores[0] >= self.least).numpy()[:, None, None], scores[0].numpy()
        at = check_boxes(canvas.size, boxes)
        if not len(at):
            return np.zeros((0, canvas.size[1], canvas.size[0]), bool), np.zeros(0, np.float32)
        none = np.zeros((0, 2))
        masks, scores = self._ask(canvas, [prompt_maps(none, none, box * canvas.scale) for box in at])
        return canvas.back(masks[:, 1]), scores[:, 1].numpy()

    def everything(self, image: Picture, grid: int = 8, threshold: float = 0.7) -> tuple[np.ndarray, np.ndarray]:
        """All objects: a grid of clicks is asked, and of answers that overlap the best is kept. No background.

        Args:
            image: The picture.
            grid: Clicks on a side.
            threshold: Of a mask's score.
        """
        canvas = Canvas(image)
        width, height = (length * canvas.scale for length in canvas.size)
        at = (np.arange(grid) + 0.5) / grid
        clicks = [np.array([[x * width, y * height]]) for y in at for x in at]
        masks, scores = self._ask(canvas, [prompt_maps(click, np.ones(1), None) for click in clicks])
        found, of = canvas.back(masks[:, 1]), scores[:, 1].numpy()
        good = (of > threshold) & found.any((1, 2))
        return exclusive(found[good], of[good])


def _sam(name: str) -> tuple[Any, Any]:
    from transformers import SamModel, SamProcessor

    model = SamModel.from_pretrained(name, local_files_only=True)
    return model, SamProcessor.from_pretrained(name, local_files_only=True)


class SamSegmenter:
    """Segment Anything itself, through transformers.

    Args:
        model: A `SamModel`.
        processor: Its `SamProcessor`.
        name: What numbers that come from it are labelled with.
    """

    def __init__(self, model: Any, processor: Any, name: str) -> None:
        self.model, self.processor, self.name = model.eval().requires_grad_(False), processor, name

    @classmethod
    def load(cls, name: str | Path, device: str = "cpu") -> SamSegmenter:
        """From a folder, or from the hub's cache by id, e.g. "facebook/sam-vit-base". Nothing is downloaded.

        Raises:
            EditbookError: It is not there.
        """
        model, processor = loaded("Segment Anything", name, lambda: _sam(str(name)))
        return cls(model.to(device), processor, f"Segment Anything {name}")

    def _embedded(self, image: Picture) -> tuple[Any, torch.Tensor]:
        inputs = self.processor(images=as_image(image), return_tensors="pt")
        return inputs, self.model.get_image_embeddings(inputs["pixel_values"].to(self.model.device))

    def _masks(self, image: Picture, embedding: torch.Tensor, multimask: bool, **prompts: Any) -> tuple[Any, Any]:
        inputs = self.processor(images=as_image(image), return_tensors="pt", **prompts)
        wanted = {name: inputs[name].to(self.model.device) for name in inputs if name.startswith("input_")}
        wanted = {name: value.float() if value.is_floating_point() else value for name, value in wanted.items()}
        outputs = self.model(image_embeddings=embedding, multimask_output=multimask, **wanted)
        masks = self.processor.post_process_masks(
            outputs.pred_masks.float().cpu(), inputs["original_sizes"], inputs["reshaped_input_sizes"]
        )[0]
        return masks.numpy().astype(bool), outputs.iou_scores[0].float().clamp(0, 1).cpu().numpy()

    @torch.no_grad()
    def segment(
        self,
        image: Picture,
        points: Sequence[Sequence[float]] | np.ndarray | None = None,
        labels: Sequence[int] | np.ndarray | None = None,
        boxes: Sequence[Sequence[float]] | np.ndarray | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """See `Segmenter.segment`."""
        width, height = as_image(image).size
        clicks = check_prompts((width, height), points, labels, boxes)
        if clicks is not None:
            _, embedding = self._embedded(image)
            at, given = clicks[0].tolist(), clicks[1].tolist()
            masks, scores = self._masks(image, embedding, True, input_points=[[at]], input_labels=[[given]])
            return masks[0], scores[0]
        corners = check_boxes((width, height), boxes)
        if not len(corners):
            return np.zeros((0, height, width), bool), np.zeros(0, np.float32)
        _, embedding = self._embedded(image)
        masks, scores = self._masks(image, embedding, False, input_boxes=[corners.tolist()])
        return masks[:, 0], scores[:, 0]

    @torch.no_grad()
    def everything(self, image: Picture, grid: int = 32, threshold: float = 0.88) -> tuple[np.ndarray, np.ndarray]:
        """See `Segmenter.everything`: a grid of clicks, as the official code asks; overlaps go to the better mask.

        Args:
            image: The picture.
            grid: Clicks on a side.
            threshold: Of the predicted IoU. The official test of stability is left out.
        """
        width, height = as_image(image).size
        _, embedding = self._embedded(image)
        found, of = [np.zeros((0, height, width), bool)], [np.zeros(0, np.float32)]
        for row in range(grid):
            y = (row + 0.5) / grid * height
            clicks = [[[(column + 0.5) / grid * width, y]] for column in range(grid)]
            masks, scores = self._masks(
                image, embedding, True, input_points=[clicks], input_labels=[[[1]] * len(clicks)]
            )
            good = (scores > threshold) & masks.any((2, 3))
            found.append(masks[good])
            of.append(scores[good])
        return exclusive(np.concatenate(found), np.concatenate(of))


@lru_cache(maxsize=2)  # a method asks for it by name at each edit; the stand-in, and a real one
def load_segmenter(name: str | Path = "pocket", device: str = "cpu") -> Segmenter:
    """A segmenter by name.

    Args:
        name: "pocket", the stand-in that ships with the package; a folder, or the hub id of a Segment Anything model
            that was downloaded before; or the folder of a run of `editbook train segmenter`.
        device: Where the real one computes.

    Raises:
        EditbookError: There is none of that name.
    """
    if name == "pocket":
        return PocketSegmenter(load_network())
    folder = Path(name)
    if (folder / "model.safetensors").is_file() and not (folder / "config.json").is_file():
        return PocketSegmenter(load_network(folder))
    return SamSegmenter.load(name, device)
