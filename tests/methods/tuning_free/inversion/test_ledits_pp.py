"""LEDITS++: exact without edits, a sum of masked directions with them, masks of the size that was asked for."""

from __future__ import annotations

import copy

import pytest
import torch

import editbook
from editbook.errors import EditbookError
from editbook.inversion import SecondOrder, make_inverter
from editbook.masks import latent_mask
from editbook.methods.base import reconstruct
from editbook.methods.tuning_free.inversion.ledits_pp import (
    LEDITSPP,
    EditGuidance,
    EditPrompt,
    above,
)
from editbook.sampling import Schedule, follow

SOURCE = "a photo of a cat on the beach"
EDITS = [EditPrompt("a fox", 4.0, 0.7), EditPrompt("a photo of a castle at night", 3.0, 0.5, reverse=True)]


def invert(model, picture, steps=6, **options):
    inverter = make_inverter("ledits-pp", options)
    return inverter(model, model.encode(picture), SOURCE, Schedule(model.scheduler, steps))


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("scale", [0.0, 3.5])
@pytest.mark.parametrize("final", [0, 2])
def test_the_inversion_repeats_the_picture(random_model64, picture, order, scale, final):
    model = random_model64
    inversion = invert(model, picture, order=order, inversion_scale=scale, final_first_order=final)
    torch.testing.assert_close(reconstruct(model, inversion), model.encode(picture), rtol=0, atol=1e-8)
    assert inversion.gap().left.abs().max() < 1e-7
    assert inversion.timesteps[0] == 849
    assert inversion.timesteps[-1] == 1


@pytest.mark.parametrize("order", [1, 2])
def test_without_edits_or_with_scale_0_the_picture_comes_back(random_model64, picture, order):
    model, inversion = random_model64, invert(random_model64, picture, order=order)
    for edits in ([], [EditPrompt("a fox", 0.0)]):
        z = follow(model, inversion.z_T, inversion.moves, inversion.guide(EditGuidance(model, edits)))
        torch.testing.assert_close(z, model.encode(picture), rtol=0, atol=1e-8)


def test_with_a_source_prompt_it_does_not(random_model64, picture):
    """The maps belong to the guided estimate, and editing starts from the unconditional one."""
    model = random_model64
    inversion = invert(model, picture, inversion_scale=3.5)
    z = follow(model, inversion.z_T, inversion.moves, inversion.guide(EditGuidance(model, [])))
    assert (z - model.encode(picture)).abs().max() > 1e-3


def test_the_source_row_comes_back_beside_an_edit(random_model64, picture):
    edit = editbook.edit(random_model64, picture, "ledits-pp", target="a fox", steps=4)
    z_0 = random_model64.encode(picture)
    torch.testing.assert_close(edit.inversion.sampled.latents[-1], z_0, rtol=0, atol=1e-8)
    assert edit.image.tobytes() != edit.reconstruction.tobytes()


def test_a_history_from_another_walk_would_spoil_it(random_model64, picture):
    """The solver's state: a walk that does not begin at step 0 is refused rather than made wrong."""
    model, inversion = random_model64, invert(random_model64, picture)
    guidance = SecondOrder(EditGuidance(model, []), inversion.moves)
    with pytest.raises(EditbookError, match="from its beginning"):
        guidance(model, inversion.z_T, 500, 2)


def estimates(model, edits, i=0, **options):
    guidance = EditGuidance(model, edits, **options)
    with torch.no_grad():
        return guidance(model, model.random_latent(1), 500, i), guidance


def test_edits_add_up_and_their_order_does_not_matter(random_model64):
    model = random_model64
    none = estimates(model, [])[0]
    together, swapped = estimates(model, EDITS)[0], estimates(model, EDITS[::-1])[0]
    single = sum(estimates(model, [edit])[0] - none for edit in EDITS)
    torch.testing.assert_close(together - none, single, rtol=0, atol=1e-9)
    torch.testing.assert_close(together, swapped, rtol=0, atol=1e-9)
    assert (together - none).abs().max() > 1e-3


