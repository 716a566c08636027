"""Towers: what the real loaders read, what pictures become, and one line of advice where something is missing."""

from __future__ import annotations

import copy
import json
import pickle
import shutil
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch.nn import functional
from transformers import CLIPConfig, CLIPModel, ViTConfig, ViTModel

from editbook.errors import EditbookError
from editbook.metrics import Clip, Dino, Inception, Score, clip_tower, fid_tower, pocket_clip, structure_tower
from editbook.metrics.towers import Pixels
from editbook.pocket import sample

PICTURES = [sample(seed).image() for seed in range(3)]


@pytest.fixture(scope="module")
def tower():
    return pocket_clip()


@pytest.fixture(scope="module")
def dino_folder(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("dino")
    config = ViTConfig(
        hidden_size=24, num_hidden_layers=3, num_attention_heads=2, intermediate_size=32, image_size=32, patch_size=8
    )
    ViTModel(config, add_pooling_layer=False).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory, tokenizer):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("clip")
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    tokens = {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": 32,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    vision = {"image_size": 48, "patch_size": 16}
    CLIPModel(
        CLIPConfig(text_config={**sizes, **tokens}, vision_config={**sizes, **vision}, projection_dim=12)
    ).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_the_pocket_towers_are_the_shipped_model_s(tower, pocket_model):
    pixels = torch.from_numpy(np.stack([np.asarray(p) for p in PICTURES])).permute(0, 3, 1, 2) / 127.5 - 1
    with torch.no_grad():
        expected = pocket_model.clip.get_image_features(pixels)
        expected = getattr(expected, "pooler_output", expected)
    torch.testing.assert_close(tower.images(PICTURES), expected, atol=1e-5, rtol=1e-5)
    assert tower.name == "pocket-CLIP"


def test_texts_agree_with_their_pictures_more_than_with_others(tower):
    scenes = [sample(seed) for seed in range(100, 116)]
    images = functional.normalize(tower.images([scene.image() for scene in scenes]), dim=-1)
    texts = functional.normalize(tower.texts([scene.caption() for scene in scenes]), dim=-1)
    similarity = images @ texts.T
    assert (similarity.diagonal() > similarity.mean(1)).float().mean() > 0.9


def test_padding_does_not_change_a_text(tower):
    one, many = tower.texts(["a cat"]), tower.texts(["a cat", "a photo of a red bus and a golden dog in a meadow"])
    torch.testing.assert_close(one[0], many[0], atol=1e-5, rtol=1e-4)


def test_a_text_that_is_too_long_is_not_cut_silently(tower):
    with pytest.raises(EditbookError, match="tokens"):
        tower.texts(["cat " * 200])


def test_batches_do_not_change_features(tower):
    many = [sample(seed).image() for seed in range(70)]
    torch.testing.assert_close(tower.images(many)[65:], tower.images(many[65:]), atol=1e-5, rtol=1e-4)


def test_keys_are_those_of_the_last_block(tower):
    """Computed again by hand from the hidden states that go into it."""
    vision = tower.model.vision_model
    with torch.no_grad():
        hidden = vision(tower.pixels(PICTURES), output_hidden_states=True).hidden_states[-2]
        block = vision.encoder.layers[-1]
        expected = block.self_attn.k_proj(block.layer_norm1(hidden))
    torch.testing.assert_close(tower.keys(PICTURES), expected)
    assert tower.keys(PICTURES).shape == (3, 65, 128)


def test_clip_is_read_from_a_folder(clip_folder):
    clip = Clip.load(clip_folder)
    assert clip.images(PICTURES).shape == (3, 12)
    assert clip.texts(["a cat", "a dog"]).shape == (2, 12)
    assert clip.keys(PICTURES).shape == (3, 10, 16)
    assert str(clip_folder) in clip.name


def test_clip_s_pictures_are_prepared_as_its_own_processor_does(clip_folder):
    processor = pytest.importorskip("transformers").CLIPImageProcessor
    try:
        theirs = processor(size={"shortest_edge": 48}, crop_size={"height": 48, "width": 48})
        expected = theirs(PICTURES, return_tensors="pt").pixel_values
    except ImportError as error:
        pytest.skip(f"this transformers prepares pictures with torchvision: {error}")
    assert (Clip.load(clip_folder).pixels(PICTURES) - expected).abs().max() < 0.05  # a grey level of rounding


def test_dino_is_read_from_a_folder(dino_folder):
    dino = Dino.load(dino_folder)
    assert dino.keys(PICTURES).shape == (3, 17, 24)
    with torch.no_grad():
        hidden = dino.model(dino.pixels(PICTURES), output_hidden_states=True).hidden_states[-2]
        block = dino.model.layers[-1]
        torch.testing.assert_close(dino.keys(PICTURES), block.attention.k_proj(block.layernorm_before(hidden)))
    assert dino.images(PICTURES).shape == (3, 24)


def test_pixels_are_cropped_to_the_middle_and_normalised():
    wide = np.zeros((10, 30, 3), np.uint8)
    wide[:, 10:20] = 255
    assert (Pixels(10)([wide]) == 1).all()
    white = np.full((8, 8, 3), 255, np.uint8)
    dino = Pixels(4, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    torch.testing.assert_close(dino([white])[0, :, 0, 0], torch.tensor([0.515 / 0.229, 0.544 / 0.224, 0.594 / 0.225]))
    torch.testing.assert_close(dino([white], top=255.0)[0, 0, 0, 0], torch.tensor((255 - 0.485) / 0.229))
    with pytest.raises(EditbookError, match="at least one"):
        dino([])


def test_pictures_that_cannot_be_read_are_named(tower):
    nan = np.full((64, 64, 3), np.nan)
    for look in (tower.images, tower.keys):
        with pytest.raises(EditbookError, match=r"^pictures\[2\]: .*nan"):
            look([*PICTURES[:2], nan])
        with pytest.raises(EditbookError, match="pictures must be a list"):
            look(PICTURES[0])
        with pytest.raises(EditbookError, match="at least one"):
            look([])
    with pytest.raises(EditbookError, match=r"^pictures\[65\]: "):
        tower.images([*PICTURES[:1] * 65, nan])


def test_a_generator_of_pictures_is_read(tower):
    for look in (tower.images, tower.keys):
        torch.testing.assert_close(look(iter(PICTURES)), look(PICTURES))


class TestScore:
    SCORE = Score(23.1, "pocket-CLIP")

    def test_it_is_a_float_with_a_label(self):
        assert isinstance(self.SCORE, float)
        assert self.SCORE == 23.1
        assert self.SCORE.tower == "pocket-CLIP"
        assert repr(self.SCORE) == "23.10 (pocket-CLIP)"
        assert repr(Score(0.08971, "x")) == "0.08971 (x)"

    def test_it_prints_and_is_written_as_a_float(self):
        assert str(self.SCORE) == f"{self.SCORE}" == "23.1"
        assert f"{self.SCORE:7.2f}" == "  23.10"
        assert json.dumps({"score": self.SCORE}) == '{"score": 23.1}'

    def test_what_is_computed_from_it_has_no_label(self):
        assert type(2 * self.SCORE) is float
        assert np.mean([self.SCORE, self.SCORE]) == pytest.approx(23.1)

    def test_copies_keep_the_label(self):
        for twin in (copy.deepcopy(self.SCORE), pickle.loads(pickle.dumps(self.SCORE))):
            assert (float(twin), twin.tower) == (23.1, "pocket-CLIP")


@pytest.fixture
def cache(monkeypatch, tmp_path):
    """Empty caches of the hub and of torch; going online is a failure."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "torch"))
    monkeypatch.setattr("socket.socket.connect", lambda *args: pytest.fail("it went online"))
    return tmp_path


def keep(cache, name, folder):
    repository = cache / f"models--{name.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("abc")
    shutil.copytree(folder, repository / "snapshots" / "abc")


def test_without_published_weights_the_pocket_towers_are_taken(cache):
    for choose in (clip_tower, structure_tower, fid_tower):
        assert choose().name == "pocket-CLIP"


def test_published_weights_are_taken_from_the_cache(cache, clip_folder, dino_folder):
    keep(cache, "openai/clip-vit-large-patch14", clip_folder)
    keep(cache, "facebook/dino-vitb8", dino_folder)
    assert clip_tower().name == "CLIP openai/clip-vit-large-patch14"
    assert structure_tower().name == "DINO facebook/dino-vitb8"
    assert clip_tower().images(PICTURES).shape == (3, 12)


def test_a_folder_that_was_named_is_taken_or_refused(cache, clip_folder, dino_folder):
    assert str(clip_folder) in clip_tower(clip_folder).name
    assert str(dino_folder) in structure_tower(dino_folder).name
    for choose in (clip_tower, structure_tower, fid_tower):
        with pytest.raises(EditbookError):
            choose(cache / "nothing here")


def test_inception_is_taken_where_its_package_and_weights_are(cache, torch_fidelity):
    weights = cache / "torch" / "checkpoints" / "weights-inception-2015-12-05-6726825d.pth"
    assert fid_tower().name == "pocket-CLIP"
    weights.parent.mkdir(parents=True)
    torch.save({}, weights)
    assert fid_tower().name == fid_tower(weights).name == "Inception-v3"


@pytest.mark.parametrize("load", [Clip.load, Dino.load])
def test_what_cannot_be_loaded_is_said_in_one_line(load, tmp_path):
    with pytest.raises(EditbookError, match="Could not load") as caught:
        load(tmp_path / "nothing here")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("load", [Clip.load, Dino.load])
@pytest.mark.parametrize("content", [b"", b"junk 101"])
def test_damaged_weights_are_said_in_one_line(load, content, clip_folder, dino_folder, tmp_path):
    folder = tmp_path / "damaged"
    shutil.copytree(clip_folder if load == Clip.load else dino_folder, folder)
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(EditbookError, match="Could not load") as caught:
        load(folder)
    assert "\n" not in str(caught.value)


@pytest.fixture
def torch_fidelity(monkeypatch):
    """torch-fidelity needs torchvision, which has no CPU build everywhere: here a double takes its place."""

    class Extractor(torch.nn.Module):
        def __init__(self, name, features_list, feature_extractor_weights_path=None):
            super().__init__()
            assert features_list == ["2048"]

        def forward(self, x):
            assert x.dtype == torch.uint8
            return (x.float().mean((2, 3)).repeat(1, 683)[:, :2048],)

    package, module = ModuleType("torch_fidelity"), ModuleType("torch_fidelity.feature_extractor_inceptionv3")
    package.__spec__ = ModuleSpec("torch_fidelity", None)
    module.FeatureExtractorInceptionV3 = Extractor
    monkeypatch.setitem(sys.modules, "torch_fidelity", package)
    monkeypatch.setitem(sys.modules, module.__name__, module)


def test_inception_goes_through_torch_fidelity(torch_fidelity):
    assert Inception.load().images(PICTURES).shape == (3, 2048)


def test_inception_takes_pictures_of_several_sizes_in_order(torch_fidelity):
    inception = Inception.load()
    mixed = [PICTURES[0], PICTURES[1].resize((32, 48)), PICTURES[2].resize((32, 48)), PICTURES[0]]
    one_by_one = torch.cat([inception.images([picture]) for picture in mixed])
    torch.testing.assert_close(inception.images(mixed), one_by_one)
    with pytest.raises(EditbookError, match=r"^pictures\[1\]: "):
        inception.images([PICTURES[0], None])


def test_inception_s_file_is_looked_at_before_it_is_unpickled(torch_fidelity, tmp_path):
    with pytest.raises(EditbookError, match="No such file"):
        Inception.load(tmp_path / "weights")
    (tmp_path / "pickled").write_bytes(pickle.dumps(Path))
    with pytest.raises(EditbookError, match="Could not load Inception"):
        Inception.load(tmp_path / "pickled")


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    with pytest.raises(EditbookError, match=r"pip install editbook\[scores\]"):
        Inception.load()
