"""Running the book's notebooks with papermill, checking them with nbval, and knowing which of them are stale.

An execution cache keyed on the notebook alone lies when the library changes. Here a notebook is stale when the hash of
its code, its parameters, the library's source or the shipped weights differs from the one recorded at its last run.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

from .errors import EditbookError, unknown
from .files import save_json, writable_folder, write_file

PARAMETERS = ("model_name", "device", "steps", "seed")
"""What every notebook's parameters cell sets."""
PACKAGES = ("editbook", "torch", "diffusers", "transformers", "numpy")


def repository() -> Path:
    """The checkout that this folder is in: notebooks and book are not part of the installed package."""
    for folder in (Path.cwd(), *Path.cwd().parents):
        if (folder / "_toc.yml").is_file() and (folder / "notebooks").is_dir():
            return folder
    raise EditbookError("There is no editbook checkout here (no _toc.yml and notebooks/); clone it and go there first.")


def all_notebooks(root: Path) -> list[Path]:
    """The book's notebooks in the order of its table of contents."""
    yaml = _tool("yaml")

    def files(node: Any) -> Iterable[str]:
        if isinstance(node, dict):
            yield from (node[key] for key in ("root", "file") if key in node)
            for value in node.values():
                yield from files(value)
        elif isinstance(node, list):
            for value in node:
                yield from files(value)

    toc = yaml.safe_load((root / "_toc.yml").read_text(encoding="utf-8"))
    return [root / f"{name}.ipynb" for name in files(toc) if (root / f"{name}.ipynb").is_file()]


def _tool(name: str) -> ModuleType:
    """A package of the `book` extra, which the library itself does not need."""
    import importlib

    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        raise EditbookError(f"{name} is not installed: pip install 'editbook[book]'.") from None


def _cells(notebook: Path) -> list[dict[str, Any]]:
    try:
        cells: list[dict[str, Any]] = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EditbookError(f"{notebook} cannot be read as a notebook ({type(error).__name__}).") from None
    return cells


def title(notebook: Path) -> str:
    """The notebook's first heading, or its file's name where it has none."""
    for cell in _cells(notebook):
        if cell["cell_type"] == "markdown":
            for line in "".join(cell["source"]).splitlines():
                if line.startswith("# "):
                    return line[2:].strip()
    return notebook.stem


def _tags(cell: dict[str, Any]) -> list[str]:
    return cell.get("metadata", {}).get("tags", [])


def _records_file(root: Path) -> Path:
    return root / "book" / "_data" / "status.json"


def records(root: Path) -> dict[str, dict[str, Any]]:
    """What the last run of every notebook was: hash, seconds, versions, model, by path."""
    path = _records_file(root)
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def fingerprint(root: Path, notebook: Path) -> str:
    """Hash of everything that a notebook's outputs depend on."""
    digest = hashlib.sha256()
    code = "\0".join(
        "".join(cell["source"])
        for cell in _cells(notebook)
        if cell["cell_type"] == "code" and "injected-parameters" not in _tags(cell)
    )
    digest.update(code.encode() + b"\0")
    package = root / "src" / "editbook"
    for path in _library(package, code):
        digest.update(path.relative_to(package).as_posix().encode() + path.read_bytes())
    weights = package / "weights"
    for path in sorted([*weights.glob("*/SHA256SUMS"), *weights.glob("*/record.json")]):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


_APART = {"cli.py", "notebooks.py", "book.py", "training"}  # no notebook's output depends on these
_ANY_METHOD = re.compile(r"\b(REGISTRY|INVERSIONS|SUITES|editbook\.methods\b(?!\.)|import methods)")


