"""The `editbook` command. Heavy imports happen inside the commands, so that `--help` answers at once."""

from __future__ import annotations

import ast
import contextlib
import functools
import json
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click

from . import __version__
from .errors import EditbookError, unknown

_Known = TypeVar("_Known")


def _say_errors(function: Callable[..., Any]) -> Callable[..., Any]:
    """Print an `EditbookError` as one line and exit with 2: it is meant for the user, a traceback is not.

    Ctrl-C ends a command with 130, as a shell expects.
    """

    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        with warnings.catch_warnings():  # puts back what was there: a command may run inside another program
            warnings.showwarning = _say_warning
            try:
                return function(*args, **kwargs)
            except EditbookError as error:
                click.echo(f"editbook: {error}", err=True)
                sys.exit(2)
            except KeyboardInterrupt:
                click.echo("editbook: interrupted", err=True)
                sys.exit(130)

    return wrapped


def _say_warning(message: Warning | str, category: type[Warning], filename: str, *_: Any, **__: Any) -> None:
    """Print this library's own warnings as one line, without their place in the code; others are not the user's."""
    if "editbook" in Path(filename).parts:
        click.echo(f"editbook: {message}", err=True)


def _values(pairs: tuple[str, ...]) -> dict[str, Any]:
    """NAME=VALUE options; values are JSON or Python literals where they can be read as such, else text."""
    values: dict[str, Any] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals or not name:
            raise EditbookError(f"Write NAME=VALUE, not {pair!r}.")
        values[name.strip()] = _value(text)
    return values


def _value(text: str) -> Any:
    for read in (json.loads, ast.literal_eval):
        with contextlib.suppress(ValueError, SyntaxError, RecursionError, MemoryError):
            return read(text)
    return text


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="editbook")
def main() -> None:
    """Image editing with diffusion models: the book, its methods, its world and its model."""


