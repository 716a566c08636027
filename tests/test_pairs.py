"""Every inversion under every editor: all pairs are tried, refusals kept, and the sweep goes on where it stopped."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from editbook.bench import Entry, drawn_tasks
from editbook.cli import main
from editbook.errors import EditbookError
from editbook.inversion import INVERSIONS
from editbook.methods import REGISTRY
from editbook.methods.base import InvertingMethod
from editbook.pairs import FEW_UPDATES, PAIR_EDITORS, PAIR_TASK, sweep_pairs
from editbook.records import load_pictures, load_records

QUICK = Entry("quick", "disentanglement-diffusion", {"steps": 2, "guidance_scale": 2.0, "epochs": 0})


@pytest.fixture(scope="module")
def swept(random_model, tmp_path_factory):
    folder, names = tmp_path_factory.mktemp("pairs"), drawn_tasks(1)[1:3]
    return folder, names, sweep_pairs(random_model, QUICK, names, folder)


def test_every_pair_has_a_record_and_what_cannot_work_says_why(swept):
    folder, names, records = swept
    pairs = [f"{name} {inversion}" for name in names for inversion in INVERSIONS]
    assert [record["task"] for record in records] == pairs
    refused = {record["inversion"] for record in records if "refused" in record}
    assert refused == {"direct-inversion"}
    assert load_records(folder) == {"quick": records}
    assert set(load_pictures(folder)["quick"]) == set(INVERSIONS) - refused


def test_it_goes_on_where_it_was_stopped(swept, random_model, tmp_path):
    folder, names, records = swept
    lines = (folder / "quick.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "quick.jsonl").write_text("".join(lines[:-2]))
    left = []

    def watched(pairs):
        left.extend(pairs)
        return iter(pairs)

    again = sweep_pairs(random_model, QUICK, names, tmp_path, progress=watched)
    assert [" ".join(pair) for pair in left] == [record["task"] for record in records[-2:]]
    assert [record["nfe"] for record in again if "nfe" in record] == [r["nfe"] for r in records if "nfe" in r]
    other = Entry("quick", QUICK.method, {**QUICK.options, "steps": 3})
    with pytest.raises(EditbookError, match="other settings"):
        sweep_pairs(random_model, other, names, folder)


def test_editors_take_any_inversion_and_settings_are_options_that_exist():
    assert set(FEW_UPDATES) <= set(INVERSIONS)
    for entry in PAIR_EDITORS.values():
        assert issubclass(REGISTRY[entry.method], InvertingMethod)
        for inversion in set(INVERSIONS) - {"direct-inversion"}:
            options = {**entry.options, "inversion": inversion, **FEW_UPDATES.get(inversion, {})}
            assert REGISTRY[entry.method].configured(**options).inversion == inversion
        json.dumps(dict(entry.options))


def test_the_book_s_table_is_of_its_task_and_another_one_has_to_exist(tmp_path):
    for editor, found in load_records("pairs").items():
        assert editor in PAIR_EDITORS
        assert [record["task"] for record in found] == [f"{PAIR_TASK} {record['inversion']}" for record in found]
        assert {record["inversion"] for record in found} == set(INVERSIONS)
    command = ["bench", "pairs", "--only", "no control", "--task", "nowhere", "-o", str(tmp_path)]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 2
    assert "'nowhere'" in result.output
