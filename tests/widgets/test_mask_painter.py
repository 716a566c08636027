"""The painter's array, its clicks, and the widget in a real browser with a live kernel."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import textwrap
import time
import urllib.request

import numpy as np
import pytest
from PIL import Image

from editbook.errors import EditbookError
from editbook.widgets import MaskPainter, mask_painter

PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8))


def boxes(x, y):
    """Three answers to a click, from small to large, as a segmenter gives them."""
    masks = np.zeros((3, 48, 64), bool)
    for k, reach in enumerate((2, 5, 9)):
        masks[k, max(0, y - reach) : y + reach + 1, max(0, x - reach) : x + reach + 1] = True
    return masks


def test_it_starts_empty_and_has_the_pictures_size():
    painter = mask_painter(PICTURE, segmenter=None)
    assert painter.array.shape == (48, 64)
    assert painter.array.dtype == np.float32
    assert not painter.array.any()
    assert not painter.clicks


def test_what_the_page_sends_is_the_array():
    painter = mask_painter(PICTURE, segmenter=None)
    sent = np.zeros((48, 64), np.uint8)
    sent[3, 60] = 255  # row 3, column 60: neither transposed nor flipped
    painter.set_state({"mask": memoryview(sent.tobytes())})
    assert painter.array[3, 60] == 1
    assert painter.array.sum() == 1


def test_an_array_can_be_given_back():
    painter = mask_painter(PICTURE, segmenter=None)
    mask = np.random.default_rng(1).random((48, 64)) > 0.5
    painter.array = mask
    assert np.array_equal(painter.array, mask.astype(np.float32))
    with pytest.raises(EditbookError, match="shape"):
        painter.array = mask.T


def test_a_click_adds_an_object_and_the_same_place_gives_the_next_answer():
    painter = MaskPainter(PICTURE, boxes)
    painter.click(20, 30)
    assert np.array_equal(painter.array > 0, boxes(20, 30)[0])
    painter.click(20, 30)
    assert np.array_equal(painter.array > 0, boxes(20, 30)[1])
    painter.click(50, 10)
    assert np.array_equal(painter.array > 0, boxes(20, 30)[1] | boxes(50, 10)[0])
    painter.click(50, 10)
    painter.click(50, 10)
    painter.click(50, 10)
    assert np.array_equal(painter.array > 0, boxes(20, 30)[1] | boxes(50, 10)[0])


def test_what_goes_wrong_is_said_on_the_page_or_raised():
    painter = MaskPainter(PICTURE, lambda x, y: np.zeros((3, 48, 64), bool))
    with pytest.raises(EditbookError, match="Nothing was found"):
        painter.click(1, 1)
    with pytest.raises(EditbookError, match="outside the picture"):
        painter.click(64, 10)
    painter._on_message(None, {"kind": "click", "x": 1, "y": 1}, [])
    assert "Nothing was found" in painter.message
    with pytest.raises(EditbookError, match="no segmenter"):
        mask_painter(PICTURE, segmenter=None).click(1, 1)
    with pytest.raises(EditbookError, match="at least 64"):
        mask_painter(PICTURE, segmenter=None, side=10)


NOTEBOOK = """
import numpy as np
from PIL import Image
from editbook.widgets import MaskPainter

def boxes(x, y):
    masks = np.zeros((1, 48, 64), bool)
    masks[0, y - 3 : y + 4, x - 3 : x + 4] = True
    return masks

painter = MaskPainter(Image.new("RGB", (64, 48), "skyblue"), boxes, side=384)
painter.observe(lambda change: np.save("mask.npy", painter.array), "mask")
painter
"""


def _wait(condition, seconds=60.0):
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "the browser or the kernel did not answer"
        time.sleep(0.2)
    return found


@pytest.mark.slow
def test_drawing_erasing_and_clicking_in_a_real_browser_reach_the_kernel(tmp_path):
    pytest.importorskip("jupyterlab")
    playwright = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium on this machine")
    cell = {"cell_type": "code", "execution_count": None, "id": "a", "metadata": {}, "outputs": []}
    kernel = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    notebook = {"cells": [{**cell, "source": textwrap.dedent(NOTEBOOK)}], "metadata": kernel}
    (tmp_path / "paint.ipynb").write_text(json.dumps({**notebook, "nbformat": 4, "nbformat_minor": 5}))
    settings = ("--no-browser", "--allow-root", "--ServerApp.token=t", "--ServerApp.port=8917")
    server = subprocess.Popen(
        [sys.executable, "-m", "jupyterlab", *settings],
        cwd=tmp_path,
        env={**os.environ, "JUPYTER_CONFIG_DIR": str(tmp_path / "config")},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )

    def answers():
        try:
            return urllib.request.urlopen("http://localhost:8917/api?token=t", timeout=2).status == 200
        except OSError:
            return False

    def painted():
        try:
            return np.load(tmp_path / "mask.npy") > 0
        except (OSError, ValueError, EOFError):
            return None

    def settled(test):
        return _wait(lambda: (mask := painted()) is not None and test(mask) and (mask,))[0]

    try:
        _wait(answers)
        with playwright.sync_playwright() as play:
            flags = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking"]
            browser = play.chromium.launch(executable_path=chromium, args=flags)
            page = browser.new_page(viewport={"width": 1200, "height": 900})
            page.goto("http://localhost:8917/lab/tree/paint.ipynb?token=t")
            page.locator(".jp-CodeCell .cm-content").first.click(timeout=60_000)
            page.locator(".jp-mod-idle, [data-status=idle]").first.wait_for(state="attached", timeout=60_000)
            page.keyboard.press("Shift+Enter")
            canvas = page.locator(".mask-painter canvas")
            canvas.wait_for(timeout=60_000)
            canvas.scroll_into_view_if_needed()
            box = canvas.bounding_box()
            scale = box["width"] / 64

            def at(x, y):
                return box["x"] + x * scale, box["y"] + y * scale

            def drag(start, end):
                page.mouse.move(*at(*start))
                page.mouse.down()
                page.mouse.move(*at(*end), steps=8)
                page.mouse.up()

            drag((10, 12), (50, 12))
            drawn = settled(lambda mask: mask.any())
            rows, columns = np.nonzero(drawn)
            assert abs(rows.mean() + 0.5 - 12) < 1
            assert columns.min() <= 10
            assert columns.max() >= 49
            assert rows.max() - rows.min() <= 5  # the brush is 4 pixels wide
            page.locator("[data-tool=erase]").click()
            drag((30, 8), (30, 16))
            erased = settled(lambda mask: mask.sum() < drawn.sum())
            assert not erased[10:14, 30].any()
            assert (drawn | ~erased).all()
            page.locator("[data-tool=click]").click()
            page.mouse.click(*at(20.5, 35.5))
            clicked = settled(lambda mask: mask.sum() > erased.sum())
            assert clicked[32:39, 17:24].all()
            assert (clicked & ~erased).sum() == 49
            page.locator("[data-do=undo]").click()
            assert np.array_equal(settled(lambda mask: mask.sum() < clicked.sum()), erased)
            page.locator("[data-do=clear]").click()
            settled(lambda mask: not mask.any())
            assert "0.0 %" in page.locator(".mask-painter .note").inner_text()
            if os.environ.get("EDITBOOK_SCREENSHOT"):
                drag((10, 12), (50, 40))
                page.screenshot(path=os.environ["EDITBOOK_SCREENSHOT"])
            browser.close()
    finally:
        server.terminate()
        server.wait(20)
