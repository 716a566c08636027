"""The model's four verbs, its count of evaluations, and loading."""

from __future__ import annotations

import copy
import hashlib

import numpy as np
import pytest
import torch
from PIL import Image

import editbook
from editbook.errors import EditbookError
from editbook.model import Model, verify

SOURCE = "a photo of a cat on the beach"
TARGET = "a photo of a fox on the beach"


def save(model, folder):
    """The diffusers layout that `load` reads."""
    model.unet.save_pretrained(folder / "unet")
    model.vae.save_pretrained(folder / "vae")
    model.text_encoder.save_pretrained(folder / "text_encoder")
    model.tokenizer.save_pretrained(folder / "tokenizer")
    model.scheduler.save_pretrained(folder / "scheduler")
    return folder


def test_shapes(random_model, picture):
    model = random_model
    assert (model.factor, model.image_size, model.latent_shape) == (4, 64, (4, 16, 16))
    assert model.encode(picture).shape == (1, 4, 16, 16)
    assert model.encode([picture, picture, picture]).shape == (3, 4, 16, 16)
    assert model.embed([SOURCE, TARGET]).shape == (2, 40, 128)
    assert model.embed(SOURCE).shape == (1, 40, 128)
    assert model.decode(model.random_latent(0)).size == (64, 64)
    assert len(model.decode_batch(model.random_latent(0, 3))) == 3


def test_parts_are_frozen_and_in_evaluation_mode(random_model):
    for part in (random_model.unet, random_model.vae, random_model.text_encoder):
        assert not part.training
        assert not any(parameter.requires_grad for parameter in part.parameters())


