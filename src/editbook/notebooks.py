"""Running the book's notebooks with papermill, checking them with nbval, and knowing which of them are stale.

An execution cache keyed on the notebook alone lies when the library changes. Here a notebook is stale when the hash of
its code, its parameters, the library's source or the shipped weights differs from the one recorded at its last run.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from .errors import EditbookError, unknown
from .images import save_json, writable_folder

PARAMETERS = ("model_name", "device", "steps", "seed")
"""What every notebook's parameters cell sets."""
PACKAGES = ("torch", "diffusers", "transformers", "numpy")


def repository() -> Path:
    """The checkout that this folder is in: notebooks and book are not part of the installed package."""
    for folder in (Path.cwd(), *Path.cwd().parents):
        if (folder / "_toc.yml").is_file() and (folder / "notebooks").is_dir():
            return folder
    raise EditbookError("There is no editbook checkout here (no _toc.yml and notebooks/); clone it and go there first.")


def all_notebooks(root: Path) -> list[Path]:
    """The book's notebooks in the order of its table of contents."""
    import yaml

    def files(node: Any) -> Iterable[str]:
        if isinstance(node, dict):
            if "file" in node:
                yield node["file"]
            for value in node.values():
                yield from files(value)
        elif isinstance(node, list):
            for value in node:
                yield from files(value)

    toc = yaml.safe_load((root / "_toc.yml").read_text(encoding="utf-8"))
    return [root / f"{name}.ipynb" for name in files(toc) if (root / f"{name}.ipynb").is_file()]


def _records_file(root: Path) -> Path:
    return root / "book" / "_data" / "status.json"


def records(root: Path) -> dict[str, dict[str, Any]]:
    """What the last run of every notebook was: hash, seconds, versions, model, by path."""
    path = _records_file(root)
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def fingerprint(root: Path, notebook: Path) -> str:
    """Hash of everything that a notebook's outputs depend on."""
    digest = hashlib.sha256()
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    for cell in cells:
        if cell["cell_type"] == "code" and "injected-parameters" not in cell["metadata"].get("tags", []):
            digest.update("".join(cell["source"]).encode() + b"\0")
    package = root / "src" / "editbook"
    apart = {"cli.py", "notebooks.py", "book.py", "training"}  # no notebook's output depends on these
    for path in sorted(package.rglob("*")):
        if path.suffix in (".py", ".csv", ".webp") and not apart & set(path.relative_to(package).parts[:1]):
            digest.update(path.relative_to(package).as_posix().encode() + path.read_bytes())
    weights = package / "weights" / "pocket" / "SHA256SUMS"
    if weights.is_file():
        digest.update(weights.read_bytes())
    return digest.hexdigest()[:16]


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


def _check_parameters(notebook: Path, parameters: dict[str, Any]) -> None:
    """Papermill only warns about a missing cell or an unknown name, and goes on: that would be a silent nothing."""
    import papermill

    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    if not any("parameters" in cell["metadata"].get("tags", []) for cell in cells):
        raise EditbookError(f"{notebook.name} has no cell tagged 'parameters'.")
    known = papermill.inspect_notebook(str(notebook))
    for name in parameters:
        if name not in known:
            raise unknown(f"parameter of {notebook.name}", name, known)


def run(
    paths: Sequence[Path] = (),
    parameters: dict[str, Any] | None = None,
    *,
    changed: bool = False,
    output: Path | None = None,
) -> list[Path]:
    """Execute notebooks and store their outputs.

    Args:
        paths: Notebooks; none means all of the book.
        parameters: Values for the parameters cell.
        changed: Only those that are stale.
        output: Write executed copies here and leave the stored ones alone; required with `parameters`.

    Returns:
        The notebooks that were executed.

    Raises:
        EditbookError: A notebook failed; its stored outputs stay as they were, and so do the later notebooks.
    """
    root, parameters = repository(), parameters or {}
    chosen = [path for path in _resolve(root, paths) if not changed or stale(root, path)]
    if parameters and output is None:
        raise EditbookError("With -p give --output: the stored notebooks keep the book's own parameters.")
    for path in chosen:
        _check_parameters(path, parameters)
    if output is not None:
        output = writable_folder(output).resolve()
    for number, path in enumerate(chosen, 1):
        name = path.relative_to(root).as_posix()
        print(f"[{number}/{len(chosen)}] {name}", file=sys.stderr, flush=True)
        seconds, executed = _execute(path, parameters)
        if output is not None:
            target = output / name
            writable_folder(target.parent)
            _replace(target, executed)
            continue
        _replace(path, executed)
        known = records(root)
        known[name] = {
            "fingerprint": fingerprint(root, path),
            "seconds": round(seconds, 1),
            "model": "pocket",
            "versions": {package: version(package).split("+")[0] for package in PACKAGES},
        }
        save_json({key: known[key] for key in sorted(known)}, _records_file(root))
    return chosen


def _execute(path: Path, parameters: dict[str, Any]) -> tuple[float, str]:
    """Run one notebook in its own folder; returns seconds and the executed notebook's text."""
    import papermill

    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / path.name
        start = time.perf_counter()
        try:
            papermill.execute_notebook(
                str(path), str(result), parameters, cwd=str(path.parent), kernel_name="python3", execution_timeout=1800
            )
        except papermill.PapermillExecutionError as error:
            reason = (str(error.evalue).splitlines() or [""])[0]
            raise EditbookError(
                f"{path.name} failed in cell {error.exec_count}: {error.ename}: {reason} The stored outputs are kept."
            ) from None
        return time.perf_counter() - start, _clean(result.read_text(encoding="utf-8"))


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
    return json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"


def _replace(target: Path, text: str) -> None:
    temporary = target.with_suffix(".ipynb.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, target)


def check(paths: Sequence[Path] = ()) -> int:
    """Execute notebooks anew and compare text outputs with the stored ones (nbval); returns pytest's exit code."""
    root = repository()
    chosen = [str(path) for path in _resolve(root, paths)]
    command = [sys.executable, "-m", "pytest", "--nbval", "--nbval-current-env", "-q", "-p", "no:cacheprovider"]
    command += ["-n", "2", "--dist", "loadfile", "--nbval-cell-timeout", "600"]
    command += ["--nbval-sanitize-with", str(root / "book" / "_data" / "nbval.cfg"), *chosen]
    environment = {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    return subprocess.run(command, cwd=root, env=environment, check=False).returncode
