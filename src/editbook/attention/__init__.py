"""Attention: which layers there are, reading their maps, changing them, and the words that they belong to."""

from .align import refine_mapper, swap_mapper, tokens_of, words_and_tokens
from .contrast import CrossImageAttention, IntegratedAttention, contrast
from .control import (
    Chain,
    Control,
    Projected,
    Site,
    Watcher,
    finest_levels,
    heights,
    map_height,
    null_of,
    sites,
    source_of,
)
from .features import Block, CaptureFeatures, Features, InjectFeatures, blocks, components
from .foreground import Foreground, WordForeground, at_grid
from .inject import InjectQueriesKeys, injection_place
from .maps import AttentionMaps, Capture, MeanMaps, smooth
from .stored import MaskedConcatenation, Pairs, Recorder, StoredAttention
from .swap import MutualSelfAttention, Swap

__all__ = [
    "AttentionMaps",
    "Block",
    "Capture",
    "CaptureFeatures",
    "Chain",
    "Control",
    "CrossImageAttention",
    "Features",
    "Foreground",
    "InjectFeatures",
    "InjectQueriesKeys",
    "IntegratedAttention",
    "MaskedConcatenation",
    "MeanMaps",
    "MutualSelfAttention",
    "Pairs",
    "Projected",
    "Recorder",
    "Site",
    "StoredAttention",
    "Swap",
    "Watcher",
    "WordForeground",
    "at_grid",
    "blocks",
    "components",
    "contrast",
    "finest_levels",
    "heights",
    "injection_place",
    "map_height",
    "null_of",
    "refine_mapper",
    "sites",
    "smooth",
    "source_of",
    "swap_mapper",
    "tokens_of",
    "words_and_tokens",
]