def test_a_direction_without_a_mask_is_plain_guidance_and_reversal_its_negative(random_model64):
    model, z = random_model64, random_model64.random_latent(1)
    with torch.no_grad():
        conditional, null = (model.noise(z, 500, model.embed(text)) for text in ("a fox", ""))
    for reverse, sign in ((False, 1), (True, -1)):
        ours = estimates(model, [EditPrompt("a fox", 4.0, reverse=reverse)], masks="none")[0]
        torch.testing.assert_close(ours, null + sign * 4 * (conditional - null), rtol=0, atol=1e-9)


@pytest.mark.parametrize("threshold", [0.0, 0.5, 0.75, 0.9])
def test_masks_have_the_size_that_was_asked_for(random_model64, threshold):
    guidance = estimates(random_model64, [EditPrompt("a fox", 4.0, threshold)])[1]
    made = guidance.masks[0]
    assert float(made["guidance"].mean()) == pytest.approx(1 - threshold, abs=0.01)
    assert float(made["attention"].mean()) == pytest.approx(1 - threshold, abs=0.01)
    assert torch.equal(made["used"], made["attention"] * made["guidance"])
    assert float(made["used"].mean()) <= 1 - threshold + 0.01


def test_only_the_last_row_is_edited_and_only_inside_the_mask(random_model64):
    model, z = random_model64, random_model64.random_latent(1, 2)
    with torch.no_grad():
        guidance = EditGuidance(model, [EditPrompt("a fox", 4.0, 0.7)])
        eps = guidance(model, z, 500, 0)
        null = model.noise(z[:1], 500, model.embed(""))
    torch.testing.assert_close(eps[:1], null, rtol=0, atol=1e-9)
    change = (eps[1:] - null).abs().sum(1, keepdim=True)
    assert ((change > 1e-8).double() == guidance.masks[0]["used"]).all()


def test_warm_up_and_cool_down(random_model64):
    model, edit = random_model64, EditPrompt("a fox", warmup=1, cooldown=3)
    none = estimates(model, [])[0]
    for i, acts in enumerate((False, True, True, False)):
        eps, guidance = estimates(model, [edit, EditPrompt("a castle", 0.0)], i)
        assert bool((eps - none).abs().max() > 1e-6) == acts
        assert bool(guidance.masks[0]["used"][0].any()) == acts


def test_a_users_mask_limits_every_edit(random_model64, picture):
    model = random_model64
    mask = torch.zeros(1, 1, 16, 16, dtype=torch.float64)
    mask[..., :8] = 1
    change = estimates(model, EDITS, mask=mask)[0] - estimates(model, [])[0]
    assert change[..., 8:].abs().max() < 1e-12
    assert change[..., :8].abs().max() > 1e-3


def test_words_choose_whose_attention_is_read(random_model64):
    full = "a photo of a fox on the beach"
    one, other = (
        estimates(random_model64, [EditPrompt(full, words=words)])[1].masks[0]["attention"]
        for words in ("fox", "beach")
    )
    assert not torch.equal(one, other)
    with pytest.raises(EditbookError, match="Did you mean 'fox'"):
        EditGuidance(random_model64, [EditPrompt(full, words="foxx")])


def test_helpers():
    values = torch.arange(100.0).view(10, 10)
    assert float(above(values, 0.9).sum()) == 10
    assert above(values.half(), 0.9).dtype == torch.float16


def test_cost_is_a_row_for_each_edit(random_model, picture):
    def run(**options):
        return editbook.edit(random_model, picture, "ledits-pp", steps=5, **{"target": "a fox", **options}).nfe

    # Inversion; then the source row (which only shows the reconstruction), the base, and a row for each edit.
    assert run(target="") == 5 + 5 * 2
    assert run() == 5 + 5 * 3
    assert run(edits=[{"prompt": "a castle"}]) == 5 + 5 * 4


