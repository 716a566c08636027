"""The recipe of the pocket InstructPix2Pix."""

from __future__ import annotations

import json

import pytest
import torch

import editbook
from editbook.errors import EditbookError
from editbook.model import SHIPPED
from editbook.pocket import sample_edit
from editbook.training import instruct
from editbook.training.instruct import (
    PHRASINGS,
    InstructStream,
    draw_drops,
    follow_instructions,
    held_out_loss,
)
from editbook.training.loop import Plan
from editbook.training.recipes import run_recipe
from editbook.training.start import adopt


def test_conditions_are_dropped_five_percent_each():
    torch.manual_seed(0)
    no_text, no_picture = draw_drops(200_000)
    shares = {
        "text": no_text & ~no_picture,
        "both": no_text & no_picture,
        "picture": no_picture & ~no_text,
    }
    for share in shares.values():
        assert float(share.float().mean()) == pytest.approx(0.05, abs=0.003)
    assert float(no_text.float().mean()) == pytest.approx(0.10, abs=0.003)


def test_the_last_phrasing_is_kept_for_tests():
    stream = InstructStream(1, 4, size=16, pool=40)
    said = set(stream.captions(torch.arange(40)))
    assert said == {sample_edit(1_000_000_000 + k, PHRASINGS)[2] for k in range(40)}
    assert not any(text.startswith(("take the", "shift the", "give the", "let it be")) for text in said)
    rest = {sample_edit(k)[2] for k in range(200)}
    assert any(text.startswith("take the") for text in rest)
    with_all, with_two = sample_edit(5), sample_edit(5, PHRASINGS)
    assert with_all[:2] == with_two[:2]  # only the words differ


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of four steps from the shipped model."""
    folder = tmp_path_factory.mktemp("run")
    adopt(SHIPPED / "pocket", folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "editbook.training.instruct.InstructStream", lambda seed, n, **_: InstructStream(seed, n, pool=64)
        )
        patch.setattr(
            "editbook.training.instruct.follow_instructions", lambda _, tasks, **__: [t.source_image for t in tasks]
        )
        patch.setattr("editbook.training.instruct.measure_instruct", lambda *_: {})
        patch.setattr("editbook.training.instruct.bench", lambda: list(editbook.pocket.bench())[:77])
        run_recipe("instruct-pix2pix", Plan(folder, samples=64))
    return folder


def test_what_is_saved_loads_and_is_what_was_trained(run, pocket_model):
    folder = run / "instruct-pix2pix"
    assert json.loads((folder / "delta.json").read_text())["in_channels"] == 8
    model = editbook.load(folder)
    assert model.takes_image
    assert model.folder == pocket_model.folder
    assert model.clip is not None
    assert (folder / "delta.safetensors").stat().st_size < 1.02 * instruct.SIZE
    record = json.loads((folder / "record.json").read_text())
    assert record["samples"] == 64
    tasks = list(editbook.pocket.bench())[:77:7]
    assert held_out_loss(model, tasks) == pytest.approx(record["held_out_loss"]["delta"], abs=2e-4)
    assert record["held_out_loss"]["delta"] == pytest.approx(record["held_out_loss"]["whole"], rel=0.01)


def test_a_damaged_delta_is_noticed(run, tmp_path):
    import shutil

    shutil.copytree(run / "instruct-pix2pix", tmp_path / "copy")
    (tmp_path / "copy" / "delta.json").write_text("{}")
    with pytest.raises(EditbookError, match=r"delta\.json"):
        editbook.load(tmp_path / "copy")


def test_a_run_goes_on_from_a_delta(run, tmp_path):
    adopt(run / "instruct-pix2pix", tmp_path)
    assert (tmp_path / "start" / "config.json").is_file()
    assert (tmp_path / "instruct_start" / "delta.safetensors").is_file()


def test_without_a_model_to_begin_with_the_command_is_named(tmp_path):
    with pytest.raises(EditbookError, match="--start MODEL"):
        run_recipe("instruct-pix2pix", Plan(tmp_path, samples=16))


def test_the_shipped_weights_expect_an_unscaled_condition(pocket_instruct):
    """And they were trained: better than with the scaled latent, and than with the picture of another task."""
    tasks = list(editbook.pocket.bench())[3:600:15]
    right = held_out_loss(pocket_instruct, tasks)
    assert right < held_out_loss(pocket_instruct, tasks, scaled=True)
    assert right < 0.15


def test_the_shipped_model_uses_the_picture_and_the_instruction(pocket_instruct):
    """Results are nearer to their own truth than to that of another task."""
    tasks = list(editbook.pocket.bench().of_type("change colour"))[:4]
    made = follow_instructions(pocket_instruct, tasks, steps=12)

    def error(picture, truth):
        a, b = (torch.tensor(list(x.getdata()), dtype=torch.float32) for x in (picture, truth))
        return float((a - b).square().mean())

    for k, picture in enumerate(made):
        assert error(picture, tasks[k].truth) < error(picture, tasks[k - 1].truth)
