"""The slider turns every picture, and its frames are the pictures that it was given."""

from __future__ import annotations

import base64
import html
import io
import json
import re

import numpy as np
import pytest
from PIL import Image

from editbook.errors import EditbookError
from editbook.stepper import stepper


def frames(count, shade=0):
    return [Image.new("RGB", (8, 8), (20 * k, shade, 0)) for k in range(count)]


def test_every_frame_is_in_its_strip_in_order():
    text = stepper({"one": frames(4), "other": frames(4, 99)}, list("abcd")).data
    strips = [base64.b64decode(part) for part in re.findall(r"base64,([^)]+)\)", text)]
    assert len(strips) == 2
    for data, given in zip(strips, (frames(4), frames(4, 99)), strict=True):
        strip = np.asarray(Image.open(io.BytesIO(data)))
        assert np.array_equal(strip, np.concatenate([np.asarray(frame) for frame in given]))


def test_it_begins_where_it_is_told_and_knows_its_labels():
    text = stepper({"<z_t>": frames(3)}, ["t = 9", 't = "5"', "t < 1"], start=2).data
    assert "background-position:0 100.0%" in text
    assert 'max="2" value="2"' in text
    assert json.loads(html.unescape(re.search(r'data-labels="([^"]*)"', text)[1])) == ["t = 9", 't = "5"', "t < 1"]
    assert "<output>t &lt; 1</output>" in text
    assert 'aria-label="&lt;z_t&gt;"' in text
    assert not re.search(r"https?:", text)


@pytest.mark.parametrize(
    ("strips", "labels", "options", "message"),
    [
        ({"a": frames(3), "b": frames(2)}, list("abc"), {}, "as many frames"),
        ({"a": frames(3)}, [], {}, "as many frames"),
        ({"a": frames(3)}, list("abc"), {"start": 3}, "from 0 to 2"),
        ({"a": [*frames(2), Image.new("RGB", (4, 4))]}, list("abc"), {}, "one size"),
    ],
)
def test_bad_input_raises(strips, labels, options, message):
    with pytest.raises(EditbookError, match=message):
        stepper(strips, labels, **options)
