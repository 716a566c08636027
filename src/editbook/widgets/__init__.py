"""Figures and tools that answer the mouse."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ..errors import EditbookError
from .attention_explorer import attention_explorer

if TYPE_CHECKING:
    from .mask_painter import MaskPainter, mask_painter

__all__ = ["MaskPainter", "attention_explorer", "mask_painter"]


def __getattr__(name: str) -> Any:
    # Only the painter needs a widget library; the explorer is plain HTML.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        module = importlib.import_module(f"{__name__}.mask_painter")
    except ImportError as error:
        raise EditbookError(f"{name} needs a package that is missing ({error}): pip install editbook[book].") from None
    found = {name: getattr(module, name) for name in ("MaskPainter", "mask_painter")}
    globals().update(found)  # the submodule of that name would otherwise stand in front of the function
    return found[name]
