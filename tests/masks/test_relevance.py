"""The relevance map: how it is normalised, and where the trained model puts it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import editbook
from editbook.errors import EditbookError
from editbook.masks import RelevanceMask, Subject, find_mask, without_outliers


def test_both_ends_are_attained_and_scale_and_offset_do_not_matter():
    difference = torch.rand(16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    relevance = without_outliers(difference)
    assert float(relevance.min()) == 0
    assert float(relevance.max()) == 1
    for other in (3 * difference, difference + 0.7):
        assert torch.allclose(without_outliers(other), relevance, atol=1e-6)


def test_one_hot_cell_hides_nothing():
    difference = torch.rand(16, 16, generator=torch.Generator().manual_seed(0))
    hot = difference.clone()
    hot[3, 3] = 100.0
    elsewhere = torch.ones(16, 16, dtype=torch.bool)
    elsewhere[3, 3] = False
    changed = (without_outliers(hot) - without_outliers(difference))[elsewhere].abs().max()
    stretched = (hot - hot.min()) / (hot.max() - hot.min())
    assert changed < 0.5
    assert stretched[elsewhere].max() < 0.02  # what the cut is for


def test_an_empty_instruction_is_relevant_nowhere(instruct_model, picture):
    assert RelevanceMask()(instruct_model, Subject(picture), "").max() == 0


def test_it_is_a_source_of_masks(instruct_model, picture):
    found = find_mask(instruct_model, picture, "relevance", {"maps": 2, "dilate": 1}, instruction="make it red", seed=3)
    assert found.name == "relevance"
    assert found.heat.shape == (16, 16)
    assert set(np.unique(found.mask)) == {0.0, 1.0}
    heat = RelevanceMask(maps=2)(instruct_model, Subject(picture, instruction="make it red", seed=3), "")
    assert np.array_equal(heat, found.heat)
    assert not np.array_equal(heat, RelevanceMask()(instruct_model, Subject(picture, instruction="make it red"), ""))


def test_wrong_models_and_options(random_model, instruct_model, picture):
    with pytest.raises(EditbookError, match="does not see"):
        find_mask(random_model, picture, "relevance", instruction="make it red")
    for options in ({"maps": 0}, {"strength": 1.0}, {"strength": 0.0}):
        with pytest.raises(EditbookError, match="relevance"):
            find_mask(instruct_model, picture, "relevance", options, instruction="make it red")
    with pytest.raises(EditbookError, match="takes nothing"):
        find_mask(instruct_model, picture, "relevance:cat", instruction="make it red")


def test_two_estimates_cost_two_evaluations_each(instruct_model, picture):
    before = instruct_model.nfe
    RelevanceMask(maps=3)(instruct_model, Subject(picture, instruction="make it red"), "")
    assert instruct_model.nfe == before + 6


def test_the_trained_model_looks_at_the_object(pocket_instruct):
    """Relevance of an object's edit is higher inside its exact mask than outside, in most of these tasks."""
    tasks = [t for kind in ("change colour", "change object") for t in editbook.pocket.bench().of_type(kind)[:6]]
    right = 0
    for task in tasks:
        heat = RelevanceMask(maps=4)(pocket_instruct, Subject(task.source_image, instruction=task.instruction), "")
        inside = task.mask.reshape(16, 4, 16, 4).mean((1, 3)) > 0.5
        right += heat[inside].mean() > 1.3 * heat[~inside].mean()
    assert right >= 9
