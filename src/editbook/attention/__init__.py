"""Attention: which layers there are, reading their maps, changing them, and the words that they belong to."""

from .align import refine_mapper, swap_mapper, tokens_of, words_and_tokens
from .control import Chain, Control, Projected, Site, sites
from .maps import AttentionMaps, Capture
from .swap import MutualSelfAttention, Swap

__all__ = [
    "AttentionMaps",
    "Capture",
    "Chain",
    "Control",
    "MutualSelfAttention",
    "Projected",
    "Site",
    "Swap",
    "refine_mapper",
    "sites",
    "swap_mapper",
    "tokens_of",
    "words_and_tokens",
]
