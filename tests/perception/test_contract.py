"""What every segmenter and grounder promises: the pocket's, the oracle, and the real ones with small random weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers

from editbook.errors import EditbookError
from editbook.perception import SceneOracle, load_grounder, load_segmenter
from editbook.pocket import Scene, Thing

SCENE = Scene("meadow", (Thing("cat", x=0.27, size=0.42), Thing("car", colour="red", x=0.73, size=0.42)))


@pytest.fixture(scope="module")
def sam_folder(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("sam")
    same = {"image_size": 64, "patch_size": 8, "hidden_size": 16}
    vision = {"output_channels": 16, "num_attention_heads": 2, "window_size": 4, "global_attn_indexes": [1]}
    decoder = {"mlp_dim": 32, "num_attention_heads": 2, "iou_head_hidden_dim": 16}
    config = transformers.SamConfig(
        vision_config={**same, **vision, "num_hidden_layers": 2, "mlp_dim": 32, "num_pos_feats": 8},
        prompt_encoder_config={**same, "mask_input_channels": 4},
        mask_decoder_config={"hidden_size": 16, "num_hidden_layers": 2, **decoder},
    )
    transformers.SamModel(config).save_pretrained(folder)
    pictures = transformers.SamImageProcessor(
        size={"longest_edge": 64},
        pad_size={"height": 64, "width": 64},
        mask_size={"longest_edge": 32},
        mask_pad_size={"height": 32, "width": 32},
    )
    transformers.SamProcessor(pictures).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def dino_folder(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("grounding-dino")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", "?", "a", "cat", "car", "dog", "red"]
    (folder / "vocab.txt").write_text("\n".join(words))
    backbone = transformers.SwinConfig(
        image_size=64,
        window_size=2,
        embed_dim=8,
        depths=[1] * 4,
        num_heads=[1] * 4,
        out_features=["stage2", "stage3", "stage4"],
    )
    text = transformers.BertConfig(
        vocab_size=len(words),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=64,
    )
    sizes = {f"{side}_{what}": n for side in ("encoder", "decoder") for what, n in (("layers", 2), ("ffn_dim", 16))}
    config = transformers.GroundingDinoConfig(
        backbone_config=backbone,
        text_config=text,
        d_model=32,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        num_queries=10,
        max_text_len=32,
        disable_custom_kernels=True,
        **sizes,
    )
    transformers.GroundingDinoForObjectDetection(config).save_pretrained(folder)
    tokenizer = transformers.BertTokenizerFast(vocab=str(folder / "vocab.txt"))
    pictures = transformers.GroundingDinoImageProcessor(size={"shortest_edge": 128, "longest_edge": 160})
    transformers.GroundingDinoProcessor(pictures, tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture(params=["pocket", "oracle", "real"])
def segmenter(request):
    if request.param == "oracle":
        return SceneOracle(SCENE)
    return load_segmenter("pocket" if request.param == "pocket" else request.getfixturevalue("sam_folder"))


@pytest.fixture(params=["pocket", "oracle", "real"])
def grounder(request):
    if request.param == "oracle":
        return SceneOracle(SCENE)
    if request.param == "pocket":
        return load_grounder()
    found = load_grounder(request.getfixturevalue("dino_folder"))
    found.threshold = found.text_threshold = 0.0  # its weights are random: take whatever there is
    return found


@pytest.fixture(params=[64, 96])
def picture(request):
    return SCENE.image(request.param)


def check(masks, scores, count, picture):
    assert masks.dtype == bool
    assert masks.shape == (count, picture.height, picture.width)
    assert scores.shape == (count,)
    assert scores.dtype == np.float32
    assert ((scores >= 0) & (scores <= 1)).all()


def test_three_masks_for_clicks(segmenter, picture):
    side = picture.width
    points = np.array([(0.73, 0.78), (0.27, 0.75)]) * side
    masks, scores = segmenter.segment(picture, points=points, labels=[1, 0])
    check(masks, scores, 3, picture)
    again, _ = segmenter.segment(picture, points=points.tolist(), labels=np.array([1, 0]))
    assert np.array_equal(masks, again)


def test_one_mask_for_each_box(segmenter, picture):
    side = picture.width
    boxes = np.array([(0.05, 0.4, 0.5, 0.9), (0.5, 0.5, 0.95, 0.9), (0.1, 0.1, 0.9, 0.9)]) * side
    check(*segmenter.segment(picture, boxes=boxes), 3, picture)
    check(*segmenter.segment(picture, boxes=np.zeros((0, 4))), 0, picture)
    beyond, _ = segmenter.segment(picture, boxes=[(-5, 0.4 * side, 0.5 * side, 2 * side)])
    inside, _ = segmenter.segment(picture, boxes=[(0, 0.4 * side, 0.5 * side, side)])
    assert np.array_equal(beyond, inside)


def test_entities_do_not_overlap(segmenter, picture):
    masks, scores = segmenter.everything(picture)
    check(masks, scores, len(masks), picture)
    assert masks.sum(0, dtype=int).max(initial=0) <= 1
    assert (np.diff(scores) <= 0).all()


@pytest.mark.parametrize("kind", ["pocket", "real"])
def test_a_picture_need_not_be_square(kind, request):
    wide = SCENE.array(64)[24:]
    segmenter = load_segmenter("pocket" if kind == "pocket" else request.getfixturevalue("sam_folder"))
    masks, _ = segmenter.segment(wide, points=[(47, 26)])
    assert masks.shape == (3, 40, 64)
    assert segmenter.segment(np.transpose(wide, (1, 0, 2)), boxes=[(10, 20, 30, 60)])[0].shape == (1, 64, 40)


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ({}, "points or boxes"),
        ({"points": [(3, 3)], "boxes": [(1, 1, 9, 9)]}, "points or boxes"),
        ({"boxes": [(1, 1, 9, 9)], "labels": [1]}, "labels belong to points"),
        ({"points": [(64, 3)]}, "outside the picture of 64 x 64"),
        ({"points": [(3, -1)]}, "outside the picture"),
        ({"points": [(3, float("nan"))]}, "rows of 2 finite numbers"),
        ({"points": (3, 4)}, "rows of 2 finite numbers"),
        ({"points": []}, "rows of 2 finite numbers"),
        ({"points": [(3, 4)], "labels": [1, 0]}, "one number for each of the 1 points"),
        ({"points": [(3, 4)], "labels": [0]}, "at least one is 1"),
        ({"points": [(3, 4)], "labels": [2]}, "labels are 1"),
        ({"boxes": [(9, 1, 3, 9)]}, "holds no pixel"),
        ({"boxes": [(3, 3, 3, 9)]}, "holds no pixel"),
        ({"boxes": [(70, 3, 90, 9)]}, "holds no pixel"),
        ({"boxes": [(1, 2, 3)]}, "rows of 4 finite numbers"),
    ],
)
def test_bad_prompts_are_said_in_one_line(segmenter, prompts, message):
    with pytest.raises(EditbookError, match=message) as caught:
        segmenter.segment(SCENE.image(64), **prompts)
    assert "\n" not in str(caught.value)


def test_boxes_for_words(grounder, picture):
    boxes, scores, phrases = grounder.ground(picture, "a cat. a red car")
    assert boxes.shape == (len(scores), 4)
    assert boxes.dtype == scores.dtype == np.float32
    assert len(phrases) == len(scores)
    assert ((scores >= 0) & (scores <= 1)).all()
    assert (np.diff(scores) <= 0).all()
    assert (boxes[:, 2:] > boxes[:, :2]).all()
    assert boxes.min(initial=0) >= 0
    assert boxes.max(initial=0) <= picture.width
    again = grounder.ground(picture, "a cat. a red car")
    assert np.array_equal(boxes, again[0])


@pytest.mark.parametrize("text", ["", " . ,"])
def test_a_text_must_name_something(grounder, text):
    with pytest.raises(EditbookError, match="names something"):
        grounder.ground(SCENE.image(64), text)


@pytest.mark.parametrize("load", [load_segmenter, load_grounder])
def test_what_cannot_be_loaded_is_said_in_one_line(load, tmp_path):
    for name in (tmp_path / "nothing here", "facebook/there-is-no-such-model"):
        with pytest.raises(EditbookError, match="Could not load") as caught:
            load(name)
        assert "\n" not in str(caught.value)


def test_names_say_what_it_is(segmenter, grounder):
    for tool in (segmenter, grounder):
        assert any(word in tool.name for word in ("stand-in for", "oracle", "Segment Anything", "Grounding DINO"))


def test_sam_sees_clicks_where_they_are(sam_folder):
    """Its prompts are (x, y) in the picture's own pixels: a processor that scales them is given those."""
    segmenter = load_segmenter(sam_folder)
    caught = {}
    forward = segmenter.model.prompt_encoder.forward

    def spy(input_points, **others):
        caught["points"] = input_points
        return forward(input_points=input_points, **others)

    segmenter.model.prompt_encoder.forward = spy
    segmenter.segment(SCENE.array(128)[64:], points=[(100, 20)])  # 128 wide, 64 high: half as large inside
    assert caught["points"].flatten().tolist() == [50, 10]
