"""editbook: image editing with diffusion models, executable.

    import editbook
    model = editbook.load("pocket")
    task = editbook.pocket.task("cat-to-fox")
    edit = editbook.edit(model, task.source_image, source=task.source_prompt, target=task.target_prompt)
    edit.show(task.truth)

Nothing heavy is imported before it is used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import data, methods, pocket
    from .editing import edit
    from .errors import EditbookError
    from .model import Model, load
    from .result import Edit

__version__ = "0.1.0"
__all__ = ["Edit", "EditbookError", "Model", "data", "edit", "load", "methods", "pocket"]

_WHERE = {
    "Edit": ("result", "Edit"),
    "EditbookError": ("errors", "EditbookError"),
    "Model": ("model", "Model"),
    "edit": ("editing", "edit"),
    "load": ("model", "load"),
}


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        module, attribute = _WHERE[name]
        return getattr(importlib.import_module(f".{module}", __name__), attribute)
    if name in ("data", "methods", "pocket"):
        return importlib.import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
