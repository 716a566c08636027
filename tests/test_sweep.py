"""The sweep: resumable to the edit, honest about what it holds, and means that match their records."""

from __future__ import annotations

import json
import math
import statistics

import numpy as np
import pytest
from click.testing import CliRunner

import editbook
from editbook import bench as module
from editbook.bench import (
    SUITES,
    SURVEY_TYPES,
    Entry,
    drawn_tasks,
    load_pictures,
    load_records,
    measured_ticks,
    not_refused,
    suite,
    summary,
    sweep,
    table,
    texts_for,
    ticks_table,
)
from editbook.cli import main
from editbook.errors import EditbookError
from editbook.mask_bench import MASK_SUITE, MaskEntry, measure_mask, sweep_masks
from editbook.masks import FoundMask
from editbook.methods import REGISTRY
from editbook.pocket import TYPES, bench

QUICK = Entry("quick", "ddim-inversion", {"steps": 2, "guidance_scale": 2.0})


def test_tasks_are_drawn_evenly_from_every_type():
    names = drawn_tasks(10)
    assert len(set(names)) == 100
    for k, kind in enumerate(TYPES):
        assert set(names[k::10]) <= set(bench().of_type(kind).ids)
    assert drawn_tasks(3) == names[:30]
    with pytest.raises(EditbookError, match="ask for 1 to 140"):
        drawn_tasks(141)


def test_every_entry_of_every_comparison_can_be_made():
    for name, entries in SUITES.items():
        assert suite(name) is entries
        assert len({entry.name for entry in entries}) == len(entries)
        for entry in entries:
            REGISTRY[entry.method].configured(**entry.options)
    with pytest.raises(EditbookError, match="Did you mean 'inversions'"):
        suite("inversion")


@pytest.fixture(scope="module")
def swept(random_model, tmp_path_factory):
    folder, names = tmp_path_factory.mktemp("records"), drawn_tasks(1)[:4]
    return folder, names, sweep(random_model, QUICK, names, folder)


def test_records_hold_what_was_measured(swept):
    folder, names, records = swept
    assert [record["task"] for record in records] == names
    for record in records:
        assert record["nfe"] == 2 + 2 + 4
        assert record["gap"] > 0
        assert record["whole"] <= max(record["inside"], record["outside"] or 0)
        assert record["memory"] > 100
    assert load_records(folder) == {"quick": records}


