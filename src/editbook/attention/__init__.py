"""Attention: which layers there are, reading their maps, changing them, and the words that they belong to."""

from .align import refine_mapper, swap_mapper, tokens_of, words_and_tokens
from .control import Chain, Control, Projected, Site, heights, map_height, sites, source_of
from .features import Block, Features, InjectFeatures, blocks
from .maps import AttentionMaps, Capture, MeanMaps, smooth
from .swap import MutualSelfAttention, Swap

__all__ = [
    "AttentionMaps",
    "Block",
    "Capture",
    "Chain",
    "Control",
    "Features",
    "InjectFeatures",
    "MeanMaps",
    "MutualSelfAttention",
    "Projected",
    "Site",
    "Swap",
    "blocks",
    "heights",
    "map_height",
    "refine_mapper",
    "sites",
    "smooth",
    "source_of",
    "swap_mapper",
    "tokens_of",
    "words_and_tokens",
]