def _library(package: Path, code: str) -> list[Path]:
    """The library's files that code depends on: all, but of the methods only those that it names, and theirs.

    A method is named by its module or its id; `edit` takes Prompt-to-Prompt where none is named. Code that speaks of
    the registry as a whole depends on every method.
    """
    readers = {".jsonl": "load_records", ".json": "load_costs", ".png": "load_pictures"}

    def matters(path: Path) -> bool:
        folder, *inner = path.relative_to(package).parts
        if folder == "records":  # only what the code reads, of the comparisons that it names
            return path.suffix in readers and readers[path.suffix] in code and f'"{inner[0]}"' in code
        return path.suffix in {".py", ".csv", ".webp"}

    files = [path for path in sorted(package.rglob("*")) if matters(path)]
    files = [path for path in files if path.relative_to(package).parts[0] not in _APART]
    methods = {
        path.stem: path
        for path in files
        if path.is_relative_to(package / "methods") and path.stem not in ("__init__", "base")
    }
    if _ANY_METHOD.search(code):
        return files
    used: set[str] = set()
    new = {name for name in methods if name in code or name.replace("_", "-") in code} | {"prompt_to_prompt"}
    while new:
        used |= new
        text = "\n".join(methods[name].read_text(encoding="utf-8") for name in new if name in methods)
        new = {name for name in methods if re.search(rf"^\s*from \S*\b{name} import", text, re.MULTILINE)} - used
    return [path for path in files if path not in methods.values() or path.stem in used]


def stale(root: Path, notebook: Path) -> bool:
    """Whether a notebook must be run again before its outputs can be believed."""
    record = records(root).get(notebook.relative_to(root).as_posix())
    return record is None or record["fingerprint"] != fingerprint(root, notebook)


def _resolve(root: Path, paths: Sequence[Path]) -> list[Path]:
    chosen = [path.resolve() for path in paths] or all_notebooks(root)
    for path in chosen:
        if path.suffix != ".ipynb" or not path.is_file():
            raise EditbookError(f"{path} is not a notebook.")
        if not path.is_relative_to(root):
            raise EditbookError(f"{path} is not in the checkout {root}.")
    return chosen


def _check_parameters(notebook: Path, parameters: dict[str, Any]) -> str:
    """Whether the notebook has all of `parameters`; returns the name of the model that it uses by itself.

    Papermill only warns about a missing cell or an unknown name, and goes on: that would be a silent nothing.
    """
    if not any("parameters" in _tags(cell) for cell in _cells(notebook)):
        raise EditbookError(f"{notebook.name} has no cell tagged 'parameters'.")
    known = _tool("papermill").inspect_notebook(str(notebook))
    for name in parameters:
        if name not in known:
            raise unknown(f"parameter of {notebook.name}", name, known)
    return str(known.get("model_name", {}).get("default", "none")).strip("\"'")


