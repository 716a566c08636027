"""``python -m editbook.training vae --run runs/pocket --minutes 15``: the same as ``editbook train``."""

from __future__ import annotations

import argparse
from pathlib import Path

from .loop import Plan
from .recipes import RECIPES, run_recipe
from .start import adopt

parser = argparse.ArgumentParser(prog="python -m editbook.training", description=__doc__)
parser.add_argument("name", choices=[*RECIPES])
parser.add_argument("--run", type=Path, default=Path("runs/pocket"))
parser.add_argument("--samples", type=int)
parser.add_argument("--minutes", type=float)
parser.add_argument("--device", default="cpu")
parser.add_argument("--threads", type=int)
parser.add_argument("--compile", action="store_true")
parser.add_argument("--start", type=Path)
parser.add_argument("--workers", type=int, default=0)
options = parser.parse_args()
plan = Plan(
    options.run,
    options.samples or RECIPES[options.name].samples,
    options.minutes,
    options.device,
    options.threads,
    options.compile,
    workers=options.workers,
)
if options.start:
    adopt(options.start, options.run)
print(run_recipe(options.name, plan))