def test_encode_is_the_scaled_posterior_mean(random_model, picture):
    pixels = torch.from_numpy(np.asarray(picture, np.float32).copy()).permute(2, 0, 1)[None] / 127.5 - 1
    with torch.no_grad():
        mean = random_model.vae.encode(pixels).latent_dist.mean
    expected = mean * random_model.vae.config.scaling_factor
    torch.testing.assert_close(random_model.encode(picture), expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(random_model.encode(picture), random_model.encode(picture))


def test_a_batch_is_its_rows(random_model64, picture):
    model = random_model64
    pictures = [picture, picture.rotate(90)]
    together, apart = model.encode(pictures), torch.cat([model.encode(one) for one in pictures])
    torch.testing.assert_close(together, apart, rtol=0, atol=1e-10)
    texts = [SOURCE, TARGET]
    alone = torch.cat([model.embed(text) for text in texts])
    torch.testing.assert_close(model.embed(texts), alone, rtol=0, atol=1e-10)
    decoded = model.decode_batch(together)
    for one, z in zip(decoded, together, strict=True):
        # Row by row the same up to one grey level of rounding.
        assert np.abs(np.asarray(one, int) - np.asarray(model.decode(z), int)).max() <= 1


def test_noise_counts_rows_and_gives_eps_for_v_prediction(random_model64):
    model = random_model64
    z, text = model.random_latent(0, 3), model.embed(SOURCE).expand(3, -1, -1)
    before = model.nfe
    with torch.no_grad():
        eps = model.noise(z, 400, text)
    assert model.nfe - before == 3
    scheduler = copy.deepcopy(model.scheduler)
    scheduler.register_to_config(prediction_type="v_prediction")
    twin = Model(model.unet, model.vae, model.text_encoder, model.tokenizer, scheduler)
    alpha = float(scheduler.alphas_cumprod[400])
    with torch.no_grad():
        torch.testing.assert_close(twin.noise(z, 400, text), alpha**0.5 * eps + (1 - alpha) ** 0.5 * z)


def test_random_latent_depends_on_the_seed_alone(random_model, random_model64):
    a, b = random_model.random_latent(1), random_model.random_latent(2)
    assert torch.equal(a, random_model.random_latent(1))
    assert not torch.equal(a, b)
    assert torch.equal(random_model64.random_latent(1).float(), a)
    rows = random_model.random_latent(1, 3)
    assert all(torch.equal(row, a[0]) for row in rows)


def test_too_long_prompt_raises_with_the_limit(random_model):
    with pytest.raises(EditbookError, match="limit is 40"):
        random_model.embed([SOURCE, "cat " * 60])


def test_decode_refuses_batches_and_nan(random_model):
    with pytest.raises(EditbookError, match="decode_batch"):
        random_model.decode(random_model.random_latent(0, 2))
    with pytest.raises(EditbookError, match="NaN"):
        random_model.decode(random_model.random_latent(0) * float("nan"))


def test_models_of_another_kind_are_refused(random_model):
    model = random_model
    parts = (model.vae, model.text_encoder, model.tokenizer)
    unet = copy.deepcopy(model.unet)
    unet.register_to_config(in_channels=9)
    with pytest.raises(EditbookError, match="9 input channels"):
        Model(unet, *parts, model.scheduler)
    scheduler = copy.deepcopy(model.scheduler)
    scheduler.register_to_config(prediction_type="sample")
    with pytest.raises(EditbookError, match="sample"):
        Model(model.unet, *parts, scheduler)


@pytest.mark.filterwarnings("ignore")
def test_load_reads_what_was_saved(random_model, tmp_path):
    loaded = editbook.load(save(random_model, tmp_path))
    z, text = random_model.random_latent(0), random_model.embed(SOURCE)
    assert torch.equal(loaded.embed(SOURCE), text)
    with torch.no_grad():
        # Not bit for bit: where a library's kernels align their loads, the order of a sum may differ.
        torch.testing.assert_close(loaded.noise(z, 300, text), random_model.noise(z, 300, text), rtol=1e-5, atol=1e-5)
    assert torch.equal(loaded.scheduler.alphas_cumprod, random_model.scheduler.alphas_cumprod)
    assert loaded.clip is None
    assert editbook.load(tmp_path, dtype="float64").encode(Image.new("RGB", (64, 64))).dtype == torch.float64


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dtype": "float31"}, "Did you mean 'float32'"),
        ({"device": "gpu"}, "'gpu' cannot be used"),
        ({"name": "no/such-model", "local_files_only": True}, "Could not load 'no/such-model'"),
    ],
)
def test_load_errors_say_what_to_do(arguments, message):
    with pytest.raises(EditbookError, match=message):
        editbook.load(**arguments)


def test_an_empty_folder_is_no_model(tmp_path):
    with pytest.raises(EditbookError, match="Could not load"):
        editbook.load(tmp_path)


def test_verify_names_the_bad_file(tmp_path):
    (tmp_path / "a").write_bytes(b"weights")
    sums = f"{hashlib.sha256(b'weights').hexdigest()}  a\n"
    (tmp_path / "SHA256SUMS").write_text(sums)
    verify(tmp_path)
    (tmp_path / "a").write_bytes(b"weighty")
    with pytest.raises(EditbookError, match="damaged"):
        verify(tmp_path)
    (tmp_path / "a").unlink()
    with pytest.raises(EditbookError, match="missing"):
        verify(tmp_path)


def test_shipped_model_brings_a_picture_back(pocket_model):
    source = editbook.pocket.task("cat-to-fox").source_image
    back = pocket_model.decode(pocket_model.encode(source))
    error = np.square(np.asarray(back, float) / 255 - np.asarray(source, float) / 255).mean()
    assert -10 * np.log10(error) > 20


@pytest.mark.filterwarnings("ignore")
def test_diffusers_opens_and_runs_the_shipped_folder():
    """As anybody would open it, without a word about formats."""
    from diffusers import StableDiffusionPipeline

    from editbook.model import SHIPPED

    pipeline = StableDiffusionPipeline.from_pretrained(SHIPPED / "pocket", safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    assert {part.dtype for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder)} == {torch.float32}
    image = pipeline(SOURCE, num_inference_steps=2).images[0]
    assert image.size == (64, 64)
