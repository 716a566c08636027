"""What an edit costs: measured in a process of its own, kept beside the records, and shown in their place."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from editbook.bench import Cost, Entry, drawn_tasks, load_costs, table
from editbook.cli import main
from editbook.costs import measure_cost
from editbook.errors import EditbookError
from editbook.pocket import bench
from editbook.records import save_costs

QUICK = Entry("quick", "ddim-inversion", {"steps": 2, "guidance_scale": 2.0})


@pytest.fixture(scope="module")
def measured():
    return measure_cost(QUICK, drawn_tasks(1)[:2])


def test_a_fresh_process_makes_the_edits(measured):
    ballast = bytearray(2**31)  # of this process, so none of the other's
    again = measure_cost(QUICK, drawn_tasks(1)[:1])
    assert (measured.edits, again.edits) == (2, 1)
    assert measured.seconds > 0
    assert again.memory < len(ballast) / 2**20


def test_tasks_that_are_refused_do_not_count():
    tasks = [bench().task(name) for name in drawn_tasks(1)]
    wordless = next(task for task in tasks if task.edit_type == "change style").id
    worded = next(task for task in tasks if task.blended_words).id
    picky = Entry("picky", "img2img", {"steps": 2}, mask="segment:{word}")
    assert measure_cost(picky, [wordless, worded]).edits == 1
    with pytest.raises(EditbookError, match=r"picky made no edit of these 1 tasks: .*no word to look for"):
        measure_cost(picky, [wordless])


def test_costs_are_kept_beside_the_records_of_other_entries(measured, tmp_path):
    save_costs(tmp_path / "new", {"quick": measured, "other": Cost(1.0, 500, 3)})
    save_costs(tmp_path / "new", {"other": Cost(2.0, 600, 1)})
    assert load_costs(tmp_path / "new") == {"quick": measured, "other": Cost(2.0, 600, 1)}
    with pytest.raises(EditbookError, match="holds no costs"):
        load_costs(tmp_path)
    (tmp_path / "costs.json").write_text('{"quick": {"second": 1}}')
    with pytest.raises(EditbookError, match="is damaged"):
        load_costs(tmp_path)


def test_a_table_shows_them_in_place_of_the_records_own():
    record = {"changed": True, "kept": True, "nfe": 8, "seconds": 77.7, "memory": 999, "type": "random"}
    record |= dict.fromkeys(("reconstruction", "outside", "inside", "gap"))
    records = {"quick": [record], "other": [record]}
    assert table(records).count("| 77.7 | 999 |") == 2
    shown = {line.split(" | ")[0]: line for line in table(records, {"quick": Cost(1.25, 500, 3)}).splitlines()}
    assert shown["| quick"].endswith("| 1.2 | 500 |")
    assert shown["| other"].endswith("| – | – |")


def test_the_command_line(tmp_path):
    command = ["bench", "time", "mask-methods", "--only", "img2img", "--tasks", "1", "-o", str(tmp_path)]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 0, result.output
    assert set(json.loads((tmp_path / "costs.json").read_text())) == {"img2img"}
    assert load_costs(tmp_path)["img2img"].edits == 1
    result = CliRunner().invoke(main, [*command[:4], "img2im", *command[5:]])
    assert result.exit_code == 2
    assert "Did you mean 'img2img'" in result.output