def run(
    paths: Sequence[Path] = (),
    parameters: dict[str, Any] | None = None,
    *,
    changed: bool = False,
    output: Path | None = None,
    jobs: int | None = None,
) -> list[Path]:
    """Execute notebooks and store their outputs.

    Args:
        paths: Notebooks; none means all of the book.
        parameters: Values for the parameters cell.
        changed: Only those that are stale.
        output: Write executed copies here and leave the stored ones alone; required with `parameters`.
        jobs: How many run at once, each in its own process; by default two, where there are two cores. One is wise
            with a large model.

    Returns:
        The notebooks that were executed.

    Raises:
        EditbookError: A notebook failed: its stored outputs stay as they were. The others are run all the same.
    """
    root, parameters = repository(), parameters or {}
    chosen = [path for path in _resolve(root, paths) if not changed or stale(root, path)]
    if parameters and output is None:
        raise EditbookError("With -p give --output: the stored notebooks keep the book's own parameters.")
    models = {path: _check_parameters(path, parameters) for path in chosen}
    before = {path: fingerprint(root, path) for path in chosen}  # the library may be edited while they run
    if output is not None:
        output = writable_folder(output).resolve()
    cores = os.cpu_count() or 1
    jobs = max(1, min(jobs or 2, cores, len(chosen)))
    # The small model gains more from two notebooks at once than from two threads in one, and outputs that are stored
    # come from the same number of threads as those that `check` compares them with.
    threads = 1 if output is None else max(1, cores // jobs)
    failures: list[str] = []
    for number, (path, seconds, result) in enumerate(_execute_all(chosen, parameters, jobs, threads), 1):
        name = path.relative_to(root).as_posix()
        outcome = "failed" if isinstance(result, EditbookError) else f"{seconds:.1f} s"
        print(f"[{number}/{len(chosen)}] {name}: {outcome}", file=sys.stderr, flush=True)
        if isinstance(result, EditbookError):
            failures.append(str(result))
        elif output is not None:
            writable_folder((output / name).parent)
            write_file(output / name, result.encode())
        else:
            write_file(path, result.encode())
            known = records(root)
            known[name] = {
                "fingerprint": before[path],
                "seconds": round(seconds, 1),
                "model": models[path],
                "versions": {package: version(package).split("+")[0] for package in PACKAGES},
            }
            writable_folder(_records_file(root).parent)
            save_json({key: known[key] for key in sorted(known)}, _records_file(root))
    if failures:
        raise EditbookError(" ".join([*failures, "Stored outputs of a failed notebook are kept."]))
    return chosen


def _execute_all(
    paths: Sequence[Path], parameters: dict[str, Any], jobs: int, threads: int
) -> Iterator[tuple[Path, float, str | EditbookError]]:
    """Run notebooks, `jobs` at once, and give each as it ends: path, seconds, and its text or what went wrong.

    Processes, because papermill changes the folder of the whole process that it runs in.
    """
    if not paths:
        return
    _tool("papermill")
    context = multiprocessing.get_context("spawn")
    lines = context.Queue()  # of the screen, one for the progress bar of each process
    for line in range(jobs):
        lines.put(line)
    pool = ProcessPoolExecutor(jobs, context, _start_worker, (lines, context.RLock(), threads))
    try:
        running = {pool.submit(_execute, path, parameters): path for path in paths}
        for done in as_completed(running):
            seconds, result, error = done.result()
            yield running[done], seconds, result if error is None else EditbookError(error)
    finally:
        pool.shutdown(cancel_futures=True)


_line = 0


def _start_worker(lines: Any, lock: Any, threads: int) -> None:
    global _line
    from tqdm import tqdm

    tqdm.set_lock(lock)
    _line = lines.get()
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    os.environ.update(_QUIET)


# A bar of the loading of weights would be stored, at 0 %, on the notebook's page.
_QUIET = {"HF_HUB_DISABLE_PROGRESS_BARS": "1"}


def _execute(path: Path, parameters: dict[str, Any]) -> tuple[float, str, str | None]:
    """Run one notebook in its own folder; returns seconds, the executed notebook's text, and the error if it failed."""
    import nbclient
    import papermill

    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / path.name
        try:
            papermill.execute_notebook(
                str(path),
                str(result),
                parameters,
                cwd=str(path.parent),
                kernel_name="python3",
                execution_timeout=1800,
                coalesce_streams=True,
                progress_bar={"desc": path.stem, "position": _line, "leave": False},
            )
            return time.perf_counter() - start, _clean(result.read_text(encoding="utf-8")), None
        except papermill.PapermillExecutionError as error:
            print(str(error), file=sys.stderr)  # the cell and its traceback: what one needs to mend it
            reason = f"{error.ename}: {(str(error.evalue).splitlines() or [''])[0]}".rstrip(". ")
            failure = f"{path.name} failed in cell {error.exec_count}: {reason}."
        except (nbclient.exceptions.CellTimeoutError, nbclient.exceptions.DeadKernelError) as error:
            reason = str(error).splitlines()[0].rstrip(". ")
            failure = f"{path.name} failed: {type(error).__name__}: {reason}."
    return time.perf_counter() - start, "", failure


def _clean(text: str) -> str:
    """Drop what papermill adds and what differs between two equal runs."""
    notebook = json.loads(text)
    notebook["metadata"] = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    for cell in notebook["cells"]:
        for key in ("papermill", "execution"):
            cell["metadata"].pop(key, None)
        if "injected-parameters" in _tags(cell):
            cell["id"] = "injected-parameters"  # papermill draws a new one every time
    return json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"


def check(paths: Sequence[Path] = ()) -> int:
    """Execute notebooks anew and compare text outputs with the stored ones (nbval); returns pytest's exit code."""
    root = repository()
    chosen = [str(path) for path in _resolve(root, paths)]
    command = [sys.executable, "-m", "pytest", "--nbval", "--nbval-current-env", "-q", "-p", "no:cacheprovider"]
    command += ["-n", "2", "--dist", "loadfile", "--nbval-cell-timeout", "600"]
    command += ["--nbval-sanitize-with", str(root / "book" / "_data" / "nbval.cfg"), *chosen]
    environment = {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"), **_QUIET}
    return subprocess.run(command, cwd=root, env=environment, check=False).returncode
