"""The book as it lies here: complete notebooks, pictures with words for them, and pages that fetch nothing."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml

from editbook import notebooks

ROOT = Path(__file__).parents[2]
NOTEBOOKS = notebooks.all_notebooks(ROOT)
IDS = [path.relative_to(ROOT).as_posix() for path in NOTEBOOKS]


def cells(path):
    return json.loads(path.read_text(encoding="utf-8"))["cells"]


def code(path):
    return [cell for cell in cells(path) if cell["cell_type"] == "code"]


def test_table_of_contents_and_files_match():
    listed = set(re.findall(r"(?:file|root): (\S+)", (ROOT / "_toc.yml").read_text()))
    for name in listed:
        assert any((ROOT / f"{name}{suffix}").is_file() for suffix in (".md", ".ipynb")), name
    there = {path.relative_to(ROOT).with_suffix("").as_posix() for path in (ROOT / "notebooks").rglob("*.ipynb")}
    there |= {path.relative_to(ROOT).with_suffix("").as_posix() for path in (ROOT / "book").rglob("*.md")}
    assert listed == there


def test_there_are_notebooks():
    assert len(NOTEBOOKS) >= 5


@pytest.mark.parametrize("path", NOTEBOOKS, ids=IDS)
def test_every_code_cell_was_run_in_order(path):
    counts = [cell["execution_count"] for cell in code(path)]
    assert counts == list(range(1, len(counts) + 1))
    assert any(cell["outputs"] for cell in code(path))
    assert not any(output["output_type"] == "error" for cell in code(path) for output in cell["outputs"])


@pytest.mark.parametrize("path", NOTEBOOKS, ids=IDS)
def test_the_parameters_cell_is_complete(path):
    tagged = [cell for cell in code(path) if "parameters" in cell["metadata"].get("tags", [])]
    assert len(tagged) == 1
    source = "".join(tagged[0]["source"])
    for name in notebooks.PARAMETERS:
        assert re.search(rf"^{name} = \S+  # \w+: ", source, re.MULTILINE), f"{name}: value, type, help text"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=IDS)
def test_every_picture_has_alt_text_and_a_caption(path):
    for cell in code(path):
        if any("image/png" in output.get("data", {}) for output in cell["outputs"]):
            alt = cell["metadata"].get("mystnb", {}).get("image", {}).get("alt", "")
            assert len(alt.split()) >= 8, "".join(cell["source"])[:80]
            assert cell["metadata"]["mystnb"].get("figure", {}).get("caption"), "".join(cell["source"])[:80]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=IDS)
def test_no_output_needs_a_kernel_or_a_widget(path):
    for cell in code(path):
        for output in cell["outputs"]:
            assert not [kind for kind in output.get("data", {}) if "widget" in kind], "".join(cell["source"])[:80]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=IDS)
def test_notebooks_are_clean_and_small(path):
    text = path.read_text(encoding="utf-8")
    assert '"papermill"' not in text
    assert str(ROOT) not in text
    assert "Warning" not in text
    assert len(text) < 3_000_000


@pytest.mark.parametrize("path", NOTEBOOKS, ids=IDS)
def test_stored_outputs_are_of_this_library_and_these_weights(path):
    assert not notebooks.stale(ROOT, path), "run `editbook notebooks run --changed`"


def test_the_library_is_what_the_notebooks_install():
    assert yaml.safe_load((ROOT / "_config.yml").read_text())["repository"]["url"] in "".join(
        "".join(cell["source"]) for cell in cells(NOTEBOOKS[0])
    )


@pytest.fixture(scope="module")
def html(tmp_path_factory):
    """The built book, from a copy so that the checkout's own build is left alone."""
    root = tmp_path_factory.mktemp("book") / "checkout"
    root.mkdir()
    for name in ("_config.yml", "_toc.yml"):
        shutil.copy(ROOT / name, root)
    for name in ("book", "notebooks"):
        shutil.copytree(ROOT / name, root / name)
    command = [Path(sys.executable).with_name("jupyter-book"), "build", "-W", "--keep-going", root]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return root / "_build" / "html"


class Fetched(HTMLParser):
    """What a browser fetches by itself for a page: every src, and every link that is not only a relation."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []

    def handle_starttag(self, tag, attrs):
        values = {name: value or "" for name, value in attrs}
        self.addresses += [values[name] for name in ("src", "srcset", "poster", "data") if name in values]
        fetching = {"stylesheet", "preload", "modulepreload", "prefetch", "icon", "shortcut", "preconnect"}
        if tag == "link" and fetching & set(values.get("rel", "").split()):
            self.addresses.append(values.get("href", ""))


def test_no_page_fetches_anything_from_outside(html):
    pages = list(html.rglob("*.html"))
    assert len(pages) >= len(NOTEBOOKS) + 5
    for page in pages:
        fetched = Fetched()
        fetched.feed(page.read_text(encoding="utf-8"))
        assert fetched.addresses or page == html / "index.html"  # which only redirects
        assert not [address for address in fetched.addresses if re.match(r"(https?:)?//", address)], page.name


def test_every_picture_in_the_pages_has_alt_text(html):
    for page in html.rglob("*.html"):
        for image in re.findall(r"<img[^>]+>", page.read_text(encoding="utf-8")):
            alt = re.search(r'alt="([^"]*)"', image)
            assert alt, image
            assert not alt.group(1).endswith(".png"), image


def test_mathematics_needs_no_network(html):
    page = (html / "notebooks" / "foundations" / "diffusion.html").read_text(encoding="utf-8")
    assert "vendor/tex-svg.js" in page
    assert (html / "_static" / "vendor" / "tex-svg.js").is_file()


def test_tables_that_cells_make_are_tables_in_the_pages(html):
    made = 0
    for path in NOTEBOOKS:
        outputs = [output.get("data", {}) for cell in code(path) for output in cell["outputs"]]
        tables = [data for data in outputs if "| ---" in "".join(data.get("text/markdown", ""))]
        page = (html / path.relative_to(ROOT)).with_suffix(".html").read_text(encoding="utf-8")
        assert page.count("<table") >= len(tables), path.name
        made += len(tables)
    assert made
