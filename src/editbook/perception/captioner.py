"""What a picture shows, in a sentence: a reader that fills the caption grammar stands in for BLIP-2; the real one."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any, Protocol

import torch

from ..errors import EditbookError
from ..images import as_image
from ..pocket import ACCESSORIES, COLOURS, MATERIALS, Scene, Thing
from ..pocket.sprites import sprite
from .base import Picture, loaded
from .reader import Reader, Reading, ReadObject, load_reader


class Captioner(Protocol):
    """From a picture to a sentence."""

    name: str

    def caption(self, image: Picture, prompt: str | None = None) -> str:
        """Say what the picture shows.

        Args:
            image: The picture, of any size.
            prompt: How the sentence begins, or a question about the picture; None leaves that to the captioner.
        """
        ...


def scene_of(reading: Reading) -> Scene:
    """A reading as a scene, to be said in the words of the grammar; what cannot be (a hat on a bus) is left out."""
    return Scene(
        reading.background, tuple(_thing(found, index) for index, found in enumerate(reading.objects)), reading.style
    )


def _thing(found: ReadObject, index: int) -> Thing:
    row = sprite(found.word)
    return Thing(
        found.word,
        found.look if found.look in COLOURS else None,
        found.look if found.look in MATERIALS else None,
        found.pose if found.pose in row.poses else "standing",
        "right" if row.facing and found.facing == "right" else None,  # captions do not say what is usual
        found.accessory if row.eyes and found.accessory in ACCESSORIES else None,
        x=0.25 + 0.5 * index,
    )


class PocketCaptioner:
    """Stands in for BLIP-2 (Li et al. 2023): a reader of the pocket world, whose answers fill the caption grammar.

    It says background, style, and of one or two objects the word, colour or material, pose, accessory, and whether they
    face right, always in the canonical phrasing. It knows no other world, makes no sentence of its own, and answers no
    question.

    Args:
        reader: What reads; None takes the shipped one.
    """

    name = "pocket captioner (stand-in for BLIP-2)"

    def __init__(self, reader: Reader | None = None) -> None:
        self.reader = reader or load_reader()

    def caption(self, image: Picture, prompt: str | None = None) -> str:
        """See `Captioner.caption`.

        Raises:
            EditbookError: A prompt was given.
        """
        if prompt:
            raise EditbookError(f"The {self.name} fills one form and answers no prompt, got {prompt!r}.")
        return scene_of(self.reader([as_image(image)])[0]).caption()


class OracleCaptioner:
    """A captioner that never errs, for one scene: what a better one could at best give to a method.

    Args:
        scene: What the pictures that it is given show. It does not look at them.
        phrasing: Of the caption, see `Scene.caption`.
    """

    name = "oracle (reads the scene)"

    def __init__(self, scene: Scene, phrasing: int = 0) -> None:
        self.scene, self.phrasing = scene, phrasing

    def caption(self, image: Picture, prompt: str | None = None) -> str:
        """See `Captioner.caption`; the prompt is not read."""
        as_image(image)
        return self.scene.caption(self.phrasing)


class Blip2Captioner:
    """The real BLIP-2, or any other captioner that transformers loads as an image-to-text model.

    Args:
        model: `Blip2ForConditionalGeneration` or alike.
        processor: Its processor.
        name: What it is, for pages.
        tokens: Longest answer.
    """

    def __init__(self, model: Any, processor: Any, name: str, tokens: int = 20) -> None:
        self.model, self.processor, self.name, self.tokens = model.eval(), processor, name, tokens

    @classmethod
    def load(cls, name: str | Path, device: str = "cpu") -> Blip2Captioner:
        """From a folder or the hub's files on this machine, e.g. "Salesforce/blip2-flan-t5-xl" (3.9 G parameters)."""

        def load() -> tuple[Any, Any]:
            from transformers import AutoModelForImageTextToText, AutoProcessor

            dtype = torch.float32 if device == "cpu" else torch.float16
            model = AutoModelForImageTextToText.from_pretrained(name, local_files_only=True, dtype=dtype)
            return model, AutoProcessor.from_pretrained(name, local_files_only=True)

        model, processor = loaded("BLIP-2", name, load)
        return cls(model.to(device), processor, f"BLIP-2 {name}")

    @torch.no_grad()
    def caption(self, image: Picture, prompt: str | None = None) -> str:
        """See `Captioner.caption`; greedy, so the same picture has the same caption."""
        asked = {"text": prompt} if prompt else {}
        inputs = self.processor(images=as_image(image), **asked, return_tensors="pt")
        inputs = inputs.to(self.model.device, self.model.dtype)
        made = self.model.generate(**inputs, max_new_tokens=self.tokens, do_sample=False)
        return str(self.processor.batch_decode(made, skip_special_tokens=True)[0]).strip()


@cache
def load_captioner(name: str | Path = "pocket", device: str = "cpu") -> Captioner:
    """A captioner by name.

    Args:
        name: "pocket", the stand-in that ships with the package; or a folder, or the hub id of a BLIP-2 model that was
            downloaded before.
        device: Where the real one computes.

    Raises:
        EditbookError: There is none of that name.
    """
    return PocketCaptioner() if name == "pocket" else Blip2Captioner.load(name, device)
