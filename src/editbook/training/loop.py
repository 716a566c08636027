"""The training loop that all recipes share: progress, EMA, schedule, checkpoints that survive a kill."""

from __future__ import annotations

import csv
import os
import pickle
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import nn
from tqdm import tqdm

from ..errors import EditbookError
from .stream import SceneStream


@dataclass
class Plan:
    """How long and where to train.

    Args:
        run: Folder of the run; checkpoints and results go below it.
        samples: Training samples in all; ignored if `minutes` is given.
        minutes: Train for this long instead, over all resumptions; the schedule follows the clock.
        device: "cpu" or "cuda".
        threads: CPU threads; None leaves torch's choice.
        compile: Compile the network: a minute of waiting, then half as fast again on a CPU, more on a GPU.
        save_every: Seconds between checkpoints.
        workers: Processes that draw scenes ahead; for a GPU, which one core cannot feed.

    Raises:
        EditbookError: There is no such device.
    """

    run: Path
    samples: int
    minutes: float | None = None
    device: str = "cpu"
    threads: int | None = None
    compile: bool = False
    save_every: float = 180.0
    workers: int = 0

    def __post_init__(self) -> None:
        try:
            torch.empty(0, device=self.device)
        except (RuntimeError, AssertionError) as error:
            reason = str(error).splitlines()[0]
            raise EditbookError(f"The device {self.device!r} cannot be used here: {reason}") from None


@dataclass
class Recipe:
    """What is trained, and how one step goes.

    Args:
        name: Its folder in the run.
        networks: Trained modules by name.
        stream: Where the scenes come from.
        loss: From one batch to the loss to minimise; called under autocast.
        learning_rate: Peak of the schedule.
        decay_from: Fraction of the run after which the learning rate falls linearly to 0.
        show: Called at every checkpoint with the averaged networks in place, to draw samples.
        more_streams: Further streams that `loss` draws from, to be saved with the rest.
    """

    name: str
    networks: dict[str, nn.Module]
    stream: SceneStream
    loss: Callable[[], torch.Tensor]
    learning_rate: float = 1e-3
    decay_from: float = 0.6
    show: Callable[[Path], None] | None = None
    more_streams: Sequence[SceneStream] = ()