@main.command()
@click.argument("image", type=click.Path(path_type=Path))
@click.option("--method", default="prompt-to-prompt", show_default=True, help="See `editbook methods`.")
@click.option("--source", default="", help="Prompt that describes the picture as it is, for methods that need one.")
@click.option("--target", default="", help="Prompt that describes it after the edit, for methods that need one.")
@click.option("--instruction", default="", help="What to do, for methods that follow instructions.")
@click.option("--model", "model_name", default="pocket", show_default=True, help='"pocket", a folder, or a hub id.')
@click.option("--device", default="cpu", show_default=True)
@click.option("--dtype", default="float32", show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.option("--steps", type=click.IntRange(1), help="Denoising steps; the method's own number by default.")
@click.option(
    "--mask", help='Picture that is white where the edit may act, or a source of masks: "diffedit", "segment:cat".'
)
@click.option(
    "-M",
    "--mask-option",
    "mask_options",
    multiple=True,
    metavar="NAME=VALUE",
    help="threshold, dilate, invert, blur, or an option of the mask's source; repeatable.",
)
@click.option(
    "-O", "--option", "options", multiple=True, metavar="NAME=VALUE", help="An option of the method; repeatable."
)
@click.option("-o", "--output", type=click.Path(path_type=Path), default=Path("out"), show_default=True)
@_say_errors
def edit(
    image: Path,
    method: str,
    source: str,
    target: str,
    instruction: str,
    model_name: str,
    device: str,
    dtype: str,
    seed: int,
    steps: int | None,
    mask: str | None,
    mask_options: tuple[str, ...],
    options: tuple[str, ...],
    output: Path,
) -> None:
    """Edit the picture IMAGE (PNG, JPEG or WebP); writes the result, the mask and the settings to a folder."""
    # Everything that can be wrong with the input is found before the model is loaded.
    from .images import read_image, writable_folder

    values = _values(options)
    if steps is not None:
        values["steps"] = steps
    picture = read_image(image)
    folder = writable_folder(output)

    from . import editing, masks, methods
    from .model import load

    if method not in methods.REGISTRY:
        raise unknown("method", method, methods.REGISTRY)
    region = mask if mask is None or mask.partition(":")[0] in masks.MASKS else read_image(mask)
    shape = _values(mask_options)
    editor = methods.REGISTRY[method].configured(**values)
    editing.check_inputs(editor, source=source, target=target, instruction=instruction, mask=region)
    model = load(model_name, device=device, dtype=dtype)
    result = editing.edit(
        model,
        picture,
        method,
        source=source,
        target=target,
        instruction=instruction,
        seed=seed,
        mask=region,
        mask_options=shape,
        progress=True,
        **values,
    )
    result.save(folder)
    click.echo(f"{folder / 'edited.png'}: {result.nfe} U-Net evaluations in {result.seconds:.1f} s")


@main.command("methods")
@_say_errors
def list_methods() -> None:
    """List every method: id, year, place in the survey's taxonomy, title."""
    from . import methods

    cards = [cls.card for _, cls in sorted(methods.REGISTRY.items())]
    rows = [(card.id, str(card.year), card.branch, card.title) for card in cards]
    rows.insert(0, ("id", "year", "branch", "title"))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    for row in rows:
        click.echo("  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[3]]))


@main.group()
def book() -> None:
    """Build the book, and read it."""


@book.command("build")
@click.option("--execute/--no-execute", default=True, help="Run notebooks whose code, library or weights changed.")
@_say_errors
def book_build(execute: bool) -> None:
    """Execute what changed, then build the HTML; prints where to open it."""
    from .book import build

    click.echo(f"The book: {build(execute=execute)}")


@book.command("serve")
@click.option("--port", default=8000, show_default=True, type=click.IntRange(0, 65535))
@_say_errors
def book_serve(port: int) -> None:
    """Serve the built book on this machine."""
    from .book import serve

    serve(port)


@main.group()
def notebooks() -> None:
    """Run and check the notebooks."""


@notebooks.command("run")
@click.argument("paths", nargs=-1, type=click.Path(path_type=Path))
@click.option(
    "-p", "parameters", multiple=True, metavar="NAME=VALUE", help="A value for the parameters cell; repeatable."
)
@click.option("--changed", is_flag=True, help="Only those whose code, library or weights changed.")
@click.option("--output", type=click.Path(path_type=Path), help="Write here, and leave the stored notebooks alone.")
@click.option("--jobs", type=click.IntRange(1), help="How many run at once; two by default, where there are two cores.")
@_say_errors
def notebooks_run(
    paths: tuple[Path, ...], parameters: tuple[str, ...], changed: bool, output: Path | None, jobs: int | None
) -> None:
    """Execute notebooks (all, or PATHS) with papermill and store their outputs."""
    from .notebooks import run

    run(list(paths), _values(parameters), changed=changed, output=output, jobs=jobs)


@notebooks.command("check")
@click.argument("paths", nargs=-1, type=click.Path(path_type=Path))
@_say_errors
def notebooks_check(paths: tuple[Path, ...]) -> None:
    """Execute notebooks anew and compare with the stored outputs (nbval)."""
    from .notebooks import check

    sys.exit(check(list(paths)))


@main.group("bench")
def bench_group() -> None:
    """Compare methods on PocketBench."""


def _chosen(what: str, known: Mapping[str, _Known], only: tuple[str, ...]) -> dict[str, _Known]:
    """What --only names; everything, if it names nothing."""
    for name in only:
        if name not in known:
            raise unknown(what, name, known)
    return {name: known[name] for name in only or known}


@bench_group.command("run")
@click.argument("comparison")
@click.option("--only", multiple=True, help="An entry of the comparison; repeatable. All by default.")
@click.option("--each", default=10, show_default=True, type=click.IntRange(1), help="Tasks of each of the ten types.")
@click.option("--model", "model_name", default="pocket", show_default=True, help='"pocket", a folder, or a hub id.')
@click.option("--device", default="cpu", show_default=True)
@click.option("--threads", type=click.IntRange(1), help="CPU threads.")
@click.option("-o", "--output", type=click.Path(path_type=Path), default=Path("records"), show_default=True)
@_say_errors
def bench_run(
    comparison: str,
    only: tuple[str, ...],
    each: int,
    model_name: str,
    device: str,
    threads: int | None,
    output: Path,
) -> None:
    """Run a comparison (e.g. inversions) and keep its records; the same command goes on where it was stopped.

    Run entries one by one (--only) if their memory is to be compared: it is the peak of the whole process.
    """
    from tqdm import tqdm

    from .bench import drawn_tasks, suite, sweep
    from .model import load

    entries = _chosen(f"entry of {comparison}", {entry.name: entry for entry in suite(comparison)}, only)
    if threads:
        import torch

        torch.set_num_threads(threads)
    for name, entry in entries.items():
        model = load(entry.model or model_name, device=device)
        bar = functools.partial(tqdm, desc=name, unit="edit")
        sweep(model, entry, drawn_tasks(each, model.image_size), output, progress=bar)


@bench_group.command("masks")
@click.option("--only", multiple=True, help="A source of masks; repeatable. All by default.")
@click.option("--each", default=10, show_default=True, type=click.IntRange(1), help="Tasks of each of the ten types.")
@click.option("--device", default="cpu", show_default=True)
@click.option("-o", "--output", type=click.Path(path_type=Path), default=Path("records"), show_default=True)
@_say_errors
def bench_masks(only: tuple[str, ...], each: int, device: str, output: Path) -> None:
    """Compare sources of masks with the exact masks; the same command goes on where it was stopped."""
    from tqdm import tqdm

    from .bench import drawn_tasks
    from .mask_bench import MASK_SUITE, sweep_masks
    from .model import load

    for name, entry in _chosen("source of masks", {entry.name: entry for entry in MASK_SUITE}, only).items():
        model = load(entry.model, device=device)
        bar = functools.partial(tqdm, desc=name, unit="mask")
        sweep_masks(model, entry, drawn_tasks(each, model.image_size), output, progress=bar)


@bench_group.command("time")
@click.argument("comparison")
@click.option("--only", multiple=True, help="An entry of the comparison; repeatable. All by default.")
@click.option("--tasks", "count", default=3, show_default=True, type=click.IntRange(1, 10), help="Edits of each entry.")
@click.option("--model", "model_name", default="pocket", show_default=True, help='"pocket", a folder, or a hub id.')
@click.option("--device", default="cpu", show_default=True)
@click.option("--threads", default=1, show_default=True, type=click.IntRange(1), help="CPU threads.")
@click.option("-o", "--output", type=click.Path(path_type=Path), default=Path("records"), show_default=True)
@_say_errors
def bench_time(
    comparison: str, only: tuple[str, ...], count: int, model_name: str, device: str, threads: int, output: Path
) -> None:
    """Measure seconds and memory of an edit, each entry of a comparison in a process of its own, on an idle machine."""
    from .bench import drawn_tasks, suite
    from .costs import measure_cost
    from .files import writable_folder
    from .records import save_costs

    writable_folder(output)
    for name, entry in _chosen(
        f"entry of {comparison}", {entry.name: entry for entry in suite(comparison)}, only
    ).items():
        cost = measure_cost(entry, drawn_tasks(1)[:count], model=model_name, device=device, threads=threads)
        save_costs(output, {name: cost})
        click.echo(f"{name:34} {cost.seconds:8.2f} s {cost.memory:7.0f} MiB")


@bench_group.command("pairs")
@click.option("--only", multiple=True, help="An editor; repeatable. All by default.")
@click.option("--task", "names", multiple=True, help="A task of PocketBench; repeatable. The book's own by default.")
@click.option("--device", default="cpu", show_default=True)
@click.option("-o", "--output", type=click.Path(path_type=Path), default=Path("records/pairs"), show_default=True)
@_say_errors
def bench_pairs(only: tuple[str, ...], names: tuple[str, ...], device: str, output: Path) -> None:
    """Run every inversion under every editor; the same command goes on where it was stopped."""
    from tqdm import tqdm

    from .model import load
    from .pairs import PAIR_EDITORS, PAIR_TASK, sweep_pairs

    editors = _chosen("editor", PAIR_EDITORS, only)
    model = load("pocket", device=device)
    for name, editor in editors.items():
        bar = functools.partial(tqdm, desc=name, unit="pair")
        sweep_pairs(model, editor, names or (PAIR_TASK,), output, progress=bar)


@bench_group.command("table")
@click.argument("folder", type=click.Path(path_type=Path))
@_say_errors
def bench_table(folder: Path) -> None:
    """Print the means of a folder of records as a Markdown table."""
    from .bench import load_records, table

    click.echo(table(load_records(folder)))


@main.command()
@click.argument(
    "name",
    type=click.Choice(
        [
            "vae",
            "decoder",
            "clip",
            "unet",
            "reader",
            "segmenter",
            "inpainter",
            "instruct-pix2pix",
            "pixel",
            "export",
            "report",
        ],
    ),
)
@click.option("--run", "run_folder", type=click.Path(path_type=Path), default=Path("runs/pocket"), show_default=True)
@click.option(
    "--samples",
    type=click.IntRange(1),
    help="Training samples; the recipe's full length by default. For report, 256 by default: pictures that the "
    "autoencoder and attention are measured on; 4 times as many for the reader, 8 times for samples, a third for "
    "Prompt-to-Prompt (80 at most), a quarter for inversion.",
)
@click.option("--minutes", type=click.FloatRange(0, min_open=True), help="Train for this long instead.")
@click.option("--device", default="cpu", show_default=True)
@click.option("--threads", type=click.IntRange(1), help="CPU threads.")
@click.option("--compile", "compile_", is_flag=True, help="Compile the network (for a GPU).")
@click.option(
    "--workers", default=0, show_default=True, type=click.IntRange(0), help="Processes that draw scenes ahead."
)
@click.option(
    "--start",
    type=click.Path(path_type=Path),
    help="Go on from this: an exported model (vae, decoder, clip, unet; instruct-pix2pix and pixel begin there) or "
    "what the same recipe has written (the others). For report: the model to measure.",
)
@click.option("-o", "--output", type=click.Path(path_type=Path), help="For export and report: the folder to write.")
@_say_errors
def train(
    name: str,
    run_folder: Path,
    samples: int | None,
    minutes: float | None,
    device: str,
    threads: int | None,
    compile_: bool,
    workers: int,
    start: Path | None,
    output: Path | None,
) -> None:
    """Train a part of the pocket model (vae, clip, then unet; decoder; reader; resumable), export the parts, or report.

    export writes the parts of a run as one model folder; report measures a model against its bar.
    """
    if name == "export":
        from .training.export import export

        click.echo(f"Wrote {export(run_folder, output or run_folder / 'model')}")
        return
    if name == "report":
        from .model import load
        from .training.report import report

        if threads:
            import torch

            torch.set_num_threads(threads)
        model = load(start or "pocket", device=device)
        figures = report(model, output or run_folder / "report", **({} if samples is None else {"count": samples}))
        for figure in figures:
            verdict = "" if figure.bar is None else f"  {'met' if figure.met else 'missed'}: {figure.bar:g}"
            click.echo(f"{figure.what:60} {figure.value:10.4g}{verdict}")
        return
    from .training.loop import Plan
    from .training.recipes import RECIPES, run_recipe

    plan = Plan(run_folder, samples or RECIPES[name].samples, minutes, device, threads, compile_, workers=workers)
    if start is not None:
        from .training.start import adopt

        adopt(start, run_folder, name)
    click.echo(json.dumps(run_recipe(name, plan)))


@main.group()
def pocket() -> None:
    """Look at the pocket world."""


@pocket.command("export")
@click.argument("folder", type=click.Path(path_type=Path))
@_say_errors
def pocket_export(folder: Path) -> None:
    """Write the 700 tasks of PocketBench to FOLDER in PIE-Bench's layout, with the exact answers beside it."""
    from tqdm import tqdm

    from .data import export
    from .pocket import BenchTask, bench

    def tasks() -> Iterator[BenchTask]:
        yield from tqdm(bench(), unit="task")  # no bar before the first task is asked for: the folder was bad

    click.echo(f"{export(tasks(), folder)}: {len(bench())} tasks")


@pocket.command("sample")
@click.option("-n", "count", default=16, show_default=True, type=click.IntRange(1, 10_000))
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0))
@click.option("--size", default=64, show_default=True, type=click.IntRange(16, 2048))
@click.option("-o", "--output", type=click.Path(path_type=Path), default=Path("scenes"), show_default=True)
@_say_errors
def pocket_sample(count: int, seed: int, size: int, output: Path) -> None:
    """Draw scenes: one PNG each, and captions.txt."""
    from .images import save_image, writable_folder
    from .pocket import sample

    folder = writable_folder(output)
    lines = []
    for number in range(seed, seed + count):
        scene = sample(number)
        save_image(scene.image(size), folder / f"{number:06d}.png")
        lines.append(f"{number:06d}.png\t{scene.caption()}\n")
    (folder / "captions.txt").write_text("".join(lines), encoding="utf-8")
    click.echo(f"{folder}: {count} scenes")
