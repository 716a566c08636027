"""Any inversion under any editor: every pair runs, and the source row keeps what the inversion promises."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from quick import QUICK, texts

import editbook
from editbook.errors import EditbookError
from editbook.inversion import INVERSIONS
from editbook.methods.base import REGISTRY, InvertingMethod

# Methods that inherit their __call__ differ from another one in defaults only; one of each will do.
EDITORS = sorted(
    name for name, method in REGISTRY.items() if issubclass(method, InvertingMethod) and "__call__" in vars(method)
)
REFUSED = {
    ("direct-inversion", "disentanglement-diffusion"),
    ("dynamic-prompt-learning", "diffedit"),  # which encodes under the empty prompt
    *(
        (i, "baret")
        for i in ("dynamic-prompt-learning", "null-text-inversion", "negative-prompt-inversion", "proxedit")
    ),
}
# They know no source prompt and invert under the target, so the source row of each target is one of its own.
UNDER_TARGET = {"baret"}
PAIRS = pytest.mark.parametrize(
    ("inversion", "editor"), sorted({(i, e) for i in INVERSIONS for e in EDITORS} - REFUSED)
)


def run(model, picture, editor, inversion, thing="fox", **options):
    seen = []
    edit = editbook.edit(
        model,
        picture,
        editor,
        **texts(editor, thing),
        inversion=inversion,
        steps=5,
        guidance_scale=3.0,
        callbacks=[seen.append],
        **QUICK.get(inversion, {}),
        **QUICK.get(editor, {}),
        **options,
    )
    return edit, seen


def test_there_is_something_to_combine():
    assert {"ddim-inversion", "prompt-to-prompt"} <= set(EDITORS)
    assert len(INVERSIONS) >= 3


@pytest.mark.parametrize(("inversion", "editor"), sorted(REFUSED))
def test_a_pair_that_cannot_work_says_so(random_model, picture, inversion, editor):
    with pytest.raises(EditbookError, match="cannot follow"):
        run(random_model, picture, editor, inversion)


@PAIRS
def test_every_pair_edits_and_leaves_the_source_row_alone(random_model, picture, inversion, editor):
    edit, seen = run(random_model, picture, editor, inversion)
    other, _ = run(random_model, picture, editor, inversion, thing="castle")
    assert all(torch.isfinite(step.z_next).all() for step in seen)
    same = np.array_equal(np.asarray(edit.reconstruction), np.asarray(other.reconstruction))
    assert same or editor in UNDER_TARGET
    assert edit.image.tobytes() != other.image.tobytes()
    assert edit.image.tobytes() != edit.reconstruction.tobytes()
    assert edit.nfe == other.nfe > 0


@PAIRS
def test_equation_9_holds_for_every_pair(random_model64, picture, inversion, editor):
    inverted = run(random_model64, picture, editor, inversion)[0].inversion
    gap = inverted.gap()
    size = gap.terms.abs().max().clamp_min(1)
    assert (gap.left - gap.right).abs().max() < 1e-8 * size
    assert len(gap.timesteps) == len(gap.left)