def test_other_editors_run_on_its_inversion(random_model64, picture):
    target = "a photo of a fox on the beach"
    edit = editbook.edit(
        random_model64, picture, "prompt-to-prompt", source=SOURCE, target=target, inversion="ledits-pp", steps=4
    )
    z_0 = random_model64.encode(picture)
    torch.testing.assert_close(edit.inversion.sampled.latents[-1], z_0, rtol=0, atol=1e-8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"skip": 1.0}, "skip"),
        ({"order": 3}, "order"),
        ({"final_first_order": -1}, "final_first_order"),
        ({"inversion_scale": -1.0}, "inversion_scale"),
        ({"inversion_scale": 3.5}, "source prompt"),
        ({"threshold": 1.0}, "threshold"),
        ({"masks": "intersection"}, "Did you mean 'intersect'"),
        ({"edits": [{"prompt": "a hat", "scal": 3}]}, "Did you mean 'scale'"),
        ({"edits": [{"scale": 3}]}, "needs a 'prompt'"),
        ({"edits": [{"prompt": "a hat", "scale": -1}]}, "scale of an edit"),
        ({"edits": [{"prompt": "a hat", "warmup": -1}]}, "warmup of an edit"),
        ({"edits": [{"prompt": "a hat", "warmup": 3}]}, "warmup of an edit must be below the 3 steps"),
        ({"edits": [{"prompt": "a hat", "cooldown": 0}]}, "cooldown of an edit"),
        ({"edits": [{"prompt": "a hat", "warmup": 2, "cooldown": 2}]}, "cooldown of an edit must lie after"),
        ({"edits": "a crown"}, "a list of mappings"),
        ({"edits": ["a crown"]}, "a list of mappings"),
        ({"edits": {"prompt": "a crown"}}, "a list of mappings"),
        ({"side": 0}, "side of ledits-pp"),
        ({"side": 5}, "matches none"),
    ],
)
def test_bad_options_raise(random_model, picture, options, message):
    with pytest.raises(EditbookError, match=message):
        editbook.edit(random_model, picture, "ledits-pp", target="a fox", steps=3, **options)


def test_masks_find_the_object_and_keep_the_rest(pocket_model):
    """Both masks overlap the exact one far better than chance; what lies outside changes less than without, and far
    less than under plain sampling with edit-friendly maps.
    """
    from editbook.metrics import truth_psnr

    outside = {"intersect": [], "none": [], "plain": []}
    for name, words in (("cat-to-fox", "fox"), ("golden-car", "golden car"), ("red-to-blue-bus", "blue bus")):
        task = editbook.pocket.task(name)
        exact = (latent_mask(task.mask, pocket_model.random_latent(0)) > 0.5).float()
        for kind in ("intersect", "none"):
            method = LEDITSPP(steps=15, threshold=1 - float(exact.mean()), words=words, masks=kind)
            edit = editbook.edit(pocket_model, task.source_image, method, target=task.target_prompt)
            outside[kind].append(truth_psnr(edit.image, task).outside)
        guidance = LEDITSPP(threshold=1 - float(exact.mean()), words=words).guidance(pocket_model, task.target_prompt)
        inversion = LEDITSPP().inverter()(
            pocket_model, pocket_model.encode(task.source_image), "", Schedule(pocket_model.scheduler, 15)
        )
        follow(pocket_model, inversion.z_T, inversion.moves, inversion.guide(guidance))
        for part in ("attention", "guidance"):
            iou = [float((made[part] * exact).sum() / ((made[part] + exact) > 0).sum()) for made in guidance.masks]
            assert sum(iou) / len(iou) > 0.4
        plain = editbook.edit(
            pocket_model,
            task.source_image,
            "edit-friendly-ddpm",
            source=task.source_prompt,
            target=task.target_prompt,
            steps=15,
            guidance_scale=5.0,
            skip=0.15,
        )
        outside["plain"].append(truth_psnr(plain.image, task).outside)
    assert sum(outside["intersect"]) > sum(outside["none"]) + 3
    assert sum(outside["intersect"]) > sum(outside["plain"]) + 6


@pytest.fixture
def ledits_pipeline(pocket_model, pipeline_around):
    """Builds diffusers' pipeline on the shipped weights; whatever it does to the U-Net's attention is undone."""
    from diffusers import DPMSolverMultistepScheduler, LEditsPPPipelineStableDiffusion

    before = dict(pocket_model.unet.attn_processors)

    def build(scheduler=None):
        solver = DPMSolverMultistepScheduler.from_config(
            pocket_model.scheduler.config, algorithm_type="sde-dpmsolver++", solver_order=2
        )
        return pipeline_around(LEditsPPPipelineStableDiffusion, pocket_model, scheduler or solver)

    yield build
    pocket_model.unet.set_attn_processor(before)


