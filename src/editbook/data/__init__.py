"""Benchmarks on disk, in the layouts in which they are published, all as `BenchTask`. Needs no torch.

Not every benchmark says everything:

    ==========================  =============  =============  ===========  ========  =========
    read by                     source prompt  target prompt  instruction  truth     types
    ==========================  =============  =============  ===========  ========  =========
    `pie_bench`                 yes            yes            yes          of ours   yes
    `magicbrush`, test set      yes            yes            yes          yes       no
    `magicbrush`, parquet       no             no             yes          yes       no
    `tedbench`                  no             yes            no           no        no
    `editval`                   yes            yes            no           no        its own
    ==========================  =============  =============  ===========  ========  =========

What is not there is "" (a prompt, the instruction) or None (the truth, `type_id`); `of_type` raises where there are no
types.

EditVal's questions are also asked of the pocket world, which has a benchmark in PIE-Bench's types of its own.
"""

from .editval import EDITVAL_TYPES, EditValEdit, EditValTask, editval
from .editval_world import WORLD_TYPES, Redrawn, editval_edit, editval_tasks
from .magicbrush import magicbrush
from .pie_bench import export, pie_bench
from .rle import decode, encode
from .tedbench import tedbench

__all__ = [
    "EDITVAL_TYPES",
    "WORLD_TYPES",
    "EditValEdit",
    "EditValTask",
    "Redrawn",
    "decode",
    "editval",
    "editval_edit",
    "editval_tasks",
    "encode",
    "export",
    "magicbrush",
    "pie_bench",
    "tedbench",
]
