"""`editbook train report`: the model's bar, measured on held-out scenes with fixed seeds, as one JSON file."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from ..attention import Capture
from ..editing import edit
from ..files import writable_folder
from ..images import save_json
from ..inversion import ddim_inversion
from ..methods.base import guided, reconstruct
from ..metrics import fid, moments, peak_inside, psnr, ssim
from ..metrics.towers import pocket_clip
from ..metrics.truth import edit_success
from ..model import SHIPPED, Model
from ..perception.reader import Reader, Reading, load_reader
from ..pocket import Scene, bench, sample_held_out
from ..pocket.distribution import random_scene
from ..pocket.styles import COLOURLESS
from ..sampling import Schedule, add_noise, follow
from .reader import measure_reader

_FIRST = 50_000_000  # the report's scenes: no other measurement uses these seeds


@dataclass(frozen=True)
class Figure:
    """One measured number.

    Args:
        what: What was measured.
        value: The number.
        bar: What it should be at least (or at most, where `at_most`); None where there is no bar.
        at_most: Whether smaller is better.
        count: How many pictures, edits or files it is a mean over.
    """

    what: str
    value: float
    bar: float | None = None
    at_most: bool = False
    count: int = 1

    @property
    def met(self) -> bool | None:
        """Whether the bar is met; None without one."""
        if self.bar is None:
            return None
        return self.value <= self.bar if self.at_most else self.value >= self.bar


def scenes(count: int, objects: int | None = None) -> list[Scene]:
    """The first held-out scenes of the report, of any kind or with so many objects."""
    found: list[Scene] = []
    seed = _FIRST
    while len(found) < count:
        scene = sample_held_out(seed)
        seed += 1
        if objects is None or len(scene.objects) == objects:
            found.append(scene)
    return found


def redrawn(scene: Scene, seed: int) -> Scene:
    """Another scene of the same caption: places, sizes, clouds and strokes are drawn anew.

    It is what a model that knew the world perfectly would draw for the caption.
    """
    rng = np.random.default_rng([seed, 15])
    other = random_scene(rng)
    while (other.background, len(other.objects)) != (scene.background, len(scene.objects)):
        other = random_scene(rng)
    objects = [
        replace(thing, x=new.x, y=new.y, size=new.size, seed=new.seed)
        for thing, new in zip(scene.objects, other.objects, strict=True)
    ]
    return replace(scene, objects=tuple(objects), seed=other.seed)


def batches(items: Sequence[Any], size: int, label: str) -> Iterator[list[Any]]:
    """Slices of at most `size`, under a progress bar where there is a screen."""
    for first in tqdm(range(0, len(items), size), desc=label, leave=False, disable=None):
        yield list(items[first : first + size])


def round_trips(model: Model, pictures: Sequence[Image.Image]) -> list[Image.Image]:
    """Every picture through the autoencoder."""
    return [out for part in batches(pictures, 64, "autoencoder") for out in model.decode_batch(model.encode(part))]


def samples(
    model: Model, prompts: Sequence[str], *, steps: int = 50, scale: float = 5.0, batch: int = 32
) -> list[Image.Image]:
    """One picture for each prompt; picture k grows from the noise of seed k, whatever the batch size."""
    path = Schedule(model.scheduler, steps).sampling()
    pictures: list[Image.Image] = []
    for part in batches(prompts, batch, "sampling"):
        noise = torch.cat([model.random_latent(len(pictures) + k) for k in range(len(part))])
        pictures += model.decode_batch(follow(model, noise, path, guided(model, part, scale)))
    return pictures


def autoencoder(model: Model, count: int) -> list[Figure]:
    """How much of a picture the latent keeps."""
    pictures = [scene.image(model.image_size) for scene in scenes(count)]
    pairs = list(zip(round_trips(model, pictures), pictures, strict=True))
    return [
        Figure("autoencoder, PSNR in dB", float(np.mean([psnr(a, b) for a, b in pairs])), 32.0, count=count),
        Figure("autoencoder, SSIM", float(np.mean([ssim(a, b) for a, b in pairs])), 0.95, count=count),
    ]


_READ_BARS = {
    "word": 0.97,
    "background": 0.99,
    "colour": 0.95,
    "material": 0.90,
    "style": 0.95,
    "accessory": 0.85,
    "pose": 0.90,
    "both objects": 0.85,
}


def agreement(readings: Sequence[Reading], shown: Sequence[Scene]) -> dict[str, list[bool]]:
    """For each question, whether each reading gives the scene's answer.

    Colour, material, accessory and pose are asked only of objects whose caption names one (colour and material not in
    a sketch, which shows neither); everything about an object counts as wrong where none was seen in its place.
    "word" is asked of scenes with one object, "both objects" of scenes with two.
    """
    right: dict[str, list[bool]] = {name: [] for name in _READ_BARS}
    for reading, scene in zip(readings, shown, strict=True):
        right["background"].append(reading.background == scene.background)
        right["style"].append(reading.style == scene.style)
        words = [thing.word for thing in reading.objects] == [thing.word for thing in scene.objects]
        if scene.objects:
            right["word" if len(scene.objects) == 1 else "both objects"].append(words)
        for slot, thing in enumerate(scene.objects):
            seen = reading.objects[slot] if slot < len(reading.objects) else None
            shown_look = scene.style not in COLOURLESS
            asked = {
                "colour": (thing.colour if shown_look else None, "look"),
                "material": (thing.material if shown_look else None, "look"),
                "accessory": (thing.accessory, "accessory"),
                "pose": (None if thing.pose == "standing" else thing.pose, "pose"),
            }
            for name, (answer, field) in asked.items():
                if answer is not None:
                    right[name].append(getattr(seen, field, None) == answer)
    return right


def drawing(model: Model, reader: Reader, count: int) -> list[Figure]:
    """Samples of held-out prompts, and the autoencoder's pictures of the same scenes.

    Of both: what a reader finds in them, and their Frechet distance to the rendered scenes in pocket-CLIP features. A
    caption does not say all, so even a perfect denoiser would not draw the same scenes. Other scenes of the same
    captions, seen through the autoencoder, stand for it.
    """
    shown = scenes(count)
    rendered = [scene.image(model.image_size) for scene in shown]
    returned = round_trips(model, rendered)
    sampled = samples(model, [scene.caption() for scene in shown])
    drawn, exact = (agreement(reader(pictures), shown) for pictures in (sampled, returned))
    figures = [
        figure
        for name, bar in _READ_BARS.items()
        if drawn[name]
        for figure in (
            Figure(f"samples read, {name}", float(np.mean(drawn[name])), bar, count=len(drawn[name])),
            Figure(f"autoencoder's pictures read, {name}", float(np.mean(exact[name])), count=len(exact[name])),
        )
    ]
    tower = pocket_clip()
    others = round_trips(model, [redrawn(scene, k).image(model.image_size) for k, scene in enumerate(shown)])
    exactly = moments(rendered, tower)
    floor, perfect, distance = (fid(pictures, exactly, tower=tower).value for pictures in (returned, others, sampled))
    return [
        *figures,
        Figure("pocket-FID of the autoencoder's pictures", floor, count=count),
        Figure("pocket-FID of other scenes of the same captions", perfect, count=count),
        Figure("pocket-FID of samples", distance, 3 * floor, at_most=True, count=count),
    ]


_READER_BARS = {
    "word": 0.99,
    "colour": 0.99,
    "material": 0.99,
    "background": 0.99,
    "style": 0.99,
    "mask_iou": 0.95,
}


def reading(reader: Reader, count: int) -> list[Figure]:
    """The reader itself, on rendered held-out scenes."""
    return [
        Figure(f"reader, {name}", value, _READER_BARS.get(name), count=count)
        for name, value in measure_reader(reader.network, count).items()
    ]


def pointing(model: Model, count: int) -> list[Figure]:
    """Whether the peak of an object's word lies in its exact mask, at half of the noise, by objects in the scene."""
    figures = []
    side = model.latent_shape[1]
    move = Schedule(model.scheduler, 50).sampling(0.5)[0]
    for objects, bar in ((1, 0.90), (2, 0.80)):
        hits = []
        for number, scene in enumerate(tqdm(scenes(count, objects), desc="attention", leave=False)):
            capture = Capture(resolutions=[side, side // 2])
            z_t = add_noise(model.encode(scene.image(model.image_size)), model.random_latent(number), move.alpha_from)
            follow(model, z_t, [move], guided(model, [scene.caption()], 1.0), attention=capture)
            maps = capture.maps(model.tokenizer, [scene.caption()])
            for thing, mask in zip(scene.objects, scene.masks(model.image_size), strict=True):
                if sum(other.word == thing.word for other in scene.objects) > 1:
                    continue  # one word for two objects: either place is right
                heat = sum(maps.map(thing.word, resolution=r, size=model.image_size) for r in maps.resolutions)
                hits.append(peak_inside(np.asarray(heat), mask))
        figures.append(
            Figure(f"attention peaks in the mask, scenes of {objects}", float(np.mean(hits)), bar, count=len(hits))
        )
    return figures


def inverting(model: Model, count: int) -> list[Figure]:
    """DDIM inversion and back in 50 steps: what is lost beside the autoencoder's own loss."""
    lost: dict[float, list[float]] = {1.0: [], 7.5: []}
    schedule = Schedule(model.scheduler, 50)
    for part in batches(scenes(count), 16, "inversion"):
        for scene in part:
            picture = scene.image(model.image_size)
            z_0 = model.encode(picture)
            best = psnr(model.decode(z_0), picture)
            inversion = ddim_inversion(model, z_0, scene.caption(), schedule)
            for scale, losses in lost.items():
                losses.append(best - psnr(model.decode(reconstruct(model, inversion, scale)), picture))
    return [
        Figure("DDIM inversion and back, w = 1: dB lost", float(np.mean(lost[1.0])), 1.0, at_most=True, count=count),
        Figure("DDIM inversion and back, w = 7.5: dB lost", float(np.mean(lost[7.5])), 6.0, count=count),
    ]


def swapping(model: Model, reader: Reader, count: int) -> list[Figure]:
    """Prompt-to-Prompt on the first of PocketBench's 80 object changes."""
    tasks = list(bench().of_type("change object")[:count])
    edited = [
        edit(model, task.source_image, source=task.source_prompt, target=task.target_prompt, guidance_scale=5.0).image
        for task in tqdm(tasks, desc="Prompt-to-Prompt", leave=False)
    ]
    verdicts = [edit_success(read, task) for read, task in zip(reader(edited), tasks, strict=True)]
    return [
        Figure(
            "Prompt-to-Prompt, object changed and the rest kept", _share(verdicts, "success"), 0.60, count=len(tasks)
        ),
        Figure("Prompt-to-Prompt, object changed", _share(verdicts, "changed"), count=len(tasks)),
        Figure("Prompt-to-Prompt, the rest kept", _share(verdicts, "kept"), count=len(tasks)),
    ]


def _share(verdicts: Sequence[Any], name: str) -> float:
    return float(np.mean([getattr(verdict, name) for verdict in verdicts]))


def sizes(model: Model) -> list[Figure]:
    """Bytes of the weights: of the U-Net, and of all that ship with the model, or else of its folder.

    A model without a folder has no files to measure, and no figures here.
    """
    if model.folder is None:
        return []
    folder = model.folder.resolve()
    if folder.is_relative_to(SHIPPED.resolve()):
        whole = Figure("all shipped weights, MB", _weight_bytes(SHIPPED) / 1e6, 40.0, at_most=True)
    else:
        whole = Figure("all weights of this model, MB", _weight_bytes(folder) / 1e6)
    return [Figure("U-Net file, MiB", _weight_bytes(folder / "unet") / 2**20, 16.0, at_most=True), whole]


def _weight_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*.safetensors"))


def speed(model: Model) -> list[Figure]:
    """Seconds of 50 steps for a batch of 4, after a step to warm up; the bar is for two threads of a CPU.

    The fastest of three runs counts: whatever else the machine does can only add to them.
    """
    noise, path = model.random_latent(0, 4), Schedule(model.scheduler, 50).sampling()
    guidance = guided(model, [scene.caption() for scene in scenes(4)], 1.0)
    on_cpu = model.device.type == "cpu"
    seconds = math.inf
    with _two_threads():
        follow(model, noise, path[:1], guidance)
        for _ in range(3):
            _synchronise(model.device)
            start = time.perf_counter()
            follow(model, noise, path, guidance)
            _synchronise(model.device)
            seconds = min(seconds, time.perf_counter() - start)
    place = "two CPU threads" if on_cpu else model.device.type
    return [Figure(f"50 steps of a batch of 4, seconds on {place}", seconds, 2.5 if on_cpu else None, at_most=True)]


@contextmanager
def _two_threads() -> Iterator[None]:
    """Compute with two CPU threads, whatever was set before and will be again."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _synchronise(device: torch.device) -> None:
    """Wait for a GPU, which computes behind the program's back."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def report(model: Model, destination: Path, *, count: int = 256) -> list[Figure]:
    """Measure everything and write `report.json` after each part, so that a kill loses one part only.

    Args:
        model: The model; without a folder, what its files weigh is left out.
        destination: Folder for `report.json`.
        count: Pictures for the autoencoder's mean, and scenes of one and of two objects for the attention's. Four times
            as many scenes for the reader, eight times as many samples; a quarter as many inversions; a third as many
            edits with Prompt-to-Prompt, at most the benchmark's 80 changes of an object.
    """
    folder = writable_folder(destination)
    reader = load_reader()
    parts: list[Callable[[], list[Figure]]] = [
        lambda: sizes(model),
        lambda: speed(model),
        lambda: autoencoder(model, count),
        lambda: reading(reader, 4 * count),
        lambda: pointing(model, count),
        lambda: inverting(model, max(count // 4, 1)),
        lambda: swapping(model, reader, max(count // 3, 1)),
        lambda: drawing(model, reader, 8 * count),
    ]
    figures: list[Figure] = []
    for part in parts:
        figures += part()
        save_json({"figures": [{**asdict(figure), "met": figure.met} for figure in figures]}, folder / "report.json")
    return figures
