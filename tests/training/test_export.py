"""Export and adopt: a complete folder or none, whose every byte is accounted for."""

from __future__ import annotations

import json
import shutil

import pytest

import editbook
from editbook.errors import EditbookError
from editbook.model import SHIPPED
from editbook.training import reader
from editbook.training.export import export
from editbook.training.loop import Plan
from editbook.training.recipes import run_recipe
from editbook.training.start import PARTS, adopt


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run whose parts are the shipped ones."""
    folder = tmp_path_factory.mktemp("run")
    adopt(SHIPPED / "pocket", folder)
    shutil.copytree(folder / "start", folder / "unet")
    return folder


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory):
    return export(run, tmp_path_factory.mktemp("exported") / "model")


def test_what_is_adopted_and_exported_is_the_same_model(exported):
    """Weights go through unchanged, so the sums of the weights are those of the shipped folder."""
    ours, shipped = ((folder / "SHA256SUMS").read_text().splitlines() for folder in (exported, SHIPPED / "pocket"))
    weights = [{line for line in lines if line.endswith(".safetensors")} for lines in (ours, shipped)]
    assert weights[0] == weights[1]
    assert len(weights[0]) == 4
    assert editbook.load(exported).image_size == 64


def test_one_changed_byte_is_noticed(exported, tmp_path):
    damaged = tmp_path / "damaged"
    shutil.copytree(exported, damaged)
    path = damaged / "unet" / "diffusion_pytorch_model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(EditbookError, match="unet"):
        editbook.load(damaged)


def test_an_unfinished_run_names_the_command_and_writes_nothing(run, tmp_path):
    part = tmp_path / "run"
    shutil.copytree(run, part)
    (part / "unet" / "config.json").unlink()
    with pytest.raises(EditbookError, match="editbook train unet"):
        export(part, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_something_else_is_not_overwritten(run, tmp_path):
    (tmp_path / "letter.txt").write_text("Dear diary")
    with pytest.raises(EditbookError, match="something else"):
        export(run, tmp_path)
    assert (tmp_path / "letter.txt").read_text() == "Dear diary"


def test_adopt_keeps_what_the_run_has(tmp_path):
    (tmp_path / "vae").mkdir()
    adopt(SHIPPED / "pocket", tmp_path)
    assert list((tmp_path / "vae").iterdir()) == []
    assert all((tmp_path / part).is_dir() for part in PARTS)
    assert json.loads((tmp_path / "clip" / "record.json").read_text())["samples"] > 0


def test_a_reader_goes_on_from_the_shipped_one(tmp_path, monkeypatch):
    adopt(SHIPPED / "reader", tmp_path)
    monkeypatch.setattr(reader, "LabelledStream", lambda seed, *_, **__: None)
    monkeypatch.setattr(reader, "train", lambda *_: {"samples": 64, "seconds": 1.0})
    monkeypatch.setattr(reader, "measure_reader", lambda _: {})
    before = json.loads((SHIPPED / "reader" / "record.json").read_text())
    record = reader.train_reader(Plan(tmp_path, samples=64))
    assert record["samples"] == before["samples"] + 64
    kept = (tmp_path / "reader" / "model.safetensors").read_bytes()
    assert kept == (SHIPPED / "reader" / "model.safetensors").read_bytes()


def test_adopt_and_recipes_refuse_what_they_do_not_know(tmp_path):
    with pytest.raises(EditbookError, match="neither an exported model nor"):
        adopt(tmp_path, tmp_path / "run")
    with pytest.raises(EditbookError, match="vae"):
        run_recipe("vea", None)
