"""The explorer holds the maps that were captured, and says what is missing."""

from __future__ import annotations

import base64
import json
import re

import numpy as np
import pytest
import torch

import editbook
from editbook.attention import AttentionMaps, words_and_tokens
from editbook.errors import EditbookError
from editbook.widgets import attention_explorer

SOURCE, TARGET = "a photo of a cat on the beach", "a photo of a fox on the beach"


@pytest.fixture(scope="module")
def made(random_model):
    return editbook.edit(random_model, None, source=SOURCE, target=TARGET, steps=3)


def data_of(shown):
    return json.loads(re.search(r"<script type=.application/json.>(.*?)</script>", shown.data, re.DOTALL)[1])


def numbers(text, *shape):
    return np.frombuffer(base64.b64decode(text), np.uint8).reshape(shape) / 255


def test_a_query_is_the_captured_row_of_self_attention(made):
    data = data_of(attention_explorer(made))
    rows, columns = data["grid"]
    own = made.attention.mean("self", rows)[1].unflatten(-1, (rows, columns))
    shown = numbers(data["queries"], rows, columns, rows, columns)
    assert np.abs(shown[2, 5] - (own[2, 5] / own[2, 5].max()).numpy()).max() <= 0.5 / 255 + 1e-6


def test_words_and_steps_are_those_of_the_prompt_and_the_slider(made):
    data = data_of(attention_explorer(made, row="source", word="cat", frames=2))
    assert data["words"] == SOURCE.split()
    assert data["words"][data["start"]] == "cat"
    assert data["steps"] == [1, 3]
    heat = numbers(data["heat"], len(data["words"]), 2, data["height"], data["width"])
    assert np.allclose(heat.max((1, 2, 3)), 1)
    finest = made.attention.resolutions[0]
    tokens = dict(words_and_tokens(made.attention.tokenizer, SOURCE))["cat"]
    one = AttentionMaps(
        {key: record for key, record in made.attention.records.items() if key[0].resolution == finest},
        made.attention.tokenizer,
        [SOURCE, TARGET],
    )
    steps = [one.mean("cross", finest, [step])[0][:, :, tokens].mean(-1) for step in (0, 2)]
    only = data_of(attention_explorer(_with(made, one, made.attention), row="source", frames=2))
    shown = numbers(only["heat"], len(only["words"]), 2, only["height"], only["width"])
    expected = torch.stack(steps) / torch.stack(steps).max()
    assert np.abs(shown[only["words"].index("cat")] - expected.numpy()).max() <= 0.5 / 255 + 1e-6


def _with(made, cross, own):
    """The edit with cross-attention of some records and self-attention of others."""
    records = {key: record for key, record in cross.records.items() if key[0].kind == "cross"}
    records |= {key: record for key, record in own.records.items() if key[0].kind == "self"}
    kept = AttentionMaps(records, own.tokenizer, own.prompts)
    return editbook.Edit(made.image, made.source_image, attention=kept)


def test_the_new_word_is_shown_first_and_the_page_is_whole(made):
    shown = attention_explorer(made)
    data = data_of(shown)
    assert data["words"][data["start"]] == "fox"
    assert shown.data.count("<button") == len(data["words"])
    assert not re.search(r"https?:", shown.data)
    assert shown.data == attention_explorer(made).data  # the same edit, the same output: pages are compared


def test_no_prompt_ends_the_script(random_model):
    sly = "a photo of a cat </script><b>on the beach"
    made = editbook.edit(random_model, None, source=sly, target=sly.replace("cat", "fox"), steps=1)
    page = attention_explorer(made).data
    assert page.count("</script>") == 2
    assert "<b>" not in page
    assert "</script><b>on" in data_of(attention_explorer(made))["words"]


def test_what_is_missing_is_said(made, random_model, picture):
    plain = editbook.edit(random_model, picture, "ddim-inversion", source=SOURCE, target=TARGET, steps=1)
    with pytest.raises(EditbookError, match="ddim-inversion keeps no attention maps"):
        attention_explorer(plain)
    with pytest.raises(EditbookError, match="'source' or 'edit'"):
        attention_explorer(made, row="target")
    with pytest.raises(EditbookError, match="Did you mean 'fox'"):
        attention_explorer(made, word="foxx")
    for options in ({"frames": 0}, {"side": 3}):
        with pytest.raises(EditbookError, match="at least"):
            attention_explorer(made, **options)
    cross = {key: record for key, record in made.attention.records.items() if key[0].kind == "cross"}
    made = editbook.Edit(
        made.image, made.source_image, attention=AttentionMaps(cross, made.attention.tokenizer, [SOURCE, TARGET])
    )
    with pytest.raises(EditbookError, match="capture 'self' too"):
        attention_explorer(made)
