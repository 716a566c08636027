"""Words find their tokens, and tokens of two prompts find each other."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from editbook.attention import refine_mapper, swap_mapper, tokens_of, words_and_tokens
from editbook.errors import EditbookError

SHORT, LONG = "fox", "hippopotamus"


def text(tokenizer, prompt, positions):
    ids = tokenizer(prompt).input_ids
    return tokenizer.decode([ids[k] for k in positions]).replace(" ", "").strip()


@pytest.mark.parametrize("word", ["cat", "Cat", "hippopotamus", "beach", "on the"])
def test_tokens_spell_their_word(tokenizer, word):
    prompt = "A photo of a cat and a hippopotamus, on the beach."
    assert text(tokenizer, prompt, tokens_of(tokenizer, prompt, word)) == word.lower().replace(" ", "")


def test_repeated_words_and_parts_of_words(tokenizer):
    prompt = "a cat, a caterpillar and a cat"
    both = tokens_of(tokenizer, prompt, "cat")
    first, second = (tokens_of(tokenizer, prompt, "cat", occurrence=k) for k in (0, 1))
    assert both == first + second
    assert first[0] < second[0]
    longer = tokens_of(tokenizer, prompt, "caterpillar")
    assert not set(longer) & set(both)
    assert 0 not in tokens_of(tokenizer, prompt, "a")


def test_extra_spaces_do_not_shift_words(tokenizer):
    assert tokens_of(tokenizer, "  a   cat ", "cat") == tokens_of(tokenizer, "a cat", "cat")


@pytest.mark.parametrize("word", ["foxx", "ca", "", " ", "sky"])
def test_an_unknown_word_raises(tokenizer, word):
    with pytest.raises(EditbookError, match="Unknown word"):
        tokens_of(tokenizer, "a cat and a fox", word)


def test_the_nearest_word_is_suggested(tokenizer):
    with pytest.raises(EditbookError, match="Did you mean 'golden'"):
        tokens_of(tokenizer, "a golden cat", "goldn")
    with pytest.raises(EditbookError, match="Unknown word"):
        tokens_of(tokenizer, "a cat", "cat", occurrence=1)


def test_words_cover_all_tokens_once(tokenizer):
    prompt = "a photo of a hippopotamus, and a blue-green fox!"
    words = words_and_tokens(tokenizer, prompt)
    assert [word for word, _ in words] == prompt.split()
    positions = [k for _, tokens in words for k in tokens]
    assert positions == list(range(1, len(tokenizer(prompt).input_ids) - 1))


@pytest.mark.parametrize("prompt", ["a photo of a cat", "", LONG, "a cat, a cat and a cat"])
@pytest.mark.parametrize("mapper", [swap_mapper, refine_mapper])
def test_a_prompt_meets_itself(tokenizer, mapper, prompt):
    assert torch.equal(mapper(tokenizer, prompt, prompt), torch.eye(40))


@pytest.mark.parametrize(("old", "new"), [(SHORT, LONG), (LONG, SHORT), ("cat", "fox"), ("a", LONG), (LONG, "dragon")])
def test_swap_keeps_row_sums_and_later_words(tokenizer, old, new):
    source, target = f"a {old} and a castle on the beach", f"a {new} and a castle on the beach"
    mapper = swap_mapper(tokenizer, source, target)
    end_source, end_target = (len(tokenizer(prompt).input_ids) - 1 for prompt in (source, target))
    torch.testing.assert_close(mapper.sum(1), torch.ones(40), rtol=0, atol=1e-6)
    assert mapper.min() >= 0
    for word in ("castle", "on", "the", "beach", "and"):
        for a, b in zip(tokens_of(tokenizer, source, word), tokens_of(tokenizer, target, word), strict=True):
            assert mapper[a, b] == 1
            assert mapper[:, b].sum() == 1
    assert mapper[0, 0] == mapper[end_source, end_target] == 1
    (_, k), (_, m) = words_and_tokens(tokenizer, source)[1], words_and_tokens(tokenizer, target)[1]
    block = mapper[k][:, m]
    expected = torch.eye(len(k)) if len(k) == len(m) else torch.full((len(k), len(m)), 1 / len(m))
    torch.testing.assert_close(block, expected)


def test_swap_of_prompts_that_fill_the_window(tokenizer):
    full = " ".join(["a"] * 38)
    assert len(tokenizer(full).input_ids) == 40
    longer, shorter = full[:-1] + "b", full
    torch.testing.assert_close(swap_mapper(tokenizer, longer, shorter).sum(1), torch.ones(40))
    few = " ".join(["a"] * 20 + ["b"])
    many = " ".join(["a"] * 20 + [LONG])
    torch.testing.assert_close(swap_mapper(tokenizer, few, many).sum(1), torch.ones(40))
    torch.testing.assert_close(swap_mapper(tokenizer, many, few).sum(1), torch.ones(40))


def test_swap_needs_equally_many_words(tokenizer):
    with pytest.raises(EditbookError, match="refine"):
        swap_mapper(tokenizer, "a cat", "a golden cat")


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ("a cat on the beach", "a golden cat on the beach"),
        ("a golden cat on the beach", "a cat on the beach"),
        ("a cat", "a photo of a hippopotamus and a cat, in the snow"),
        ("a cat on the beach", "a fox in the snow"),
        ("", "a cat"),
    ],
)
def test_refine_is_a_monotone_one_hot_alignment_of_equal_tokens(tokenizer, source, target):
    mapper = refine_mapper(tokenizer, source, target)
    old, new = tokenizer(source).input_ids, tokenizer(target).input_ids
    assert set(mapper.unique().tolist()) <= {0.0, 1.0}
    assert mapper.sum(0).max() == 1
    inner = mapper[1 : len(old) - 1, 1 : len(new) - 1]
    pairs = [(a + 1, b + 1) for a, b in inner.nonzero().tolist()]
    assert all(old[a] == new[b] for a, b in pairs)
    assert all(p[0] < q[0] and p[1] < q[1] for p, q in pairwise(pairs))
    # Inner tokens meet inner tokens only; start meets start; end and padding have a partner each.
    assert mapper[1 : len(old) - 1].sum() == len(pairs)
    assert mapper[0].sum() == mapper[0, 0] == 1
    assert mapper[:, len(new) - 1 :].sum(0).eq(1).all()
    assert mapper[len(old) - 1, len(new) - 1] == 1


def test_refine_keeps_every_common_word_when_words_are_added(tokenizer):
    source, target = "a cat on the beach", "a golden cat with a crown on the beach"
    mapper = refine_mapper(tokenizer, source, target)
    for word in ("cat", "on", "the", "beach"):
        for a, b in zip(tokens_of(tokenizer, source, word), tokens_of(tokenizer, target, word), strict=True):
            assert mapper[a, b] == 1
    for word in ("golden", "with", "crown"):
        assert mapper[:, tokens_of(tokenizer, target, word)].sum() == 0
