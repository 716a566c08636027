"""Figures of the book: rows of pictures, heat over pictures, both sides of Eq. 9."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patheffects import withStroke
from matplotlib.ticker import LogLocator, NullLocator
from matplotlib.transforms import Bbox
from PIL import Image

from .errors import EditbookError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from .attention import AttentionMaps
    from .inversion import Gap
    from .pocket import BenchTask
    from .result import Edit

TRUTH = "#1a7f37"
"""The colour of the frame around an exact truth, everywhere in the book."""


def pictures(
    images: Sequence[Any],
    titles: Sequence[str] | None = None,
    *,
    columns: int | None = None,
    truth: Sequence[int] = (),
    side: float = 1.7,
    cmap: str = "gray",
) -> Figure:
    """Pictures (or float maps in [0, 1]) in a grid, pixels left sharp.

    Args:
        images: PIL pictures, or arrays; two-dimensional arrays are drawn in grey.
        titles: One for each, or None.
        columns: Pictures in a row; None puts all in one row.
        truth: Positions of exact truths, which get a green frame.
        side: Inches of one picture.
        cmap: Colour map of two-dimensional arrays.
    """
    if not len(images):
        raise EditbookError("There are no pictures to draw.")
    columns = columns or len(images)
    rows = -(-len(images) // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(side * columns, (side + 0.35) * rows), squeeze=False, layout="constrained"
    )
    for axis in axes.flat:
        axis.axis("off")
    for k, (axis, image) in enumerate(zip(axes.flat, images, strict=False)):
        array = np.asarray(image)
        axis.imshow(array, cmap=cmap, vmin=0, vmax=1 if array.ndim == 2 else None, interpolation="nearest")
        if titles is not None:
            axis.set_title(titles[k], fontsize=8, wrap=True, color=TRUTH if k in truth else "black")
        if k in truth:
            frame(axis)
    return _done(figure)


def _done(figure: Figure) -> Figure:
    """Closed, so that a notebook shows the figure once, as the cell's value, and not again at its end."""
    plt.close(figure)
    return figure


def frame(axis: Axes, colour: str = TRUTH) -> None:
    """A coloured frame around one picture."""
    axis.axis("on")
    axis.set(xticks=[], yticks=[])
    for spine in axis.spines.values():
        spine.set(color=colour, linewidth=3)


def edit_row(edit: Edit, truth: Image.Image | None = None) -> Figure:
    """Source, reconstruction, mask, result and, where it is known, the exact truth."""
    row: list[tuple[str, Any]] = [("source", edit.source_image)]
    if edit.reconstruction is not None:
        row.append(("reconstruction", edit.reconstruction))
    if edit.mask is not None:
        row.append(("mask", edit.mask))
    row.append((f"{edit.settings.get('method', 'edit')}", edit.image))
    if truth is not None:
        row.append(("exact truth", truth))
    titles, images = zip(*row, strict=True)
    return pictures(images, titles, truth=[len(row) - 1] if truth is not None else ())


def task_grid(tasks: Sequence[BenchTask], made: Mapping[str, Mapping[str, Any]], *, side: float = 0.95) -> Figure:
    """A row for each task: the source, what each entry made of it, and the exact truth.

    Args:
        tasks: What was asked for.
        made: Of each entry, its pictures by the id of the task. White stands where it has none: it refused the task.
        side: Inches of one picture.
    """
    shown: list[Any] = []
    titles: list[str] = []
    for task in tasks:
        none = np.ones((task.source_image.height, task.source_image.width))
        shown += [task.source_image, *(found.get(task.id, none) for found in made.values()), task.truth]
        titles += [task.edit_type, *(name.replace("-", "-\n", 1) for name in made), "exact truth"]
    width = len(made) + 2
    return pictures(shown, titles, columns=width, truth=range(width - 1, len(shown), width), side=side)


def picture_table(
    rows: Sequence[str], columns: Sequence[str], images: Mapping[tuple[str, str], Any], *, side: float = 0.75
) -> Figure:
    """Pictures in the rows and columns of a table, with names at its left and upper edge.

    Args:
        rows: Names from top to bottom.
        columns: Names from left to right.
        images: By row and column; where there is none, the place is left white.
        side: Inches of one picture.
    """
    size = (side * len(columns) + 1.6, side * len(rows) + 1.1)
    figure, axes = plt.subplots(len(rows), len(columns), figsize=size, squeeze=False, layout="constrained")
    for row, line in zip(rows, axes, strict=True):
        line[0].set_ylabel(row, rotation=0, ha="right", va="center", fontsize=8)
        for column, axis in zip(columns, line, strict=True):
            axis.set(xticks=[], yticks=[], frame_on=False)
            if (row, column) in images:
                axis.imshow(np.asarray(images[row, column]), interpolation="nearest")
    for column, axis in zip(columns, axes[0], strict=True):
        axis.set_title(column, loc="left", rotation=45, va="bottom", fontsize=8)
    return _done(figure)


