"""A small folder in PIE-Bench's published layout, made of noise."""

from __future__ import annotations

import json

import pytest
from published import write_picture


@pytest.fixture
def pie_folder(tmp_path):
    """Two entries as PIE-Bench publishes them."""
    entries = {
        "000000000000": {
            "image_path": "0_random_140/000000000000.jpg",
            "original_prompt": "a slanted bicycle on the road",
            "editing_prompt": "a slanted [rusty] bicycle on the road",
            "editing_instruction": "Make the bicycle rusty",
            "editing_type_id": "0",
            "blended_word": "bicycle bicycle",
            "mask": [512 * 100 + 50, 20, 512 * 101 + 50, 700],
        },
        "111000000000": {
            "image_path": "1_change_object_80/1_artificial/1_animal/111000000000.jpg",
            "original_prompt": "a [cat] on a wall",
            "editing_prompt": "a [dog] on a wall",
            "editing_instruction": "turn the cat into a dog",
            "editing_type_id": "1",
            "blended_word": "",
            "mask": [],
        },
    }
    for seed, entry in enumerate(entries.values()):
        write_picture(tmp_path / "annotation_images" / entry["image_path"], seed=seed)
    (tmp_path / "mapping_file.json").write_text(json.dumps(entries))
    return tmp_path
