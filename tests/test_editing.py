"""`edit`: any picture in, an `Edit` out, and one readable error for everything that is wrong."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

import editbook
from editbook.errors import EditbookError
from editbook.images import ImageWarning

PROMPTS = {"source": "a photo of a cat on the beach", "target": "a photo of a fox on the beach"}
QUICK = {**PROMPTS, "steps": 2}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "prompt-to-promt"}, "Did you mean 'prompt-to-prompt'"),
        ({"method": "nonsense"}, "Known: "),
        ({"cross_replac": 0.5}, "Did you mean 'cross_replace'"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**63}, "seed"),
        ({"seed": 1.5}, "seed"),
        ({"seed": "zero"}, "seed"),
        ({"image": np.full((64, 64, 3), np.nan)}, "nan"),
        ({"image": "no/such/file.png"}, "does not exist"),
        ({"image": 7}, "path"),
        ({"source": "cat " * 60}, "limit is 40"),
        ({"mask": np.zeros((64, 64))}, "0 everywhere"),
        ({"mask": np.full((64, 64), np.nan)}, r"\[0, 1\]"),
        ({"source": None}, "source"),
        ({"target": 3}, "target"),
        ({"guidance_scale": float("inf")}, "finite number"),
    ],
)
def test_bad_input_raises_one_readable_line(random_model, picture, arguments, message):
    with pytest.raises(EditbookError, match=message) as caught:
        editbook.edit(random_model, **{"image": picture, "method": "prompt-to-prompt", **QUICK, **arguments})
    assert "\n" not in str(caught.value)


def test_pictures_of_every_form_mean_the_same(random_model, picture, tmp_path):
    picture.save(tmp_path / "picture.png")
    forms = [picture, np.asarray(picture), np.asarray(picture) / 255, tmp_path / "picture.png"]
    results = {editbook.edit(random_model, form, "img2img", **QUICK).image.tobytes() for form in forms}
    assert len(results) == 1


@pytest.mark.parametrize("method", ["img2img", "ddim-inversion", "prompt-to-prompt"])
def test_a_bad_mask_costs_no_evaluation(random_model, picture, method):
    before = random_model.nfe
    with pytest.raises(EditbookError, match="0 everywhere"):
        editbook.edit(random_model, picture, method, mask=np.zeros((64, 64)), **QUICK)
    assert random_model.nfe == before


def test_a_wide_picture_and_its_mask_are_cropped_alike(random_model, picture):
    wide = Image.new("RGB", (128, 64), "white")
    wide.paste(picture, (32, 0))
    mask = np.zeros((64, 128), np.float32)
    mask[:, 64:] = 1
    with pytest.warns(ImageWarning, match="middle"):
        cropped = editbook.edit(random_model, wide, "img2img", mask=mask, **QUICK)
    direct = editbook.edit(random_model, picture, "img2img", mask=mask[:, 32:96], **QUICK)
    assert cropped.image.tobytes() == direct.image.tobytes()
    assert np.array_equal(cropped.mask, direct.mask)


def test_a_configured_method_is_taken_as_it_is(random_model, picture):
    method = editbook.methods["img2img"](steps=2, strength=1.0)
    by_object = editbook.edit(random_model, picture, method, **PROMPTS)
    by_name = editbook.edit(random_model, picture, "img2img", **QUICK, strength=1.0)
    assert by_object.image.tobytes() == by_name.image.tobytes()
    assert by_object.settings == by_name.settings
    with pytest.raises(EditbookError, match="not to both"):
        editbook.edit(random_model, picture, method, **QUICK)


def test_a_seed_is_a_seed(random_model, picture):
    images = [editbook.edit(random_model, picture, "img2img", **QUICK, seed=s).image.tobytes() for s in (0, 0, 1)]
    assert images[0] == images[1] != images[2]


def test_a_source_is_generated_where_no_picture_is_given(random_model):
    one, other = (editbook.edit(random_model, None, **QUICK, seed=seed) for seed in (0, 1))
    assert one.inversion is None
    assert one.source_image.tobytes() == one.reconstruction.tobytes()
    assert one.source_image.tobytes() != other.source_image.tobytes()


def test_evaluations_are_those_of_this_edit_alone(random_model, picture):
    counts = [editbook.edit(random_model, picture, **PROMPTS, steps=steps).nfe for steps in (2, 2, 5)]
    assert counts == [2 * 4, 2 * 4, 5 * 4]


def test_progress_counts_all_walks(random_model, picture, capsys):
    editbook.edit(random_model, picture, **PROMPTS, steps=3, progress=True)
    assert "6/6" in capsys.readouterr().err
    editbook.edit(random_model, picture, **PROMPTS, steps=3)
    assert capsys.readouterr().err == ""


def test_the_bar_is_closed_after_an_error(random_model, picture, capsys):
    def stop(step):
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        editbook.edit(random_model, picture, **QUICK, progress=True, callbacks=[stop])
    assert capsys.readouterr().err.endswith("\n")


def test_settings_say_all_that_is_needed(random_model, picture):
    settings = editbook.edit(random_model, picture, **QUICK, seed=5).settings
    assert settings["method"] == "prompt-to-prompt"
    assert settings["options"]["steps"] == 2
    assert (settings["seed"], settings["mask"], settings["model"]) == (5, False, "random")
    assert (settings["device"], settings["dtype"]) == ("cpu", "float32")
    assert settings["versions"]["torch"].startswith(torch.__version__.partition("+")[0])
    assert {"source", "target", "editbook", "diffusers"} <= {*settings, *settings["versions"]}


def test_save_writes_pictures_and_settings(random_model, picture, tmp_path):
    mask = np.zeros((64, 64), np.float32)
    mask[:32] = 1
    edit = editbook.edit(random_model, picture, **QUICK, mask=mask, blend=("cat", "fox"))
    folder = edit.save(tmp_path / "new" / "folder")
    assert {path.name for path in folder.iterdir()} == {
        "edited.png",
        "source.png",
        "reconstruction.png",
        "mask.png",
        "settings.json",
    }
    assert Image.open(folder / "edited.png").tobytes() == edit.image.tobytes()
    assert Image.open(folder / "source.png").tobytes() == picture.tobytes()
    with Image.open(folder / "mask.png") as saved:
        assert saved.size == (64, 64)
        assert np.array_equal(np.asarray(saved)[::4, ::4] / 255, edit.mask)
    settings = json.loads((folder / "settings.json").read_text(encoding="utf-8"))
    assert settings["nfe"] == edit.nfe
    assert settings["options"]["blend"] == ["cat", "fox"]


def test_save_leaves_out_what_there_is_not(picture, tmp_path):
    folder = editbook.Edit(picture, picture).save(tmp_path)
    assert {path.name for path in folder.iterdir()} == {"edited.png", "source.png", "settings.json"}


def test_save_to_a_file_raises(picture, tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(EditbookError, match="Choose another"):
        editbook.Edit(picture, picture).save(tmp_path / "taken")


def test_show_has_a_panel_for_each_thing_there_is(random_model, picture):
    edit = editbook.edit(random_model, picture, **QUICK, mask=np.ones((64, 64)))
    titles = [axis.get_title() for axis in edit.show(picture).axes]
    assert titles == ["source", "reconstruction", "mask", "prompt-to-prompt", "exact truth"]
    assert len(editbook.Edit(picture, picture).show().axes) == 2


@pytest.mark.slow
def test_a_model_of_stable_diffusions_shape_runs_through_the_same_code(tokenizer, tmp_path):
    """Half of SD 1.5's width, its four levels and its factor of 8, random weights, from a saved folder."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    from editbook.attention import Capture, sites
    from editbook.sampling import ClassifierFreeGuidance, Schedule, follow
    from editbook.training.unet import build_scheduler

    torch.manual_seed(0)
    UNet2DConditionModel(
        sample_size=32,
        block_out_channels=(160, 320, 640, 640),
        layers_per_block=2,
        down_block_types=(*("CrossAttnDownBlock2D",) * 3, "DownBlock2D"),
        up_block_types=("UpBlock2D", *("CrossAttnUpBlock2D",) * 3),
        cross_attention_dim=384,
        attention_head_dim=8,
    ).save_pretrained(tmp_path / "unet")
    AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(32, 32, 32, 32),
        latent_channels=4,
        norm_num_groups=16,
        sample_size=256,
    ).save_pretrained(tmp_path / "vae")
    CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=384,
            intermediate_size=768,
            num_hidden_layers=2,
            num_attention_heads=6,
            max_position_embeddings=77,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    ).save_pretrained(tmp_path / "text_encoder")
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    wide = CLIPTokenizer.from_pretrained(tmp_path / "tokenizer", model_max_length=77)
    wide.save_pretrained(tmp_path / "tokenizer")
    build_scheduler().save_pretrained(tmp_path / "scheduler")

    model = editbook.load(tmp_path)
    assert (model.factor, model.image_size, model.latent_shape) == (8, 256, (4, 32, 32))
    layers = sites(model.unet, (32, 32)).values()
    assert len(layers) == 2 * 16
    down, up = [32, 32, 16, 16, 8, 8], [8, 8, 8, 16, 16, 16, 32, 32, 32]
    assert [site.resolution for site in layers if site.kind == "cross"] == [*down, 4, *up]

    capture = Capture(resolutions=[16])
    guidance = ClassifierFreeGuidance(model.embed(PROMPTS["source"]), model.embed(""), 7.5)
    path = Schedule(model.scheduler, 2).sampling()
    follow(model, model.random_latent(0), path, guidance, attention=capture)
    assert len(capture.records) == 5 * 2
    assert capture.maps(model.tokenizer, [PROMPTS["source"]]).mean(resolution=16).shape == (1, 16, 16, 77)

    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8))
    edit = editbook.edit(model, picture, **PROMPTS, steps=3, blend=("cat", "fox"))
    assert edit.nfe == 3 + 3 * 3
    assert edit.image.size == (256, 256)
    assert edit.mask.shape == (32, 32)
    assert edit.attention.resolutions == [32, 16]
