"""The repository as a whole: versions agree, nothing of a private machine in it, weights within their limits."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

import editbook
from editbook.model import verify

ROOT = Path(__file__).parents[1]
WEIGHTS = ROOT / "src" / "editbook" / "weights" / "pocket"


def tracked():
    names = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [ROOT / name for name in names.splitlines()]


def test_versions_agree():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == editbook.__version__
    assert f"version: {editbook.__version__}" in (ROOT / "CITATION.cff").read_text()
    assert editbook.__version__ in (ROOT / "CHANGELOG.md").read_text()


def test_every_dependency_is_pinned():
    pins = {
        re.split(r"==", line)[0].lower().replace("_", "-") for line in (ROOT / "constraints.txt").read_text().split()
    }
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = project["dependencies"] + [name for extra in project["optional-dependencies"].values() for name in extra]
    for requirement in needed:
        name = re.split(r"[\[<>=]", requirement)[0].lower().replace("_", "-")
        assert name == "editbook" or name in pins, requirement


def test_no_path_of_a_machine_in_the_text():
    private = re.compile(r"(?<![\w.])/(?:work|root|home)/[a-z]")
    for path in tracked():
        if path.suffix in (".py", ".md", ".toml", ".yml", ".cfg", ".ipynb", ".json", ".txt", "") and path.is_file():
            if path == Path(__file__):
                continue
            assert not private.search(path.read_text(encoding="utf-8", errors="ignore")), path


def test_shipped_weights_are_whole_and_small():
    verify(WEIGHTS)
    sizes = {path: path.stat().st_size for path in WEIGHTS.rglob("*.safetensors")}
    assert len(sizes) == 4
    assert max(sizes.values()) < 16 * 2**20
    assert sum(path.stat().st_size for path in WEIGHTS.rglob("*") if path.is_file()) < 40e6


def test_every_shipped_file_has_its_sum():
    listed = {line.split(maxsplit=1)[1] for line in (WEIGHTS / "SHA256SUMS").read_text().splitlines()}
    there = {path.relative_to(WEIGHTS).as_posix() for path in WEIGHTS.rglob("*") if path.is_file()}
    assert there == listed | {"SHA256SUMS"}
