"""The tokenizer: any text has tokens, the world's words have one each, and lengths are fixed."""

from __future__ import annotations

import pytest
from transformers import CLIPTokenizer

from editbook.model import SHIPPED
from editbook.pocket import ACCESSORIES, BACKGROUNDS, COLOURS, MATERIALS, OBJECTS, POSES, QUALITIES, sample


@pytest.fixture(scope="module")
def shipped():
    return CLIPTokenizer.from_pretrained(SHIPPED / "pocket" / "tokenizer")


@pytest.mark.parametrize("text", ["zebra", "Ωmega ½", "猫がいる", "🦊", "naïve café", "x" * 30, "a\tb\nc"])
def test_any_text_has_tokens_and_comes_back(shipped, tokenizer, text):
    for each in (shipped, tokenizer):
        numbers = each(text, add_special_tokens=False).input_ids
        assert numbers
        assert each.eos_token_id not in numbers  # which is also the unknown token
        back = each.decode(numbers)
        assert "".join(back.split()) == "".join(text.lower().split())


def test_every_word_of_the_world_is_one_token(shipped):
    names = [*OBJECTS, *BACKGROUNDS, *COLOURS, *MATERIALS, *POSES, *ACCESSORIES]
    words = {word for name in names for word in name.replace("-", " ").split()}
    several = sorted(word for word in words if len(shipped(word, add_special_tokens=False).input_ids) != 1)
    assert several == []


def test_captions_fit_and_longer_texts_are_cut(shipped):
    for seed in range(200):
        for text in (sample(seed).caption(seed % 4), QUALITIES[seed % 5]):
            assert len(shipped(text).input_ids) <= shipped.model_max_length
    cut = shipped("cat " * 100, padding="max_length", truncation=True).input_ids
    assert len(cut) == shipped.model_max_length == 40
    assert (cut[0], cut[-1]) == (shipped.bos_token_id, shipped.eos_token_id)