@pytest.mark.parametrize("kind", ["attention", "guidance", "intersect"])
def test_masks_and_directions_are_those_of_diffusers(pocket_model, ledits_pipeline, monkeypatch, kind):
    """M1, M2, their product and the sum of two edits, in one step from the same latent, at its 4 x 4 maps.

    Its M1 sums the attention of the prompt's own tokens only if the tokenizer's `length` leaves out the padding, which
    that of transformers 5 does not: here it is told how many there are.
    """
    model, pipeline = pocket_model, ledits_pipeline()
    task = editbook.pocket.task("cat-to-fox")
    z = 0.6 * model.encode(task.source_image) + 0.8 * model.random_latent(3)
    edits = [EditPrompt(task.target_prompt, 4.0, 0.6), EditPrompt("a castle at night", 3.0, 0.5, reverse=True)]
    encode = pipeline.encode_prompt
    own = [len(model.tokenizer(edit.prompt).input_ids) - 2 for edit in edits]
    monkeypatch.setattr(pipeline, "encode_prompt", lambda **options: (*encode(**options)[:2], own))
    pipeline.scheduler.set_timesteps(20)
    pipeline.eta, pipeline.batch_size, pipeline.init_latents = 1.0, 1, z
    pipeline.inversion_steps, pipeline.zs = torch.tensor([500]), torch.zeros(1, *z.shape)
    pipeline(
        editing_prompt=[edit.prompt for edit in edits],
        edit_guidance_scale=[edit.scale for edit in edits],
        edit_threshold=[edit.threshold for edit in edits],
        reverse_editing_direction=[edit.reverse for edit in edits],
        use_cross_attn_mask=kind == "attention",
        use_intersect_mask=kind == "intersect",
        output_type="latent",
    )
    guidance = EditGuidance(model, edits, masks=kind, side=4)
    with torch.no_grad():
        direction = guidance(model, z, 500, 0) - model.noise(z, 500, model.embed(""))
    assert torch.equal(pipeline.activation_mask[0][:, 0, :1], guidance.masks[0]["used"])
    torch.testing.assert_close(pipeline.sem_guidance[0], direction, rtol=0, atol=1e-4)
    assert direction.abs().max() > 1


def test_the_pipeline_of_diffusers_does_not_bring_the_picture_back(pocket_model, ledits_pipeline):
    """Its last step ends at sigma 0, where no noise can be extracted, and begins far above timestep 1."""
    model, task = pocket_model, editbook.pocket.task("cat-to-fox")
    pipeline = ledits_pipeline()
    pipeline.invert(task.source_image, num_inversion_steps=20, generator=torch.Generator().manual_seed(0))
    theirs = pipeline(
        editing_prompt=["a fox"],
        edit_guidance_scale=0.0,
        use_cross_attn_mask=False,
        use_intersect_mask=False,
        output_type="latent",
    ).images
    z_0 = model.encode(task.source_image)
    assert not pipeline.zs[-1].any()
    assert (int(pipeline.inversion_steps[0]), int(pipeline.inversion_steps[-1])) == (821, 42)
    inversion = make_inverter("ledits-pp", {})(model, z_0, "", Schedule(model.scheduler, 20))
    assert (inversion.timesteps[0], inversion.timesteps[-1]) == (849, 1)
    ours = reconstruct(model, inversion)
    assert (ours - z_0).abs().max() < 1e-3 < 0.05 < (theirs - z_0).abs().max()


def test_with_a_ddim_scheduler_the_pipeline_of_diffusers_stops(pocket_model, ledits_pipeline):
    """Its documentation allows one; diffusers 0.42 then indexes with a float."""
    import diffusers

    if not diffusers.__version__.startswith("0.42."):
        pytest.skip("what the page says holds for diffusers 0.42")
    pipeline = ledits_pipeline(copy.deepcopy(pocket_model.scheduler))
    with pytest.raises(IndexError):
        pipeline.invert(editbook.pocket.task("cat-to-fox").source_image, num_inversion_steps=4)
