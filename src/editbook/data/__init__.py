"""Benchmarks on disk, in the layouts in which they are published, all as `BenchTask`. Needs no torch."""

from .magicbrush import magicbrush
from .pie_bench import export, pie_bench
from .rle import decode, encode
from .tedbench import tedbench

__all__ = ["decode", "encode", "export", "magicbrush", "pie_bench", "tedbench"]
