"""LPIPS and HPS go through their authors' packages, which need torchvision: doubles stand in for them here."""

from __future__ import annotations

import pickle
import sys
from importlib.machinery import ModuleSpec
from itertools import pairwise
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import ImageFilter

from editbook.errors import EditbookError
from editbook.metrics import Hps, Lpips, PocketPreference, preference_tower
from editbook.pocket import sample, sample_held_out

PICTURE, OTHER = sample(0).image(), sample(1).image()


def test_a_missing_package_is_named(monkeypatch):
    for module in ("lpips", "open_clip"):
        monkeypatch.setitem(sys.modules, module, None)
    for make in (Lpips, lambda: Hps("v1", "somewhere.pt")):
        with pytest.raises(EditbookError, match=r"pip install editbook\[scores\]"):
            make()


def test_unknown_names_are_refused():
    with pytest.raises(EditbookError, match="squeeze"):
        Lpips("squeze")
    with pytest.raises(EditbookError, match="HPS version"):
        Hps("v3")


def test_lpips_gets_pixels_from_minus_one_to_one(monkeypatch):
    class Distance(torch.nn.Module):
        def __init__(self, net, version, verbose):
            super().__init__()
            assert (net, version) == ("alex", "0.1")

        def forward(self, a, b):
            assert a.shape == b.shape == (1, 3, 64, 64)
            assert a.min() >= -1
            assert a.max() <= 1
            assert a.min() < -0.1
            return (a - b).abs().mean()[None]

    monkeypatch.setitem(sys.modules, "lpips", SimpleNamespace(LPIPS=Distance))
    lpips = Lpips("alex")
    assert lpips.name == "LPIPS alex"
    assert lpips(PICTURE, PICTURE) == 0
    expected = 2 * np.abs(np.asarray(PICTURE) / 255 - np.asarray(OTHER) / 255).mean()
    assert lpips(PICTURE, OTHER) == pytest.approx(expected, rel=1e-5)
    assert lpips(PICTURE, OTHER).tower == "LPIPS alex"
    assert lpips(PICTURE.convert("L"), np.asarray(PICTURE.convert("L"))) == 0
    with pytest.raises(EditbookError, match="different shapes"):
        lpips(PICTURE, OTHER.resize((32, 32)))


@pytest.fixture
def open_clip(monkeypatch):
    """A double whose pictures have the weights as features, and whose texts have (1, 0)."""

    class Towers(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(2))

        def encode_image(self, pixels):
            return self.weight[None]

        def encode_text(self, tokens):
            return torch.tensor([[1.0, 0.0]])

    def create(architecture, pretrained):
        assert pretrained is None
        return Towers(), None, lambda image: torch.zeros(3, 4, 4)

    double = ModuleType("open_clip")
    double.__spec__ = ModuleSpec("open_clip", None)
    double.create_model_and_transforms = create
    double.get_tokenizer = lambda architecture: lambda texts: torch.zeros(len(texts), 4, dtype=torch.long)
    monkeypatch.setitem(sys.modules, "open_clip", double)


def save_weights(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"state_dict": {"weight": torch.tensor([3.0, 4.0])}}, path)
    return path


def test_hps_is_the_cosine_under_the_file_s_weights(open_clip, tmp_path):
    score = Hps("v1", save_weights(tmp_path / "hpc.pt"))
    assert score(PICTURE, "a cat") == pytest.approx(60)
    assert score.name == score(PICTURE, "a cat").tower == "HPS v1"
    with pytest.raises(EditbookError, match="authors' page"):
        Hps("v1")
    with pytest.raises(EditbookError, match=r"^image: .*nan"):
        score(np.full((4, 4), np.nan), "a cat")


class Harmful:
    """Unpickling it would run code."""

    def __reduce__(self):
        return print, ("the code ran",)


def test_files_that_are_no_weights_are_said_in_one_line_and_never_run(open_clip, tmp_path, capsys):
    torch.save({"state_dict": {"other": torch.zeros(1)}}, tmp_path / "foreign")
    torch.save([1, 2], tmp_path / "list")
    torch.save({"weights": torch.zeros(2)}, tmp_path / "without state_dict")
    torch.save({"state_dict": 3}, tmp_path / "no weights")
    torch.save(Harmful(), tmp_path / "harmful")
    (tmp_path / "pickled").write_bytes(pickle.dumps(Harmful()))
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "junk").write_text("this is not a file of weights")
    (tmp_path / "cut").write_bytes(save_weights(tmp_path / "whole").read_bytes()[:200])
    for path in sorted(tmp_path.iterdir()):
        if path.name != "whole":
            with pytest.raises(EditbookError, match="Could not load HPS v1") as caught:
                Hps("v1", path)
            assert path.name in str(caught.value)
            assert "\n" not in str(caught.value)
    assert "the code ran" not in capsys.readouterr().out


def test_the_stand_in_falls_as_pictures_are_spoiled_and_for_another_object():
    """In the mean over scenes, step by step; the last step of either fault is far below the first."""
    scenes = [sample_held_out(seed) for seed in range(500, 510)]
    score, noise = PocketPreference(), np.random.default_rng(0).normal(size=(10, 64, 64, 3))
    pictures = [scene.image() for scene in scenes]
    captions = [scene.caption() for scene in scenes]

    def mean(pictures, prompts=captions):
        return np.mean([score(picture, prompt) for picture, prompt in zip(pictures, prompts, strict=True)])

    clean = mean(pictures)
    blurred = [mean([p.filter(ImageFilter.GaussianBlur(radius)) for p in pictures]) for radius in (2, 4)]
    noisy = [
        mean([(np.asarray(p) + size * n).clip(0, 255).astype(np.uint8) for p, n in zip(pictures, noise, strict=True)])
        for size in (15, 30, 60)
    ]
    for falling in ([clean, *blurred], [clean, *noisy]):
        assert all(after < before for before, after in pairwise(falling))
    assert blurred[-1] < 0.95 * clean
    assert noisy[-1] < 0.5 * clean
    others = [f"a photo of a {'fish' if 'fish' not in scene.caption() else 'car'}" for scene in scenes]
    assert mean(pictures, others) < 0.9 * mean(pictures, [f"a photo of a {s.objects[0].word}" for s in scenes])


def test_the_stand_in_says_what_it_is():
    score = PocketPreference()(PICTURE, "a photo of a cat")
    assert score.tower == PocketPreference.name
    assert "in place of HPS" in score.tower
    with pytest.raises(EditbookError, match=r"^image: .*nan"):
        PocketPreference()(np.full((4, 4), np.nan), "a cat")


def test_hps_is_taken_where_its_package_and_weights_are(open_clip, monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert isinstance(preference_tower(), PocketPreference)
    repository = tmp_path / "models--xswu--HPSv2"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("abc")
    weights = save_weights(repository / "snapshots" / "abc" / "HPS_v2.1_compressed.pt")
    assert preference_tower().name == "HPS v2.1"
    assert isinstance(preference_tower("v2.0"), PocketPreference)
    assert isinstance(preference_tower("v1"), PocketPreference)
    assert preference_tower("v1", weights).name == "HPS v1"
    with pytest.raises(EditbookError, match="HPS version"):
        preference_tower("v3")
    with pytest.raises(EditbookError, match="Could not load HPS v1"):
        preference_tower("v1", tmp_path / "nowhere.pt")
    monkeypatch.setitem(sys.modules, "open_clip", None)
    monkeypatch.setattr("editbook.metrics.hps.find_spec", lambda name: None)
    assert isinstance(preference_tower(), PocketPreference)
