"""The registry: a mapping from a method's id to its class.

Importing this package registers every method file below it, and the package itself *is* the mapping:
``editbook.methods["prompt-to-prompt"]``, ``list(editbook.methods)``.
"""

from __future__ import annotations

import importlib
import pkgutil
import sys
from collections.abc import Iterator, Mapping
from types import ModuleType

from .base import REGISTRY, Card, Method, Request

for _module in pkgutil.walk_packages(__path__, f"{__name__}."):
    importlib.import_module(_module.name)


class _Registry(ModuleType, Mapping):
    __hash__ = ModuleType.__hash__  # Mapping takes it away, and tools keep modules in sets

    def __getitem__(self, name: str) -> type[Method]:
        return REGISTRY[name]

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(REGISTRY))

    def __len__(self) -> int:
        return len(REGISTRY)


sys.modules[__name__].__class__ = _Registry

__all__ = ["REGISTRY", "Card", "Method", "Request"]
