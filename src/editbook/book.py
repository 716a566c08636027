"""Building the book: run what changed, write the status page, let Jupyter Book make the HTML."""

from __future__ import annotations

import functools
import subprocess
import sys
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from .errors import EditbookError
from .notebooks import all_notebooks, records, repository, run, stale, title


def build(*, execute: bool = True) -> Path:
    """Execute stale notebooks, then build the HTML; any warning of the builder is an error.

    Returns:
        The page to open.
    """
    root = repository()
    if execute:
        run(changed=True)
    write_status(root)
    card = root / "src" / "editbook" / "weights" / "pocket" / "MODEL_CARD.md"
    if not card.is_file():
        raise EditbookError(f"{card.relative_to(root)} is missing: the shipped weights are not whole; clone again.")
    _write_if_new(root / "book" / "model_card.md", card.read_text(encoding="utf-8"))
    jupyter_book = Path(sys.executable).with_name("jupyter-book")
    if not jupyter_book.exists():
        raise EditbookError("Jupyter Book is not installed: pip install 'editbook[book]'.")
    command = [str(jupyter_book), "build", "-W", "--keep-going", str(root)]
    if subprocess.run(command, check=False).returncode:
        raise EditbookError("Jupyter Book reported errors or warnings; see above.")
    return root / "_build" / "html" / "index.html"


def write_status(root: Path) -> None:
    """The status page: what each notebook's last run took and used, and whether anything has changed since."""
    known = records(root)
    lines = [
        "# Status",
        "",
        "Every notebook's outputs are stored, and this is where they come from. *Pass* means that the notebook ran",
        "without an error, and that its code, the library's source and the shipped weights are those of that run.",
        "`editbook notebooks check` runs all of them again and compares the outputs.",
        "",
        "| notebook | seconds | model | pass |",
        "| --- | ---: | --- | --- |",
    ]
    total, environments = 0.0, dict[str, list[str]]()
    for path in all_notebooks(root):
        name = path.relative_to(root).as_posix()
        link = f"[{title(path)}](../{name})"
        record = known.get(name)
        if record is None:
            lines.append(f"| {link} | - | - | never run |")
            continue
        total += record["seconds"]
        versions = ", ".join(f"{package} {number}" for package, number in record["versions"].items())
        environments.setdefault(versions, []).append(link)
        outcome = "changed since" if stale(root, path) else "yes"
        lines.append(f"| {link} | {record['seconds']} | {record['model']} | {outcome} |")
    lines += ["", f"Together {total:.0f} s, each in one thread; `make book` runs two at a time."]
    for versions, links in environments.items():
        which = "All" if len(environments) == 1 else ", ".join(links)
        lines += ["", f"{which}: {versions}."]
    _write_if_new(root / "book" / "status.md", "\n".join([*lines, ""]))


def _write_if_new(path: Path, text: str) -> None:
    """Leave an unchanged page's time stamp alone, so that Sphinx does not read it again."""
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")


def serve(port: int = 8000) -> None:
    """Serve the built book on this machine only, until interrupted."""
    folder = repository() / "_build" / "html"
    if not (folder / "index.html").is_file():
        raise EditbookError("The book is not built yet: run `editbook book build`.")
    handler = functools.partial(SimpleHTTPRequestHandler, directory=str(folder))
    try:
        server = ThreadingHTTPServer(("127.0.0.1", port), handler)
    except OSError as error:
        raise EditbookError(f"Port {port} cannot be used: {error.strerror}. Choose another with --port.") from None
    print(f"http://127.0.0.1:{server.server_port}/  (stop with Ctrl-C)")
    with server:
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print()
