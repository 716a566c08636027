"""Running notebooks: parameters are checked, failures keep the stored outputs, staleness follows code and library."""

from __future__ import annotations

import json

import pytest

from editbook import notebooks
from editbook.errors import EditbookError


def cell(source, kind="code", tags=()):
    body = {
        "cell_type": kind,
        "id": f"c{abs(hash(source)) % 10**6}",
        "metadata": {"tags": list(tags)},
        "source": source,
    }
    return {**body, "execution_count": None, "outputs": []} if kind == "code" else body


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A checkout with one tiny notebook."""
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "src" / "editbook").mkdir(parents=True)
    (tmp_path / "src" / "editbook" / "library.py").write_text("x = 1\n")
    (tmp_path / "_toc.yml").write_text("format: jb-book\nroot: notebooks/a\n")
    write(tmp_path, [cell("n = 2  # int: how many", tags=["parameters"]), cell("print('n is', n)")])
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(root, cells, name="a.ipynb"):
    kernel = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    body = {"cells": cells, "metadata": kernel, "nbformat": 4, "nbformat_minor": 5}
    (root / "notebooks" / name).write_text(json.dumps(body))
    return root / "notebooks" / name


def text_of(path):
    return "".join(
        "".join(o.get("text", "")) for c in json.loads(path.read_text())["cells"] for o in c.get("outputs", [])
    )


def test_run_stores_outputs_and_records_the_run(checkout):
    path = checkout / "notebooks" / "a.ipynb"
    assert notebooks.run() == [path]
    assert text_of(path) == "n is 2\n"
    assert "papermill" not in path.read_text()
    assert notebooks.records(checkout)["notebooks/a.ipynb"]["versions"]["torch"]
    assert notebooks.run(changed=True) == []


def test_a_change_of_library_or_code_makes_it_stale(checkout):
    path = checkout / "notebooks" / "a.ipynb"
    notebooks.run()
    assert not notebooks.stale(checkout, path)
    (checkout / "src" / "editbook" / "library.py").write_text("x = 2\n")
    assert notebooks.stale(checkout, path)
    (checkout / "src" / "editbook" / "library.py").write_text("x = 1\n")
    assert not notebooks.stale(checkout, path)
    write(checkout, [cell("n = 3", tags=["parameters"])])
    assert notebooks.stale(checkout, path)


def test_only_the_methods_that_it_uses_make_it_stale(checkout):
    folder = checkout / "src" / "editbook" / "methods" / "branch"
    folder.mkdir(parents=True)
    bodies = {"used": "from ..branch.base_of_used import X\n", "base_of_used": "", "other": "", "prompt_to_prompt": ""}
    for name, body in bodies.items():
        (folder / f"{name}.py").write_text(body)
    path = write(checkout, [cell("edit(image, 'used')")])

    def counts(name):
        before = notebooks.fingerprint(checkout, path)
        (folder / f"{name}.py").write_text(bodies[name] + "# changed\n")
        after = notebooks.fingerprint(checkout, path)
        (folder / f"{name}.py").write_text(bodies[name])
        return before != after

    assert {name: counts(name) for name in bodies} == {
        "used": True,
        "base_of_used": True,
        "other": False,
        "prompt_to_prompt": True,
    }
    path = write(checkout, [cell("for name in REGISTRY: edit(image, name)")])
    assert counts("other")


def test_only_the_records_that_it_reads_make_it_stale(checkout):
    files = ("mine/a.jsonl", "mine/costs.json", "mine/a/picture.png", "other/a.jsonl")
    paths = {name: checkout / "src" / "editbook" / "records" / name for name in files}
    for file in paths.values():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("1")

    def counting(*codes):
        path = write(checkout, [cell(code) for code in codes])
        found = set()
        for name, file in paths.items():
            before = notebooks.fingerprint(checkout, path)
            file.write_text("2")
            if notebooks.fingerprint(checkout, path) != before:
                found.add(name)
            file.write_text("1")
        return found

    assert counting("print(1)", 'print("mine", "a")') == set()
    assert counting('load_records("mine")') == {"mine/a.jsonl"}
    assert counting('table(load_records("mine"), load_costs("mine"))') == {"mine/a.jsonl", "mine/costs.json"}
    assert counting('load_pictures("mine")["a"]') == {"mine/a/picture.png"}


def test_parameters_go_to_another_folder(checkout):
    path = checkout / "notebooks" / "a.ipynb"
    before = path.read_text()
    with pytest.raises(EditbookError, match="--output"):
        notebooks.run(parameters={"n": 5})
    notebooks.run(parameters={"n": 5}, output=checkout / "executed")
    assert text_of(checkout / "executed" / "notebooks" / "a.ipynb") == "n is 5\n"
    assert path.read_text() == before


def test_unknown_parameter_and_missing_cell_are_errors(checkout):
    with pytest.raises(EditbookError, match="Unknown parameter"):
        notebooks.run(parameters={"m": 5}, output=checkout / "executed")
    write(checkout, [cell("print(1)")])
    with pytest.raises(EditbookError, match="no cell tagged"):
        notebooks.run()


def test_a_failing_notebook_keeps_its_stored_outputs_and_the_others_run(checkout):
    path = write(checkout, [cell("n = 2", tags=["parameters"]), cell("raise RuntimeError('no luck')")])
    stored = json.loads(path.read_text())
    stored["cells"][1]["outputs"] = [{"output_type": "stream", "name": "stdout", "text": "from better days\n"}]
    path.write_text(json.dumps(stored))
    before = path.read_bytes()
    other = write(checkout, [cell("n = 2", tags=["parameters"]), cell("print('well')")], "b.ipynb")
    (checkout / "_toc.yml").write_text("root: notebooks/a\nchapters:\n- file: notebooks/b\n")
    with pytest.raises(EditbookError, match=r"a\.ipynb failed in cell 2: RuntimeError: no luck\."):
        notebooks.run(changed=True)
    assert path.read_bytes() == before
    assert notebooks.stale(checkout, path)
    assert text_of(other) == "well\n"
    assert not notebooks.stale(checkout, other)


def test_a_damaged_notebook_is_one_line(checkout):
    (checkout / "notebooks" / "a.ipynb").write_text('{"cells": [')
    with pytest.raises(EditbookError, match="cannot be read as a notebook"):
        notebooks.run()


def test_outside_a_checkout(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(EditbookError, match="clone"):
        notebooks.run()


def test_only_notebooks_of_the_checkout(checkout, tmp_path_factory):
    elsewhere = write_elsewhere = tmp_path_factory.mktemp("other") / "b.ipynb"
    write_elsewhere.write_text("{}")
    with pytest.raises(EditbookError, match="not in the checkout"):
        notebooks.run([elsewhere])
    with pytest.raises(EditbookError, match="not a notebook"):
        notebooks.run([checkout / "notebooks" / "none.ipynb"])