def train(recipe: Recipe, plan: Plan) -> dict[str, Any]:
    """Run a recipe to its end, or go on where its folder's checkpoint stands; leaves the averaged networks in place.

    A kill loses at most `save_every` seconds; SIGTERM loses nothing. Checkpoints are written beside the old one and
    renamed over it.

    Returns:
        Samples seen, seconds spent, last smoothed loss.
    """
    if plan.threads:
        torch.set_num_threads(plan.threads)
    folder = plan.run / recipe.name
    folder.mkdir(parents=True, exist_ok=True)
    modules = nn.ModuleDict(recipe.networks).train().to(plan.device)
    weights = [p for p in modules.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(weights, recipe.learning_rate, (0.9, 0.99), weight_decay=1e-3, fused=True)
    average = [p.detach().clone() for p in weights]
    seen, spent, smooth, step = 0, 0.0, float("nan"), 0
    checkpoint = folder / "checkpoint.pt"
    if checkpoint.exists():
        try:
            state = torch.load(checkpoint, map_location=plan.device, weights_only=True)
        except (RuntimeError, OSError, EOFError, pickle.UnpicklingError) as error:
            reason = str(error).splitlines()[0]
            raise EditbookError(f"{checkpoint} is damaged ({reason}): delete it to begin this part anew.") from error
        modules.load_state_dict(state["modules"])
        optimiser.load_state_dict(state["optimiser"])
        average = [mean.detach() for mean in state["average"]]
        recipe.stream.load_state_dict(state["stream"])
        for stream, position in zip(recipe.more_streams, state.get("more_streams", ()), strict=False):
            stream.load_state_dict(position)
        torch.set_rng_state(state["rng"].cpu())
        if torch.cuda.is_available() and state.get("cuda_rng"):
            torch.cuda.set_rng_state_all([rng.cpu() for rng in state["cuda_rng"]])
        seen, spent, smooth, step = (state[key] for key in ("seen", "spent", "smooth", "step"))
    stop = _StopSignal()
    _keep_rows(folder / "loss.csv", seen)
    log = (folder / "loss.csv").open("a", newline="")
    bar = tqdm(
        total=plan.samples if plan.minutes is None else None,
        initial=seen,
        unit="sample",
        desc=recipe.name,
        mininterval=10,
    )
    began = saved = time.monotonic()
    base = spent

    def swap() -> None:
        for weight, mean in zip(weights, average, strict=True):
            weight.data, mean.data = mean.data, weight.data

    def save() -> None:
        state = {
            "modules": modules.state_dict(),
            "optimiser": optimiser.state_dict(),
            "average": average,
            "stream": recipe.stream.state_dict(),
            "more_streams": [stream.state_dict() for stream in recipe.more_streams],
            "rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
            "seen": seen,
            "spent": spent,
            "smooth": smooth,
            "step": step,
        }
        torch.save(state, checkpoint.with_suffix(".tmp"))
        os.replace(checkpoint.with_suffix(".tmp"), checkpoint)
        log.flush()
        _draw_curve(folder)
        if recipe.show is not None:
            swap()
            modules.eval()
            recipe.show(folder)
            modules.train()
            swap()

    try:
        while True:
            done = seen / plan.samples if plan.minutes is None else spent / (60 * plan.minutes)
            if done >= 1 or stop.asked:
                break
            warm = min(1.0, (step + 1) / 100)
            rate = recipe.learning_rate * warm * min(1.0, (1 - done) / (1 - recipe.decay_from))
            for group in optimiser.param_groups:
                group["lr"] = rate
            with torch.autocast(plan.device.split(":")[0], torch.bfloat16):
                loss = recipe.loss()
            if not torch.isfinite(loss):
                raise EditbookError(
                    f"The loss of {recipe.name} is not finite after {seen} samples. The same command goes on from the "
                    "last checkpoint; if it fails again, lower the recipe's learning_rate."
                )
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(weights, 1.0)
            optimiser.step()
            step += 1
            with torch.no_grad():
                torch._foreach_lerp_(average, list[torch.Tensor](weights), 1 - min(0.9995, (1 + step) / (10 + step)))
            seen += recipe.stream.batch_size
            spent = base + time.monotonic() - began
            value = float(loss.detach())
            smooth = value if step == 1 else 0.98 * smooth + 0.02 * value
            bar.update(recipe.stream.batch_size)
            if step % 20 == 0:
                bar.set_postfix(loss=f"{smooth:.4f}", refresh=False)
                csv.writer(log).writerow([seen, round(spent, 1), f"{smooth:.5f}", f"{rate:.2e}"])
            if time.monotonic() - saved > plan.save_every:
                save()
                saved = time.monotonic()
        save()
        if stop.asked:
            raise SystemExit(f"Stopped after {seen} samples; the same command goes on from there.")
    finally:
        stop.restore()
        log.close()
        bar.close()
    swap()
    modules.eval()
    return {"samples": seen, "seconds": round(spent, 1), "loss": round(smooth, 5), "device": plan.device}


def compiled(function: Callable[..., torch.Tensor], plan: Plan) -> Callable[..., torch.Tensor]:
    """The function, compiled if the plan says so."""
    return torch.compile(function) if plan.compile else function


def _keep_rows(path: Path, seen: int) -> None:
    """Drop what a killed run logged after its last checkpoint (the last row perhaps torn): it will be written again."""
    if path.exists():
        rows = [row for row in path.read_text().splitlines() if row.count(",") == 3 and int(row.split(",")[0]) <= seen]
        path.write_text("".join(f"{row}\n" for row in rows))


def _draw_curve(folder: Path) -> None:
    """The loss over the samples, from `loss.csv`, as `loss.png`."""
    if not (folder / "loss.csv").stat().st_size:
        return
    rows = np.loadtxt(folder / "loss.csv", delimiter=",", ndmin=2)
    figure = Figure(figsize=(6, 3), layout="constrained")
    axes = figure.subplots()
    axes.plot(rows[:, 0], rows[:, 2])
    axes.set(xlabel="training samples", ylabel="smoothed loss", yscale="log", title=folder.name)
    figure.savefig(folder / "loss.png", dpi=100)


class _StopSignal:
    """Notes SIGTERM, so that the loop can save before it ends."""

    def __init__(self) -> None:
        self.asked = False
        try:
            self._before = signal.signal(signal.SIGTERM, self._note)
        except ValueError:  # not the main thread: signals are not ours
            self._before = None

    def _note(self, *_: object) -> None:
        self.asked = True

    def restore(self) -> None:
        """Put the former handler back."""
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)
