"""What the library adds to the bare network, as ratios measured in one run (absolute seconds depend on the machine).

Each pair is timed alternately, several rounds, and the medians are compared. Seconds are this process's own on the
processor, not the clock's: where other programs take turns with it, the clock says more about them.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch

import editbook
from editbook import pocket
from editbook.attention import Capture
from editbook.sampling import ClassifierFreeGuidance, Schedule, follow


def alternately(one: Callable[[], object], other: Callable[[], object], rounds: int) -> tuple[float, float]:
    """Median processor seconds of two functions, called in turn."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds + 1):
        for function, record in zip((one, other), seconds, strict=True):
            start = time.process_time()
            function()
            record.append(time.process_time() - start)
    return statistics.median(seconds[0][1:]), statistics.median(seconds[1][1:])  # the first round warms up


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=20)
    options = parser.parse_args()
    model = editbook.load("pocket")
    path = Schedule(model.scheduler, options.steps).sampling()
    z_T = model.random_latent(0, 2)
    embeddings = model.embed(["a photo of a cat in the meadow", "a photo of a fox in the meadow"])
    guidance = ClassifierFreeGuidance(embeddings, model.embed(""), 5.0)
    doubled = torch.cat([model.embed("").expand(2, -1, -1), embeddings])

    @torch.no_grad()
    def bare() -> None:
        for move in path:
            model.unet(torch.cat([z_T, z_T]), move.t, encoder_hidden_states=doubled)

    def sampling() -> None:
        follow(model, z_T, path, guidance)

    def capturing() -> None:
        follow(model, z_T, path, guidance, attention=Capture(resolutions=[16]))

    calls, loop = alternately(bare, sampling, options.rounds)
    print(f"sampling loop over bare U-Net calls:                {loop / calls:.3f}  (goal: at most 1.05)")
    plain, captured = alternately(sampling, capturing, options.rounds)
    print(f"capture of all 16x16 cross-attention over no capture: {captured / plain:.3f}  (goal: at most 1.25)")
    scenes = [pocket.sample(seed) for seed in range(500)]
    start = time.perf_counter()
    for scene in scenes:
        scene.array(64)
    rate = len(scenes) / (time.perf_counter() - start)
    print(f"scenes drawn at 64 x 64: {rate:.0f} a second on one core (goal: 500)")


if __name__ == "__main__":
    main()
