"""What methods and inversions add to the network calls that they are made of, as ratios measured in one run.

A run is recorded first: every call of the U-Net, of the autoencoder's two halves and of the text encoder, with its own
inputs, and whether a gradient flowed back through it. Then the run and its bare calls are timed in turn, several rounds
(see `overhead.alternately`), and the medians are compared. Nothing about a method is assumed, so all can be measured.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from overhead import alternately

import editbook
from editbook.inversion import INVERSIONS, make_inverter
from editbook.methods.base import REGISTRY
from editbook.model import Model
from editbook.sampling import Schedule

sys.path.append(str(Path(__file__).parents[1] / "tests" / "methods"))
from quick import QUICK

TASK = "cat-to-fox"
# Attention maps must be formed where Prompt-to-Prompt edits them; all others stay on fused attention.
MAPS = ("prompt-to-prompt", "baret", "mag-edit", "cross-image-attention", "ti-guided-edit", "tf-icon")


@dataclass
class Call:
    """One call of a network: its inputs, and those of them that a gradient went back to."""

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

        def leaf(x: Any) -> Any:
            if isinstance(x, torch.Tensor) and x.is_floating_point():
                leaves.append(x.detach().requires_grad_())
                return leaves[-1]
            return x

        args, kwargs = tuple(map(leaf, self.args)), {name: leaf(x) for name, x in self.kwargs.items()}
        with torch.enable_grad(), ExitStack() as stack:
            if not leaves:  # the text encoder reads whole numbers; the gradient went to their vectors
                embedding: Any = self.module.get_input_embeddings()  # type: ignore[operator]
                stack.callback(embedding.register_forward_hook(lambda _, __, out: leaf(out)).remove)
            out = first(self.module(*args, **kwargs))
            torch.autograd.grad(out, leaves, torch.ones_like(out), allow_unused=True)


def first(out: Any) -> torch.Tensor:
    """The tensor in what a network returns."""
    found: torch.Tensor = out if isinstance(out, torch.Tensor) else out[0]
    return found


@contextmanager
def recorded(model: Model) -> Iterator[list[Call]]:
    """A context in which all network calls are written down."""
    calls: list[Call] = []

    def hook(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        calls.append(
            Call(
                module,
                detached(args),
                dict(zip(kwargs, detached(kwargs.values()), strict=True)),
                first(out).requires_grad,
            )
        )

    def detached(values: Any) -> tuple[Any, ...]:
        return tuple(x.detach() if isinstance(x, torch.Tensor) else x for x in values)

    with ExitStack() as stack:
        for module in (model.unet, model.vae.encoder, model.vae.decoder, model.text_encoder):
            stack.callback(module.register_forward_hook(hook, with_kwargs=True).remove)
        yield calls


def ratio(model: Model, run: Callable[[], object], rounds: int) -> tuple[float, int, int]:
    """Time of a run over that of its bare calls, how many calls, and how many of them backwards."""
    with recorded(model) as calls:
        run()

    def bare() -> None:
        for call in calls:
            call()

    whole, alone = alternately(run, bare, rounds)
    return whole / alone, len(calls), sum(call.tracked for call in calls)


def cases(model: Model, steps: int) -> dict[str, tuple[Callable[[], object], float]]:
    """Every inversion and every editor with the goal of its ratio."""
    task = editbook.pocket.task(TASK)
    z_0, schedule = model.encode(task.source_image), Schedule(model.scheduler, steps)
    found: dict[str, tuple[Callable[[], object], float]] = {}
    for name in INVERSIONS:
        inverter = make_inverter(name, QUICK.get(name, {}))
        run: Callable[[], object] = partial(inverter, model, z_0, task.source_prompt, schedule)
        found[f"inversion {name}"] = run, 1.10
    for name, method in REGISTRY.items():
        options = {"steps": steps, **QUICK.get(name, {})}
        mask = options.pop("mask", None)
        editor = method.configured(**options)
        prompts = {"source": task.source_prompt, "target": task.target_prompt}
        run = partial(editbook.edit, model, task.source_image, editor, mask=mask, **prompts)
        forms_maps = issubclass(method, REGISTRY["prompt-to-prompt"]) or name in MAPS
        found[f"editor {name}"] = run, 1.35 if forms_maps else 1.10
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="parts of names; all by default")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=10)
    arguments = parser.parse_args()
    model = editbook.load("pocket")
    for name, (run, goal) in cases(model, arguments.steps).items():
        if arguments.names and not any(part in name for part in arguments.names):
            continue
        measured, calls, backward = ratio(model, run, arguments.rounds)
        print(f"{name:45} {measured:.3f} of {calls:3} calls, {backward:3} backward  (goal: at most {goal:.2f})")


if __name__ == "__main__":
    main()
