"""What methods and inversions add to the network calls that they are made of, as ratios measured in one run.

A run is recorded first: every call of a network, whichever it is (U-Nets, the autoencoder's halves, CLIP's towers, what
finds or fills masks), with its own inputs, and whether a gradient flowed back through it. Then the run and its bare
calls are timed in turn, several rounds (see `overhead.alternately`), and the medians are compared. Nothing about a
method is assumed, so all can be measured.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from overhead import alternately

import editbook
from editbook.bench import Entry, texts_for
from editbook.inversion import INVERSIONS, make_inverter
from editbook.methods.base import REGISTRY
from editbook.sampling import Schedule

sys.path.append(str(Path(__file__).parents[1] / "tests" / "methods"))
from quick import QUICK

TASK = "121000000020"  # of PocketBench: the cat in the forest becomes a snowman
# Attention maps must be formed where Prompt-to-Prompt edits them; all others stay on fused attention. Methods of the
# inversion chapter that run on Prompt-to-Prompt have the common goal all the same.
MAPS = ("prompt-to-prompt", "baret", "mag-edit", "cross-image-attention", "ti-guided-edit", "tf-icon")
# Where the options that make a test quick leave out what shall be timed.
TIMED: dict[str, dict[str, object]] = {"disentanglement-diffusion": {"epochs": 1}}
load = cache(editbook.load)


@dataclass
class Call:
    """One call of a network: its inputs, those that a gradient went back to marked, and whether one went back."""

    module: torch.nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    tracked: bool

    def __call__(self) -> None:
        """The same call again, and backwards where it went backwards."""
        if not self.tracked:
            with torch.no_grad():
                self.module(*self.args, **self.kwargs)
            return
        leaves: list[torch.Tensor] = []

        def leaf(x: Any, wanted: Callable[[torch.Tensor], bool]) -> Any:
            if isinstance(x, torch.Tensor) and wanted(x):
                leaves.append(x.detach().requires_grad_())
                return leaves[-1]
            return x

        # Where no input wants a gradient, something inside did, such as a control's own keys: then it crosses all.
        marked = any(isinstance(x, torch.Tensor) and x.requires_grad for x in (*self.args, *self.kwargs.values()))
        wanted = (lambda x: x.requires_grad) if marked else torch.is_floating_point
        args = tuple(leaf(x, wanted) for x in self.args)
        kwargs = {name: leaf(x, wanted) for name, x in self.kwargs.items()}
        with torch.enable_grad(), ExitStack() as stack:
            if not leaves:  # the text encoder reads whole numbers; the gradient went to their vectors
                embedding: Any = self.module.get_input_embeddings()  # type: ignore[operator]
                hook = embedding.register_forward_hook(lambda _, __, out: leaf(out, torch.is_floating_point))
                stack.callback(hook.remove)
            out = first(self.module(*args, **kwargs))
            torch.autograd.grad(out, leaves, torch.ones_like(out), allow_unused=True)


def first(out: Any) -> torch.Tensor:
    """The first tensor in what a network returns."""
    if isinstance(out, torch.Tensor):
        return out
    return first(next(iter(out.values() if isinstance(out, Mapping) else out)))


@contextmanager
def recorded() -> Iterator[list[Call]]:
    """A context in which all network calls are written down: those of modules that no other module calls."""
    calls: list[Call] = []
    plain, inside = torch.nn.Module.__call__, False

    def call(module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        nonlocal inside
        if inside:
            return plain(module, *args, **kwargs)
        inside = True
        try:
            out = plain(module, *args, **kwargs)
        finally:
            inside = False
        named = {name: detached(x) for name, x in kwargs.items()}
        calls.append(Call(module, tuple(map(detached, args)), named, first(out).requires_grad))
        return out

    def detached(x: Any) -> Any:
        return x.detach().requires_grad_(x.requires_grad) if isinstance(x, torch.Tensor) else x

    with mock.patch.object(torch.nn.Module, "__call__", call):
        yield calls


def ratio(run: Callable[[], object], rounds: int) -> tuple[float, int, int]:
    """Time of a run over that of its bare calls, how many calls, and how many of them backwards."""
    with recorded() as calls:
        run()

    def bare() -> None:
        for call in calls:
            call()

    whole, alone = alternately(run, bare, rounds)
    return whole / alone, len(calls), sum(call.tracked for call in calls)


def entries(steps: int) -> list[Entry]:
    """Every editor of the registry, with the model and the mask that it needs and options that make it quick."""
    found = [Entry("inpaint-anything, removing", "inpaint-anything", mask="segment:{word}")]
    for name, method in REGISTRY.items():
        inversion = method.options().get("inversion", "")
        options = {"steps": steps, **QUICK.get(inversion, {}), **QUICK.get(name, {}), **TIMED.get(name, {})}
        options.pop("mask", None)  # those that can find one shall do so
        model = "pocket-instruct-pix2pix" if method.takes_image else ""
        mask = "segment:{word}" if name == "inpaint-anything" else "mask" in method.card.inputs
        found.append(Entry(name, name, options, mask=mask, model=model))
    return found


def cases(steps: int) -> dict[str, tuple[Callable[[], object], float]]:
    """Every inversion and every editor with the goal of its ratio."""
    model, task = load("pocket"), editbook.pocket.bench().task(TASK)
    z_0, schedule = model.encode(task.source_image), Schedule(model.scheduler, steps)
    found: dict[str, tuple[Callable[[], object], float]] = {}
    for name in INVERSIONS:
        inverter = make_inverter(name, QUICK.get(name, {}))
        run: Callable[[], object] = partial(inverter, model, z_0, task.source_prompt, schedule)
        found[f"inversion {name}"] = run, 1.10
    for entry in entries(steps):
        editor = REGISTRY[entry.method].configured(**entry.options)
        texts: dict[str, Any] = texts_for(editor, task)
        sees = load(entry.model) if entry.model else model
        run = partial(editbook.edit, sees, task.source_image, editor, mask=entry.mask_for(task), **texts)
        found[f"editor {entry.name}"] = run, 1.35 if entry.method in MAPS else 1.10
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="parts of names; all by default")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=10)
    arguments = parser.parse_args()
    for name, (run, goal) in cases(arguments.steps).items():
        if arguments.names and not any(part in name for part in arguments.names):
            continue
        measured, calls, backward = ratio(run, arguments.rounds)
        print(f"{name:45} {measured:.3f} of {calls:3} calls, {backward:3} backward  (goal: at most {goal:.2f})")


if __name__ == "__main__":
    main()
