"""Words to tokens, and the tokens of one prompt to those of another (Hertz et al. 2022, Prompt-to-Prompt)."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import torch

from ..errors import EditbookError, unknown


def tokens_of(tokenizer: Any, prompt: str, word: str, occurrence: int | None = None) -> list[int]:
    """Positions of a word's tokens in a prompt's token sequence; 0 is the start token.

    Args:
        tokenizer: A fast tokenizer, which knows where in the text each token came from.
        prompt: The text.
        word: A word, or several words that follow each other, in any capitals.
        occurrence: Which one, from 0, if the word stands there more than once; None takes all.

    Raises:
        EditbookError: The word is not in the prompt; the nearest word is suggested.
    """
    spans = [match.span() for match in re.finditer(rf"(?<!\w){re.escape(word)}(?!\w)", prompt, re.IGNORECASE)]
    if occurrence is not None:
        spans = spans[occurrence : occurrence + 1]
    if not spans or not word.strip():
        raise unknown(f"word (the prompt is {prompt!r})", word, set(re.findall(r"\w[\w'-]*", prompt.lower())))
    offsets = tokenizer(prompt, return_offsets_mapping=True)["offset_mapping"]
    return [
        position
        for position, (start, end) in enumerate(offsets)
        if any(start < stop and end > begin and start < end for begin, stop in spans)
    ]


def words_and_tokens(tokenizer: Any, prompt: str) -> list[tuple[str, list[int]]]:
    """The words of a prompt, in order, each with the positions of its tokens (punctuation stays with its word)."""
    offsets = tokenizer(prompt, return_offsets_mapping=True)["offset_mapping"]
    return [
        (
            match.group(),
            [
                k
                for k, (start, end) in enumerate(offsets)
                if start < match.end() and end > match.start() and start < end
            ],
        )
        for match in re.finditer(r"\S+", prompt)
    ]


def swap_mapper(tokenizer: Any, source: str, target: str) -> torch.Tensor:
    """M of P2P's word swap, (source tokens, target tokens): the target's map is the source's times M.

    Unchanged words meet themselves. A changed word of k source and l target tokens is paired one to one if k = l;
    else each source token spreads evenly, 1 / l, over the target's. Every row of M sums to 1, so attention stays a
    distribution. Tokens after a word that became longer or shorter still meet themselves (the official aligner
    shifts them).

    Raises:
        EditbookError: The prompts differ in their number of words.
    """
    old, new = words_and_tokens(tokenizer, source), words_and_tokens(tokenizer, target)
    if len(old) != len(new):
        raise EditbookError(
            f"A word swap needs prompts of equally many words, got {len(old)} and {len(new)}; use the refinement "
            "(edit='refine') when words are added or dropped."
        )
    limit = tokenizer.model_max_length
    mapper = torch.zeros(limit, limit)
    end_old, end_new = _end(tokenizer, source), _end(tokenizer, target)
    pairs = [([0], [0]), *((k, m) for (_, k), (_, m) in zip(old, new, strict=True)), ([end_old], [end_new])]
    for k, m in [*pairs, (list(range(end_old + 1, limit)), list(range(end_new + 1, limit)))]:
        if len(k) == len(m):
            mapper[k, m] = 1
        elif k and m:
            mapper[np.ix_(k, m)] = 1 / len(m)
        elif k:  # the target fills the whole window: its end token takes what the source's padding held
            mapper[k, end_new] = 1
    return mapper


def refine_mapper(tokenizer: Any, source: str, target: str) -> torch.Tensor:
    """M of P2P's refinement, (source tokens, target tokens): column j is one-hot at the source token that j is.

    Columns of new tokens are zero: they keep their own map. Tokens are aligned globally (Needleman and Wunsch 1970;
    gap 0, match 1, mismatch -1).
    """
    old, new = tokenizer(source).input_ids[1:-1], tokenizer(target).input_ids[1:-1]
    score = np.zeros((len(old) + 1, len(new) + 1), int)
    for i, a in enumerate(old, 1):
        for j, b in enumerate(new, 1):
            score[i, j] = max(score[i - 1, j - 1] + (1 if a == b else -1), score[i - 1, j], score[i, j - 1])
    limit = tokenizer.model_max_length
    mapper = torch.zeros(limit, limit)
    mapper[0, 0] = 1
    i, j = len(old), len(new)
    while i and j:
        if old[i - 1] == new[j - 1] and score[i, j] == score[i - 1, j - 1] + 1:
            mapper[i, j] = 1
            i, j = i - 1, j - 1
        elif score[i, j] == score[i - 1, j]:
            i -= 1
        elif score[i, j] == score[i, j - 1]:
            j -= 1
        else:  # a mismatch that scored best: neither token has a partner
            i, j = i - 1, j - 1
    end_old, end_new = _end(tokenizer, source), _end(tokenizer, target)
    for offset, column in enumerate(range(end_new, limit)):  # end meets end, padding meets padding
        mapper[min(end_old + offset, limit - 1), column] = 1
    return mapper


def _end(tokenizer: Any, prompt: str) -> int:
    """The position of the end token."""
    return len(tokenizer(prompt).input_ids) - 1