def overlay(heat_map: np.ndarray, image: Image.Image, opacity: float = 0.65) -> Image.Image:
    """A map in [0, 1] laid as heat over a picture."""
    heat_picture = Image.fromarray((plt.get_cmap("inferno")(heat_map)[..., :3] * 255).astype(np.uint8))
    scale = max(1, -(-256 // max(image.size)))
    size = (image.width * scale, image.height * scale)
    return Image.blend(
        image.convert("RGB").resize(size, Image.Resampling.NEAREST),
        heat_picture.resize(size, Image.Resampling.BICUBIC),
        opacity,
    )


def heat(heat_map: np.ndarray, image: Image.Image | None = None, title: str = "") -> Figure:
    """One map, over a picture if one is given."""
    return pictures([heat_map if image is None else overlay(heat_map, image)], [title], cmap="inferno")


def words(maps: AttentionMaps, chosen: Sequence[str], image: Image.Image, *, row: int = 0, **options: Any) -> Figure:
    """The maps of several words of one prompt, over the picture; options as in `AttentionMaps.map`."""
    drawn = [overlay(maps.map(word, row=row, **options), image) for word in chosen]
    return pictures([image, *drawn], ["picture", *chosen])


def correspondences(
    asking: Any,
    answering: Any,
    matches: Sequence[tuple[tuple[float, float], Sequence[tuple[float, float]], Sequence[float]]],
    titles: tuple[str, str] = ("asks", "answers"),
    *,
    side: float = 2.6,
) -> Figure:
    """Two pictures, and lines from points of the first to the points of the second that answer them.

    Args:
        asking: The picture, PIL or array, whose points ask.
        answering: The picture whose points answer; it may have another size.
        matches: For each asking point (x, y) the answering points (x, y), and the weight of each. Points are fractions
            of the width and height of their picture, from the top left; lines are drawn the bolder the larger a weight
            is beside the largest of its match.
        titles: Of the two pictures.
        side: Inches of one picture.

    Raises:
        EditbookError: A match has no answering points, or not as many weights.
    """
    from matplotlib.patches import ConnectionPatch

    for k, (_, keys, weights) in enumerate(matches):
        if not len(keys) or len(keys) != len(weights):
            raise EditbookError(f"Match {k} has {len(keys)} points and {len(weights)} weights: give one for each.")
    figure, axes = plt.subplots(1, 2, figsize=(2 * side + 0.6, side + 0.35), layout="constrained")
    sizes = []
    for axis, image, title in zip(axes, (asking, answering), titles, strict=True):
        array = np.asarray(image)
        sizes.append((array.shape[1], array.shape[0]))
        axis.imshow(array, cmap="gray", interpolation="nearest")
        axis.set_title(title, fontsize=8)
        axis.axis("off")
    for k, (query, keys, weights) in enumerate(matches):
        # Pixel centres are whole numbers in matplotlib.
        start, *ends = (
            (x * width - 0.5, y * height - 0.5)
            for (x, y), (width, height) in [(query, sizes[0]), *((key, sizes[1]) for key in keys)]
        )
        axes[0].plot(*start, "o", color=f"C{k}", markeredgecolor="white", markersize=7)
        strengths = np.asarray(weights, float)
        for end, weight in zip(ends, (strengths / strengths.max()).tolist(), strict=True):
            axes[1].plot(*end, "o", color=f"C{k}", markeredgecolor="white", markersize=3 + 3 * weight)
            line = ConnectionPatch(
                start, end, "data", "data", axesA=axes[0], axesB=axes[1], color=f"C{k}", linewidth=0.4 + 1.6 * weight
            )
            line.set(alpha=0.25 + 0.65 * weight, in_layout=False)
            figure.add_artist(line)
    return _done(figure)


def eq9(gaps: dict[str, Gap]) -> Figure:
    """Both sides of the survey's Eq. 9 (corrected), root mean square over the latent, against the timestep."""
    figure, axis = plt.subplots(figsize=(6, 3.2), layout="constrained")
    # The right side lies on the left one wherever the identity holds: dashes on a broad pale line show both.
    left_style: dict[str, Any] = {"linestyle": "-", "linewidth": 3, "alpha": 0.4}
    right_style: dict[str, Any] = {"linestyle": "--", "linewidth": 1.5}
    for k, (name, gap) in enumerate(gaps.items()):
        left, right = gap.norms()
        axis.plot(gap.timesteps, left, color=f"C{k}", label=name, **left_style)
        axis.plot(gap.timesteps, right, color=f"C{k}", **right_style)
    axis.plot([], [], color="grey", label="left side", **left_style)
    axis.plot([], [], color="grey", label="right side", **right_style)
    axis.invert_xaxis()
    axis.set(xlabel="timestep t (sampling runs to the right)", ylabel="RMS of (z − z*) / √ᾱ")
    # Above, since curves may be anywhere; three to a line, since names are long.
    figure.legend(loc="outside upper center", ncols=3, fontsize=8, frameon=False)
    return _done(figure)


def curves(
    x: Sequence[float],
    lines: dict[str, Sequence[float]],
    xlabel: str,
    ylabel: str,
    *,
    logarithmic: bool = False,
    marks: str = "o-",
) -> Figure:
    """Named curves over one axis, logarithmic on both axes if asked."""
    figure, axis = plt.subplots(figsize=(5.6, 3.0), layout="constrained")
    for name, values in lines.items():
        axis.plot(x, values, marks, label=name, markersize=4)
    if logarithmic:
        axis.set(xscale="log", yscale="log")
        axis.set_xticks(list(x), [f"{value:g}" for value in x])
        low, high = axis.get_ylim()
        if high < 100 * low:  # powers of ten alone would be two labels
            axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.yaxis.set_major_formatter("{x:g}")
        axis.minorticks_off()
    elif np.issubdtype(np.asarray(x).dtype, np.integer):
        axis.locator_params(axis="x", integer=True)  # no step 2.5
    axis.set(xlabel=xlabel, ylabel=ylabel)
    axis.grid(alpha=0.3)
    if len(lines) > 1:
        axis.legend(fontsize=8)
    return _done(figure)


def scatter(points: dict[str, tuple[float, float]], xlabel: str, ylabel: str, *, front: bool = True) -> Figure:
    """Named points over a logarithmic axis; those that nothing beats are joined: smaller x and larger y is better."""
    figure, axis = plt.subplots(figsize=(7.0, 4.2), layout="constrained")
    best = [
        name
        for name, (x, y) in points.items()
        if not any((a <= x and b >= y) and (a, b) != (x, y) for a, b in points.values())
    ]
    for name, (x, y) in points.items():
        axis.plot(x, y, "o", color=TRUTH if name in best and front else "C0")
    if front:
        line = sorted(points[name] for name in best)
        axis.plot(*zip(*line, strict=True), "-", color=TRUTH, alpha=0.5, linewidth=1)
    axis.set(xscale="log", xlabel=xlabel, ylabel=ylabel)
    axis.margins(0.12)
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.grid(alpha=0.3)
    _label(figure, axis, points)
    return _done(figure)


# Where a label may stand from its point, in points, the first that is free: right, left, above, below.
_PLACES = [
    (x, y, side)
    for y in (4, -4, 11, -11, 20, -20, 30, -30, 40, -40)
    for x, side in ((6, "left"), (-6, "right"), (0, "center"))
    if abs(y) > 10 or x
]


def _label(figure: Figure, axis: Axes, points: Mapping[str, tuple[float, float]]) -> None:
    """Names beside points so that they cover neither each other nor a point, as far as there is room."""
    figure.draw_without_rendering()
    dots = axis.transData.transform(list(points.values()))
    taken = [Bbox.from_bounds(x - 4, y - 4, 8, 8) for x, y in dots]
    for name, at in points.items():
        label = axis.annotate(name, at, (0, 0), textcoords="offset points", fontsize=7.5, va="center")
        label.set_in_layout(False)  # or the axes would shrink, and all be moved, for it
        label.set_path_effects([withStroke(linewidth=2, foreground="white")])
        for x, y, side in _PLACES:
            label.set(position=(x, y), ha=side)
            box = label.get_window_extent()
            if axis.bbox.containsx(box.x0) and axis.bbox.containsx(box.x1) and not box.count_overlaps(taken):
                break
        taken.append(box)


def matrix(values: np.ndarray, rows: Sequence[str], columns: Sequence[str], title: str = "") -> Figure:
    """A small matrix with named rows and columns, e.g. the token mapper of Prompt-to-Prompt."""
    figure, axis = plt.subplots(figsize=(0.45 * len(columns) + 1.2, 0.38 * len(rows) + 1.0), layout="constrained")
    axis.imshow(values, cmap="Blues", vmin=0, vmax=1)
    axis.set_xticks(range(len(columns)), columns, rotation=60, ha="right", fontsize=8)
    axis.set_yticks(range(len(rows)), rows, fontsize=8)
    axis.set_title(title, fontsize=9)
    return _done(figure)


def source(thing: Any) -> Any:
    """The library's own source of a function or class, without docstrings, as a code block on the page."""
    import ast
    import inspect
    import textwrap

    from IPython.display import Markdown

    text = textwrap.dedent(inspect.getsource(thing))
    lines = text.splitlines()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and ast.get_docstring(node) is not None:
            docstring = node.body[0]
            for line in range(docstring.lineno - 1, docstring.end_lineno or docstring.lineno):
                lines[line] = "\0"
    return Markdown("```python\n" + "\n".join(line for line in lines if line != "\0") + "\n```")