def test_it_goes_on_where_it_was_stopped(swept, random_model, monkeypatch, tmp_path):
    folder, names, records = swept
    lines = (folder / "quick.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "quick.jsonl").write_text("".join(lines[:3]) + lines[3][:20])  # two edits and a torn third
    made = []
    real = module.edit
    monkeypatch.setattr(module, "edit", lambda *args, **kwargs: made.append(1) or real(*args, **kwargs))
    again = sweep(random_model, QUICK, names, tmp_path)
    assert len(made) == 2
    for one, other in zip(records, again, strict=True):
        assert {k: v for k, v in one.items() if k not in ("seconds", "memory")} == {
            k: v for k, v in other.items() if k not in ("seconds", "memory")
        }
    sweep(random_model, QUICK, names, tmp_path)
    assert len(made) == 2


def test_records_of_other_settings_and_damaged_ones_are_refused(swept, random_model, tmp_path):
    folder, names, _ = swept
    with pytest.raises(EditbookError, match="other settings"):
        sweep(random_model, Entry("quick", "ddim-inversion", {"steps": 3}), names, folder)
    lines = (folder / "quick.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "quick.jsonl").write_text(lines[0] + "nonsense\n" + lines[1])
    with pytest.raises(EditbookError, match="damaged"):
        load_records(tmp_path)
    with pytest.raises(EditbookError, match="no records"):
        load_records(tmp_path / "nowhere")


def test_means_leave_out_what_is_missing(swept):
    _, _, records = swept
    row = summary("quick", records)
    outside = [record["outside"] for record in records if record["outside"] is not None]
    assert row.outside == pytest.approx(statistics.fmean(outside))
    assert row.success <= min(row.changed, row.kept)
    blank = [{**record, "gap": None} for record in records]
    assert summary("quick", blank).gap is None
    with pytest.raises(EditbookError, match="no records"):
        summary("quick", [])
    printed = table({"quick": records, "blank": blank})
    assert printed.count("\n") == 3
    assert "–" in printed


def test_the_command_line(swept):
    folder, _, records = swept
    result = CliRunner().invoke(main, ["bench", "table", str(folder)])
    assert result.exit_code == 0
    assert result.output.strip() == table({"quick": records})
    for arguments, message in (
        (["run", "inversion"], "Did you mean 'inversions'"),
        (["run", "inversions", "--only", "pnp-invrsion"], "Did you mean 'pnp-inversion'"),
        (["table", "nowhere"], "no records"),
    ):
        result = CliRunner().invoke(main, ["bench", *arguments])
        assert result.exit_code == 2
        assert message in result.output
        assert json.dumps(result.output).count("\\n") == 1


def test_a_picture_of_every_type_is_kept(swept):
    folder, names, _ = swept
    kept = load_pictures(folder)
    assert set(kept) == {"quick"}
    assert set(kept["quick"]) == set(names)
    assert kept["quick"][names[0]].size == (64, 64)


def test_a_mask_is_the_tasks_own(random_model, tmp_path):
    name = drawn_tasks(1)[1]
    options = {"steps": 2, "guidance_scale": 2.0}
    sweep(random_model, Entry("masked", "ddim-inversion", options, mask=True), [name], tmp_path)
    task = bench().task(name)
    with_mask = editbook.edit(
        random_model,
        task.source_image,
        "ddim-inversion",
        source=task.source_prompt,
        target=task.target_prompt,
        mask=task.mask,
        **options,
    )
    assert load_pictures(tmp_path)["masked"][name].tobytes() == with_mask.image.tobytes()
    with pytest.raises(EditbookError, match="other settings"):
        sweep(random_model, Entry("masked", "ddim-inversion", options), [name], tmp_path)


def test_ticks_are_shares_of_the_types_that_a_column_means():
    records = [
        {"type": "change colour", "changed": True, "kept": True},
        {"type": "change material", "changed": True, "kept": False},
        {"type": "change pose", "changed": True, "kept": True},
        {"type": "change background", "changed": False, "kept": False},
    ]
    shares = measured_ticks(records)
    assert shares["texture"] == 0.5
    assert shares["non-rigid"] == 1
    assert math.isnan(shares["object removal"])
    assert {kind for kinds in SURVEY_TYPES.values() for kind in kinds} <= set(TYPES)
    columns = {column for method in REGISTRY.values() for column in method.card.edit_types}
    assert columns <= set(SURVEY_TYPES)


def test_the_table_of_ticks_has_the_printed_one_beside_the_share():
    records = [{"type": "change pose", "changed": True, "kept": True}, {"type": "change pose", "refused": "why"}]
    head, _, row = ticks_table({"mine": records}, [Entry("mine", "masactrl")]).splitlines()
    cells = dict(zip(head.split(" | "), row.split(" | "), strict=True))
    assert cells["non-rigid"] == "✓ 100%"
    assert cells["style"] == "· –"


def test_a_task_that_the_method_refuses_is_recorded_and_the_sweep_goes_on(random_model, monkeypatch, tmp_path):
    names = drawn_tasks(1)[:4]
    real, asked = module.edit, []

    def moody(*args, **kwargs):
        asked.append(1)
        if len(asked) == 2:
            raise EditbookError("not this one")
        return real(*args, **kwargs)

    monkeypatch.setattr(module, "edit", moody)
    records = sweep(random_model, QUICK, names, tmp_path)
    assert [record.get("refused") for record in records] == [None, "not this one", None, None]
    assert summary("quick", records).count == 3
    assert summary("quick", records).refused == 1
    assert "3 (1 refused)" in table({"quick": records})
    assert sweep(random_model, QUICK, names, tmp_path) == records
    assert len(asked) == 4
    measured_ticks(records)
    with pytest.raises(EditbookError, match="no records of edits"):
        summary("quick", records[1:2])


def test_a_wrong_option_is_no_refusal(random_model, tmp_path):
    with pytest.raises(EditbookError, match="steps"):
        sweep(random_model, Entry("quick", "ddim-inversion", {"step": 2}), drawn_tasks(1)[:1], tmp_path)
    assert not (tmp_path / "quick.jsonl").exists()


def test_masks_may_be_exact_or_named_for_each_task(random_model, tmp_path):
    tasks = [bench().task(name) for name in drawn_tasks(1)]
    worded = next(task for task in tasks if task.blended_words)
    assert Entry("a", "img2img").mask_for(worded) is None
    assert Entry("a", "img2img", mask=True).mask_for(worded) is worded.mask
    assert Entry("a", "img2img", mask="attention:{word}").mask_for(worded) == f"attention:{worded.blended_words[0]}"
    gone = next(task for task in tasks if task.edit_type == "remove object")
    assert Entry("a", "img2img", mask="segment:{word}").mask_for(gone).removeprefix("segment:") in gone.source_prompt
    wordless = next(task for task in tasks if task.edit_type == "change style")
    with pytest.raises(EditbookError, match="no word to look for"):
        Entry("a", "img2img", mask="attention:{word}").mask_for(wordless)


def test_masks_are_scored_against_the_exact_ones(random_model, tmp_path):
    names = drawn_tasks(1)
    entry = MaskEntry("attention", "attention:{word}", {"steps": 2})
    records = sweep_masks(random_model, entry, names, tmp_path)
    assert any("refused" in record for record in records)
    for record in not_refused(records):
        assert 0 <= record["iou"] <= 1
        assert record["best_iou"] > 0
        assert record["nfe"] == 2
    assert sweep_masks(random_model, entry, names, tmp_path) == records
    exact = bench().task(names[1]).mask
    assert measure_mask(FoundMask(exact, exact, "exact"), exact)["iou"] == 1
    empty = FoundMask(np.zeros_like(exact), np.zeros((16, 16), np.float32), "none")
    assert measure_mask(empty, exact) == {"iou": 0.0, "best_iou": 0.0, "area": 0.0}
    with pytest.raises(EditbookError, match="other settings"):
        sweep_masks(random_model, MaskEntry("attention", "diffedit"), names, tmp_path)
    assert len({entry.name for entry in MASK_SUITE}) == len(MASK_SUITE)


def test_a_method_is_told_what_it_asks_for():
    task = bench().task(drawn_tasks(1)[1])
    assert texts_for(REGISTRY["instructedit"](), task) == {"instruction": task.instruction}
    assert texts_for(REGISTRY["masactrl"](), task) == {"source": task.source_prompt, "target": task.target_prompt}
