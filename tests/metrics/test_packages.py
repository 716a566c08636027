"""LPIPS and HPS go through their authors' packages, which need torchvision: doubles stand in for them here."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from editbook.errors import EditbookError
from editbook.metrics import Hps, Lpips
from editbook.pocket import sample

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
    with pytest.raises(EditbookError, match="different shapes"):
        lpips(PICTURE, OTHER.resize((32, 32)))


def test_hps_is_the_cosine_under_the_file_s_weights(monkeypatch, tmp_path):
    class Towers(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(2))

        def encode_image(self, pixels):
            return self.weight[None]

        def encode_text(self, tokens):
            return torch.tensor([[1.0, 0.0]])

    def create(architecture, pretrained):
        assert (architecture, pretrained) == ("ViT-L-14-quickgelu", None)
        return Towers(), None, lambda image: torch.zeros(3, 4, 4)

    double = SimpleNamespace(
        create_model_and_transforms=create,
        get_tokenizer=lambda architecture: lambda texts: torch.zeros(len(texts), 4, dtype=torch.long),
    )
    monkeypatch.setitem(sys.modules, "open_clip", double)
    torch.save({"state_dict": {"weight": torch.tensor([3.0, 4.0])}}, tmp_path / "hpc.pt")
    score = Hps("v1", tmp_path / "hpc.pt")
    assert score(PICTURE, "a cat") == pytest.approx(60)
    assert score.name == "HPS v1"
    with pytest.raises(EditbookError, match="authors' page"):
        Hps("v1")
    torch.save({"state_dict": {"other": torch.zeros(1)}}, tmp_path / "foreign.pt")
    with pytest.raises(EditbookError, match="Could not load HPS v1"):
        Hps("v1", tmp_path / "foreign.pt")
