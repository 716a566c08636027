"""Files are whole or absent, and a bad place is found before the work."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import numpy as np
import pytest

from editbook.errors import EditbookError
from editbook.files import save_json, writable_folder, write_file

not_root = pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() == 0, reason="the superuser may write everywhere"
)


def test_write_file_replaces_and_leaves_nothing_else(tmp_path):
    for data in (b"a long first version", b"second"):
        assert write_file(tmp_path / "a", data).read_bytes() == data
    assert os.listdir(tmp_path) == ["a"]


def test_a_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    write_file(tmp_path / "a", b"old")

    def full(*_):
        raise OSError(28, "No space left on device")

    for step in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, step, full)
            with pytest.raises(EditbookError, match="No space left"):
                write_file(tmp_path / "a", b"new")
        assert (tmp_path / "a").read_bytes() == b"old"
        assert os.listdir(tmp_path) == ["a"]


def test_the_old_file_stays_until_the_new_one_is_complete(tmp_path, monkeypatch):
    write_file(tmp_path / "a", b"old")
    seen = []
    replace = os.replace

    def watched(source, target):
        seen.append((Path(source).read_bytes(), Path(target).read_bytes(), Path(source).parent == tmp_path))
        replace(source, target)

    monkeypatch.setattr(os, "replace", watched)
    write_file(tmp_path / "a", b"new")
    assert seen == [(b"new", b"old", True)]


@pytest.mark.skipif(os.name != "posix", reason="permission bits")
def test_others_may_read_it_as_they_may_any_new_file(tmp_path):
    (tmp_path / "usual").touch()
    usual = stat.S_IMODE((tmp_path / "usual").stat().st_mode)
    assert stat.S_IMODE(write_file(tmp_path / "a", b"").stat().st_mode) == usual


def test_places_that_cannot_be_written(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    for path in ("folder", "none/a", "file/a", "nul\0l", "x" * 300):
        with pytest.raises(EditbookError, match="Cannot write") as caught:
            write_file(tmp_path / path, b"data")
        assert "\n" not in str(caught.value)
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]


def test_json_is_plain_and_readable(tmp_path):
    value = {
        "prompt": "梵高的画",
        "scale": np.float32(7.5),
        "steps": np.int64(50),
        "mask": np.eye(2),
        "changed": ("cat", "fox"),
        "path": Path("a/b"),
        "none": None,
    }
    text = save_json(value, tmp_path / "a.json").read_text(encoding="utf-8")
    assert "梵高的画" in text
    assert text.endswith("}\n")
    assert json.loads(text) == {
        "prompt": "梵高的画",
        "scale": 7.5,
        "steps": 50,
        "mask": [[1, 0], [0, 1]],
        "changed": ["cat", "fox"],
        "path": str(Path("a/b")),
        "none": None,
    }


def test_json_refuses_what_it_cannot_hold(tmp_path):
    save_json({"old": 1}, tmp_path / "a.json")
    loop: list[object] = []
    loop.append(loop)
    for value in (
        {"f": print},
        {"x": float("nan")},
        {"x": np.array([np.inf])},
        {"s": "\ud800"},
        {(1, 2): 3},
        loop,
    ):
        with pytest.raises(EditbookError, match=r"a\.json") as caught:
            save_json(value, tmp_path / "a.json")
        assert "\n" not in str(caught.value)
    assert json.loads((tmp_path / "a.json").read_text()) == {"old": 1}


def test_writable_folder_is_made_and_left_empty(tmp_path):
    for _ in range(2):
        path = writable_folder(str(tmp_path / "a" / "b"))
        assert path == tmp_path / "a" / "b"
        assert not os.listdir(path)


def test_writable_folder_keeps_what_is_there(tmp_path):
    (tmp_path / "old").write_text("old")
    assert os.listdir(writable_folder(tmp_path)) == ["old"]


def test_writable_folder_that_is_a_file_or_below_one(tmp_path):
    (tmp_path / "file").touch()
    for path in ("file", "file/below", "nul\0l"):
        with pytest.raises(EditbookError, match="Cannot write into the folder"):
            writable_folder(tmp_path / path)


@not_root
def test_folders_without_permission(tmp_path):
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(EditbookError, match="Permission"):
            writable_folder(tmp_path)
        with pytest.raises(EditbookError, match="Permission"):
            writable_folder(tmp_path / "new")
        with pytest.raises(EditbookError, match="Permission"):
            write_file(tmp_path / "a", b"")
    finally:
        tmp_path.chmod(0o700)
