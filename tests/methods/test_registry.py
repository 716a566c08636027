"""What every method of the registry has and does."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from quick import QUICK, texts

import editbook
from editbook.errors import EditbookError
from editbook.methods.base import REGISTRY, Method
from editbook.model import Model

IDS = sorted(editbook.methods)
ROOT = Path(editbook.methods.__file__).parent


def test_every_method_file_registers_its_method():
    files = {path.stem.replace("_", "-") for path in ROOT.rglob("*/*.py") if path.stem != "__init__"}
    assert {inspect.getsourcefile(REGISTRY[name]).rpartition("/")[2][:-3].replace("_", "-") for name in IDS} == files


def test_the_module_is_a_mapping():
    assert dict(editbook.methods) == REGISTRY
    assert len(editbook.methods) == len(IDS) >= 3
    assert "img2img" in editbook.methods
    assert editbook.methods.get("nothing") is None
    assert isinstance(hash(editbook.methods), int)


@pytest.mark.parametrize("name", IDS)
def test_cards_are_complete_and_stand_where_the_file_is(name):
    method = editbook.methods[name]
    card, path = method.card, Path(inspect.getsourcefile(method))
    for item in dataclasses.fields(card):
        assert getattr(card, item.name), f"{item.name} of {name} is empty"
    assert card.id == name == path.stem.replace("_", "-")
    assert card.branch == path.parent.relative_to(ROOT).as_posix()
    assert 2020 <= card.year <= 2030
    assert isinstance(card.inputs, tuple)
    assert isinstance(card.edit_types, tuple)
    number, _, version = card.paper.partition(".")
    assert number.isdigit()
    assert version.isdigit()


@pytest.mark.parametrize("name", IDS)
def test_every_option_is_documented_and_has_a_default(name):
    method = editbook.methods[name]
    text = "\n".join(inspect.getdoc(kind) or "" for kind in method.__mro__ if issubclass(kind, Method))
    for option in method.options():
        assert f"{option}:" in text, f"{option} of {name} has no line under Args"
    assert dataclasses.asdict(method()) == method.options()
    json.dumps(method.options())


@pytest.mark.parametrize("name", IDS)
def test_options_are_not_shared_between_objects(name):
    one, other = editbook.methods[name](), editbook.methods[name]()
    for item in dataclasses.fields(one):
        value = getattr(one, item.name)
        if isinstance(value, dict | list | set):
            assert value is not getattr(other, item.name)


@pytest.mark.parametrize("name", IDS)
def test_an_unknown_option_suggests_the_nearest(name, random_model, picture, fitting):
    with pytest.raises(EditbookError, match="Did you mean 'guidance_scale'"):
        editbook.edit(fitting(name, random_model), picture, name, **texts(name), guidance_scal=3)


@pytest.mark.parametrize("name", IDS)
def test_same_seed_same_result_and_settings_repeat_it(name, random_model, picture, fitting):
    first = editbook.edit(
        fitting(name, random_model), picture, name, **texts(name), seed=4, steps=3, **QUICK.get(name, {})
    )
    settings = json.loads(json.dumps(first.settings))
    again = editbook.edit(
        fitting(name, random_model),
        picture,
        settings["method"],
        **{kind: settings[kind] for kind in ("source", "target", "instruction")},
        seed=settings["seed"],
        mask=QUICK.get(name, {}).get("mask"),  # the settings say only that there was one
        **settings["options"],
    )
    assert first.image.tobytes() == again.image.tobytes()
    assert first.nfe == again.nfe > 0
    assert first.image.size == first.source_image.size == (64, 64)
    assert first.source_image.tobytes() == picture.tobytes()


@pytest.mark.parametrize("name", IDS)
def test_the_edit_changes_the_picture_and_depends_on_the_target(name, random_model, picture, fitting):
    one, other = (
        editbook.edit(fitting(name, random_model), picture, name, **texts(name, thing), steps=3, **QUICK.get(name, {}))
        for thing in ("fox", "castle")
    )
    assert one.image.tobytes() != picture.tobytes()
    assert one.image.tobytes() != other.image.tobytes()


@pytest.mark.parametrize("name", IDS)
def test_float64_computes_the_same_to_rounding(name, random_model, random_model64, picture, fitting):
    images = [
        np.asarray(
            editbook.edit(
                fitting(name, model), picture, name, **texts(name), steps=3, guidance_scale=2.0, **QUICK.get(name, {})
            ).image,
            float,
        )
        for model in (random_model, random_model64)
    ]
    assert np.abs(images[0] - images[1]).mean() < 1


@pytest.fixture(scope="module")
def half_model(random_model):
    """The same weights in float16."""
    parts = [copy.deepcopy(part).half() for part in (random_model.unet, random_model.vae, random_model.text_encoder)]
    return Model(*parts, random_model.tokenizer, random_model.scheduler, name="half")


@pytest.mark.parametrize("name", IDS)
def test_half_precision_works_or_is_refused_before_any_work(name, half_model, picture, fitting):
    model = fitting(name, half_model)
    seen, before = [], model.nfe
    options = {**texts(name), "steps": 2, "guidance_scale": 2.0, **QUICK.get(name, {})}
    refused = None
    try:
        made = editbook.edit(model, picture, name, **options, callbacks=[seen.append])
    except EditbookError as error:
        refused = str(error)
    if refused:
        assert "float16: load the model with dtype='float32'" in refused
        assert model.nfe == before
        return
    assert all(torch.isfinite(step.z_next).all() for step in seen)
    assert made.image.tobytes() != picture.tobytes()


@pytest.mark.parametrize("name", IDS)
def test_callbacks_see_every_finite_step(name, random_model, picture, fitting):
    seen = []
    options = {**texts(name), "steps": 4, **QUICK.get(name, {})}
    editbook.edit(fitting(name, random_model), picture, name, **options, callbacks=[seen.append])
    assert {step.i for step in seen} == set(range(seen[-1].total))
    assert all(torch.isfinite(step.z_next).all() for step in seen)


@pytest.mark.parametrize("name", IDS)
def test_the_model_is_left_as_it_was(name, random_model, picture, fitting):
    model = fitting(name, random_model)
    before = dict(model.unet.attn_processors)
    editbook.edit(model, picture, name, **texts(name), steps=2, **QUICK.get(name, {}))
    after = model.unet.attn_processors
    assert all(after[key] is before[key] for key in before)
    assert not any(parameter.requires_grad for parameter in model.unet.parameters())


@pytest.mark.parametrize("name", IDS)
@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"steps": 0}, "steps"),
        ({"steps": 2.5}, "steps"),
        ({"guidance_scale": float("nan")}, "finite number"),
        ({"guidance_scale": -1.0}, "at least 0"),
        ({"long": "cat " * 60}, "limit is 40"),
        ({"mask": np.zeros((64, 64))}, "0 everywhere"),
        ({"mask": np.full((64, 64), 2.0)}, r"\[0, 1\]"),
    ],
)
def test_bad_input_raises(name, bad, message, random_model, picture, fitting):
    if "long" in bad:
        inputs = editbook.methods[name].card.inputs
        instructed = "instruction" in inputs and not any(item.startswith("target prompt") for item in inputs)
        bad = {"instruction" if instructed else "target": bad["long"]}
    with pytest.raises(EditbookError, match=message):
        editbook.edit(
            fitting(name, random_model), picture, name, **{**texts(name), "steps": 2, **QUICK.get(name, {}), **bad}
        )


@pytest.mark.parametrize("name", IDS)
def test_an_option_of_another_type_raises(name, random_model, picture, fitting):
    bad = {bool: "yes", int: "many", float: "much", str: 3}
    for option, default in editbook.methods[name].options().items():
        if type(default) in bad:
            with pytest.raises(EditbookError, match=option):
                editbook.edit(fitting(name, random_model), picture, name, **texts(name), **{option: bad[type(default)]})


@pytest.mark.parametrize(
    ("option", "value"), [("reweight", {"fox": "x"}), ("reweight", 3), ("blend", 3), ("self_limit", "x")]
)
def test_options_of_prompt_to_prompt_that_are_no_plain_values(option, value, random_model, picture):
    with pytest.raises(EditbookError, match=r"number|numbers|blend|self_limit"):
        editbook.edit(random_model, picture, "prompt-to-prompt", **texts("prompt-to-prompt"), **{option: value})
