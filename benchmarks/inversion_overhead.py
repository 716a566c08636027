"""What inversions that optimise add to the bare U-Net calls that they are made of, as a ratio measured in one run.

Each is timed in turn with as many bare forward and backward calls of the same batch size, several rounds; the medians
are compared. The number of calls is counted, not assumed. Another method is one more entry of `CASES`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from overhead import alternately

import editbook
import editbook.methods  # registers the inversions
from editbook.inversion import Inversion, make_inverter
from editbook.model import Model
from editbook.sampling import Schedule

PROMPT = "a photo of a cat in the meadow"
GOAL = 1.10
# Options of each inversion, and from what it returned the number of calls with a gradient (of the embedding).
CASES: dict[str, tuple[dict[str, object], Callable[[Inversion], int]]] = {
    "ddim-inversion": ({}, lambda inversion: 0),
    "null-text-inversion": (
        {"inner_steps": 5, "tolerance": 0.0},
        lambda inversion: sum(len(losses) - 1 for losses in inversion.losses),  # type: ignore[attr-defined]
    ),
}


def bare(model: Model, z: torch.Tensor, forward: int, backward: int) -> None:
    """As many calls of the U-Net, `backward` of them with the gradient of the text embedding."""
    embedding = model.embed("")
    weights = torch.ones_like(z)
    for call in range(forward):
        if call < backward:
            tuned = embedding.clone().requires_grad_()
            torch.autograd.grad(model.unet(z, 500, encoder_hidden_states=tuned).sample, tuned, weights)
        else:
            with torch.no_grad():
                model.unet(z, 500, encoder_hidden_states=embedding)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=list(CASES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=10)
    arguments = parser.parse_args()
    model = editbook.load("pocket")
    z_0 = model.encode(editbook.pocket.task("cat-to-fox").source_image)
    schedule = Schedule(model.scheduler, arguments.steps)
    for name in arguments.names:
        options, gradients = CASES[name]
        inverter = make_inverter(name, options)
        before = model.nfe
        backward = gradients(inverter(model, z_0, PROMPT, schedule))
        forward = model.nfe - before
        whole, calls = alternately(
            lambda inverter=inverter: inverter(model, z_0, PROMPT, schedule),  # type: ignore[misc]
            lambda forward=forward, backward=backward: bare(model, z_0, forward, backward),  # type: ignore[misc]
            arguments.rounds,
        )
        print(f"{name:24} {whole / calls:.3f} of {forward} calls, {backward} backward  (goal: at most {GOAL:.2f})")


if __name__ == "__main__":
    main()
