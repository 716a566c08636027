"""The pocket model's tokenizer: CLIP's byte-level BPE with a small vocabulary, learned from the world's sentences."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTokenizer

from ..pocket import corpus

START, END = "<|startoftext|>", "<|endoftext|>"
MAX_LENGTH = 40
# CLIP's own splitting rule: contractions, words, single digits, runs of other signs.
_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


def learn_merges(lines: list[str], merges: int) -> list[tuple[str, str]]:
    """The most frequent pairs of symbols, in order (Sennrich et al. 2016)."""
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    bpe.normalizer = normalizers.Lowercase()
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PATTERN), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=512 + merges, end_of_word_suffix="</w>", initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    bpe.train_from_iterator(lines, trainer)
    pairs = json.loads(bpe.to_str())["model"]["merges"]
    return [tuple(pair) for pair in pairs][:merges]


def train_tokenizer(folder: Path, *, sentences: int = 30_000, merges: int = 768) -> CLIPTokenizer:
    """Learn the vocabulary from captions, instructions and quality phrases, and save it as a CLIP tokenizer.

    Every byte is a token of its own, in the middle and at the end of a word, so any text can be written.
    """
    pairs = learn_merges(corpus(sentences), merges)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*alphabet, *(f"{symbol}</w>" for symbol in alphabet), *("".join(pair) for pair in pairs)]
    vocabulary = {token: number for number, token in enumerate(dict.fromkeys([*tokens, START, END]))}
    tokenizer = CLIPTokenizer(
        vocab=vocabulary,
        merges=pairs,
        bos_token=START,
        eos_token=END,
        unk_token=END,
        pad_token=END,
        model_max_length=MAX_LENGTH,
    )
    tokenizer.save_pretrained(folder)
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in pairs), ""]
    (folder / "merges.txt").write_text("\n".join(lines), encoding="utf-8")
    return tokenizer
