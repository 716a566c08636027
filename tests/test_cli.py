"""The command line: quick help, one-line errors with exit code 2, and a whole edit from file to folder."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from editbook import pocket
from editbook.cli import _values, main


def invoke(*arguments: object):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "cat.png"
    pocket.task("cat-to-fox").source_image.save(path)
    return path


def test_help_imports_nothing_heavy():
    code = (
        "import sys; sys.argv = ['editbook', '--help']\n"
        "import editbook.cli\n"
        "try: editbook.cli.main()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'numpy', 'PIL', 'diffusers', 'transformers', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for command in ("edit", "methods", "book", "notebooks", "train", "pocket"):
        assert command in done.stdout


def test_every_command_has_help():
    for command in ("edit", "methods", "book build", "book serve", "notebooks run", "notebooks check", "train"):
        result = invoke(*command.split(), "--help")
        assert result.exit_code == 0
        assert len(result.output) > 80


def test_methods_lists_the_registry():
    from editbook import methods

    output = invoke("methods").output
    for name, method in methods.REGISTRY.items():
        assert name in output
        assert method.card.title in output


def test_edit_writes_result_and_settings(pocket_model, photo, tmp_path):
    out = tmp_path / "out"
    prompts = ["--source", "a photo of a cat in the meadow", "--target", "a photo of a fox in the meadow"]
    result = invoke("edit", photo, *prompts, "-O", "steps=4", "-O", 'blend=["cat", "fox"]', "-o", out)
    assert result.exit_code == 0, result.output
    assert Image.open(out / "edited.png").size == (64, 64)
    assert {"edited.png", "source.png", "reconstruction.png", "mask.png"} <= {path.name for path in out.iterdir()}
    settings = json.loads((out / "settings.json").read_text())
    assert settings["method"] == "prompt-to-prompt"
    assert settings["options"]["steps"] == 4
    assert settings["nfe"] == 4 * 4


def test_edit_with_a_mask_file_keeps_the_rest(pocket_model, photo, tmp_path):
    mask = np.zeros((64, 64), np.uint8)
    mask[:, :32] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    for side, target in (("whole", []), ("left", ["--mask", tmp_path / "mask.png"])):
        options = ["--method", "img2img", "-O", "steps=6", "-O", "strength=1.0", "-o", tmp_path / side]
        result = invoke(
            "edit", photo, "--source", "a cat", "--target", "a photo of a red bus at night", *options, *target
        )
        assert result.exit_code == 0, result.output

    def change(side):
        edited, kept = (
            np.asarray(Image.open(tmp_path / side / name), float) for name in ("edited.png", "reconstruction.png")
        )
        return np.abs(edited - kept)[:, 40:].mean()

    assert change("left") < 0.3 * change("whole")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["edit", "nowhere.png", "--source", "a", "--target", "b"], "does not exist"),
        (["edit", "PHOTO", "--source", "a", "--target", "b", "--method", "prompt-to-promt"], "'prompt-to-prompt'"),
        (["edit", "PHOTO", "--source", "a", "--target", "b", "-O", "step=3"], "'steps'"),
        (["edit", "PHOTO", "--source", "a", "--target", "b", "-O", "steps"], "NAME=VALUE"),
        (["edit", "PHOTO", "--source", "a cat", "--target", "a fox", "-O", "blend=dog"], "dog"),
        (["edit", "PHOTO", "--source", "a", "--target", "b", "--dtype", "float8"], "Did you mean 'float"),
        (["edit", "PHOTO", "--source", "a", "--target", "b", "--model", "no-such-folder/model"], "no-such-folder"),
        (["edit", "PHOTO", "--source", "a", "--target", "cat " * 60], "limit is 40"),
        (["edit", "PHOTO", "--source", "a", "--target", "b", "-o", "PHOTO"], "Cannot write"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(pocket_model, photo, arguments, says, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    result = invoke(*[photo if argument == "PHOTO" else argument for argument in arguments])
    assert result.exit_code == 2
    lines = [line for line in result.output.strip().splitlines() if line.startswith("editbook:")]
    assert len(lines) == 1
    assert says in lines[0]
    assert "Traceback" not in result.output


def test_a_text_file_is_not_a_picture(tmp_path):
    path = tmp_path / "notes.png"
    path.write_text("not a picture")
    result = invoke("edit", path, "--source", "a", "--target", "b")
    assert result.exit_code == 2
    assert "notes.png" in result.output


def test_pocket_sample_is_deterministic(tmp_path):
    for name in ("a", "b"):
        assert invoke("pocket", "sample", "-n", 3, "--seed", 5, "-o", tmp_path / name).exit_code == 0
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()
    assert len((tmp_path / "a" / "captions.txt").read_text().splitlines()) == 3


def test_export_of_nothing_says_what_to_train(tmp_path):
    result = invoke("train", "export", "--run", tmp_path)
    assert result.exit_code == 2
    assert "editbook train vae" in result.output


def test_an_export_that_fails_at_once_is_one_line_without_a_bar(tmp_path):
    (tmp_path / "file").write_text("")
    for folder, says in ((tmp_path / "file" / "bench", "Cannot make the folder"), (tmp_path, "is not empty")):
        result = invoke("pocket", "export", folder)
        assert result.exit_code == 2
        (line,) = result.output.splitlines()
        assert line.startswith("editbook: ")
        assert says in line
        assert repr(str(folder)) in line


def test_option_values_are_literals_where_they_can_be():
    pairs = ("a=3", "b=0.5", "c=true", "d=True", 'e=["cat", "fox"]', "f=('cat', 'fox')", "g=cat", "h=None", "i=a=b")
    expected = [3, 0.5, True, True, ["cat", "fox"], ("cat", "fox"), "cat", None, "a=b"]
    assert _values(pairs) == dict(zip("abcdefghi", expected, strict=True))


def test_steps_is_an_option_of_every_method(pocket_model, photo, tmp_path):
    prompts = ["--source", "a photo of a cat", "--target", "a photo of a fox"]
    result = invoke("edit", photo, *prompts, "--method", "ddim-inversion", "--steps", 3, "-o", tmp_path)
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "settings.json").read_text())["options"]["steps"] == 3


def test_an_interrupt_ends_with_130_and_no_traceback(monkeypatch):
    def interrupted(**_: object):
        raise KeyboardInterrupt

    monkeypatch.setattr("editbook.book.build", interrupted)
    result = invoke("book", "build")
    assert result.exit_code == 130
    assert "Traceback" not in result.output


def test_report_prints_a_verdict_for_every_bar(pocket_model, monkeypatch, tmp_path):
    from editbook.training import report as module

    figures = [
        module.Figure("share", 0.5, 0.4),
        module.Figure("loss", 2.0, 1.0, at_most=True),
        module.Figure("plain", 3),
    ]
    monkeypatch.setattr(module, "report", lambda model, destination, **options: figures)
    lines = invoke("train", "report", "-o", tmp_path).stdout.splitlines()
    assert [line.split(maxsplit=1)[0] for line in lines] == ["share", "loss", "plain"]
    assert [("met" in line, "missed: 1" in line) for line in lines] == [(True, False), (False, True), (False, False)]
