"""Drawing a mask on a picture with a brush, an eraser, or a click that takes an object; needs a live kernel."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anywidget
import numpy as np
import traitlets

from ..errors import EditbookError
from ..images import as_image, data_address


class MaskPainter(anywidget.AnyWidget):
    """The widget; `array` is what has been painted so far, in every cell that runs after the painting.

    Args:
        picture: What to paint on.
        segment: From (x, y) in pixels to masks (k, height, width), for clicks on objects; None has no such tool.
        side: Width of the picture on the page, in pixels.
    """

    _esm = Path(__file__).with_name("mask_painter.js")
    _css = Path(__file__).with_name("mask_painter.css")
    picture = traitlets.Unicode().tag(sync=True)
    size = traitlets.List(traitlets.Int()).tag(sync=True)
    side = traitlets.Int(384).tag(sync=True)
    clicks = traitlets.Bool(False).tag(sync=True)
    message = traitlets.Unicode().tag(sync=True)
    mask = traitlets.Bytes().tag(sync=True, from_json=lambda sent, _: bytes(sent))

    def __init__(self, picture: Any, segment: Any = None, side: int = 384) -> None:
        image = as_image(picture).convert("RGB")
        super().__init__(
            picture=data_address(image),
            size=list(image.size),
            side=side,
            clicks=segment is not None,
            mask=bytes(image.width * image.height),
        )
        self._segment = segment
        self._clicked: tuple[tuple[int, int], int, np.ndarray] | None = None
        self.on_msg(self._on_message)

    @property
    def array(self) -> np.ndarray:
        """The mask, float32 (height, width) of 0 and 1: give it to `edit(mask=...)`."""
        width, height = self.size
        return (np.frombuffer(self.mask, np.uint8).reshape(height, width) > 0).astype(np.float32)

    @array.setter
    def array(self, mask: Any) -> None:
        width, height = self.size
        values = np.asarray(mask)
        if values.shape != (height, width):
            raise EditbookError(f"The mask has the shape {values.shape}, and its picture {(height, width)}.")
        self.mask = ((values > 0.5) * np.uint8(255)).astype(np.uint8).tobytes()

    def click(self, x: int, y: int) -> None:
        """Take the object under a pixel; the same place again takes the next of the segmenter's answers.

        Raises:
            EditbookError: There is no segmenter, the place is outside, or nothing was found there.
        """
        if self._segment is None:
            raise EditbookError("This painter has no segmenter: give mask_painter(segmenter=...) one.")
        width, height = self.size
        if not (0 <= x < width and 0 <= y < height):
            raise EditbookError(f"The click ({x}, {y}) is outside the picture of {width} x {height} pixels.")
        masks = np.asarray(self._segment(x, y), bool)
        if not masks.size or not masks.any():
            raise EditbookError(f"Nothing was found at ({x}, {y}): click an object, or draw.")
        place, turn, before = (x, y), 0, self.array
        if self._clicked is not None and np.hypot(x - self._clicked[0][0], y - self._clicked[0][1]) < 3:
            place, turn, before = self._clicked[0], (self._clicked[1] + 1) % len(masks), self._clicked[2]
        self._clicked = (place, turn, before)
        self.array = np.maximum(before, masks[turn])
        self.message = f"answer {turn + 1} of {len(masks)}; click the same place for the next"

    def _on_message(self, _: Any, content: Any, buffers: Any) -> None:
        if content.get("kind") == "draw":
            self._clicked = None
            return
        try:
            self.click(int(content["x"]), int(content["y"]))
        except EditbookError as error:
            self.message = str(error)


def mask_painter(image: Any, *, segmenter: Any = "pocket", side: int = 384) -> MaskPainter:
    """Paint a mask with the mouse: draw, erase, or click an object. Shows a widget; needs a live kernel.

        painter = mask_painter(photo)
        painter                                     # paint
        edit(model, photo, ..., mask=painter.array) # in a later cell

    Args:
        image: What to paint on; the mask has its size.
        segmenter: What answers clicks: a name for `editbook.perception.load_segmenter`, or a segmenter; None leaves
            out the tool.
        side: Width of the picture on the page, in pixels.

    Raises:
        EditbookError: No picture, or a side that is none.
    """
    if not isinstance(side, int) or side < 64:
        raise EditbookError(f"side is a whole number of at least 64 pixels, got {side!r}.")
    picture = as_image(image)
    if segmenter is None:
        return MaskPainter(picture, None, side)
    if isinstance(segmenter, str):
        from ..perception import load_segmenter

        segmenter = load_segmenter(segmenter)

    def answers(x: int, y: int) -> np.ndarray:
        masks = np.asarray(segmenter.segment(picture, points=[(x, y)])[0], bool)
        found: np.ndarray = masks[masks.any((1, 2))]  # an object that wears nothing has no part to be clicked
        return found

    return MaskPainter(picture, answers, side)
