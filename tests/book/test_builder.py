"""Building and serving: the status page says what is stale, and what cannot be built or served says why."""

from __future__ import annotations

import json
import socket

import pytest

from editbook import book, notebooks
from editbook.errors import EditbookError


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A checkout with two notebooks, of which one has a record that is up to date."""
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "book" / "_data").mkdir(parents=True)
    (tmp_path / "src" / "editbook").mkdir(parents=True)
    (tmp_path / "_toc.yml").write_text("root: notebooks/fresh\nchapters:\n- file: notebooks/never\n")
    for name in ("fresh", "never"):
        heading = {"cell_type": "markdown", "metadata": {}, "source": [f"# A {name} one\n", "\n", "Text."]}
        (tmp_path / "notebooks" / f"{name}.ipynb").write_text(json.dumps({"cells": [heading]}))
    path = tmp_path / "notebooks" / "fresh.ipynb"
    record = {"seconds": 4.2, "model": "pocket", "versions": {"torch": "2.13.0"}}
    record["fingerprint"] = notebooks.fingerprint(tmp_path, path)
    (tmp_path / "book" / "_data" / "status.json").write_text(json.dumps({"notebooks/fresh.ipynb": record}))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def rows(root):
    book.write_status(root)
    lines = (root / "book" / "status.md").read_text().splitlines()
    return [line for line in lines if ".ipynb" in line]


def test_the_status_page_has_a_row_for_every_notebook(checkout):
    fresh, never = rows(checkout)
    assert fresh == "| [A fresh one](../notebooks/fresh.ipynb) | 4.2 | pocket | yes |"
    assert never.endswith("| never run |")
    assert "All: torch 2.13.0." in (checkout / "book" / "status.md").read_text()


def test_the_status_page_says_when_the_library_has_changed(checkout):
    (checkout / "src" / "editbook" / "model.py").write_text("x = 1")
    assert rows(checkout)[0].endswith("| changed since |")


def test_an_unchanged_status_page_is_not_written_again(checkout):
    rows(checkout)
    before = (checkout / "book" / "status.md").stat().st_mtime_ns
    rows(checkout)
    assert (checkout / "book" / "status.md").stat().st_mtime_ns == before


def test_building_without_weights_says_so(checkout):
    with pytest.raises(EditbookError, match="MODEL_CARD"):
        book.build(execute=False)


def test_serving_needs_a_built_book_and_a_free_port(checkout):
    with pytest.raises(EditbookError, match="editbook book build"):
        book.serve()
    (checkout / "_build" / "html").mkdir(parents=True)
    (checkout / "_build" / "html" / "index.html").write_text("<p>here</p>")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(EditbookError, match="--port"):
            book.serve(taken.getsockname()[1])
