"""Disentanglement Diffusion: a mixture of two prompts per step, learned through the whole sampler."""

from __future__ import annotations

import hashlib

import pytest
import torch

import editbook
from editbook.errors import EditbookError
from editbook.inversion import ddim_inversion
from editbook.methods.base import guided
from editbook.methods.tuning_free.inversion.disentanglement_diffusion import (
    DirectionalLoss,
    DisentanglementDiffusion,
    PerceptualDistance,
    mixed_guidance,
    pixels,
)
from editbook.sampling import Schedule, follow

SOURCE = "a photo of a car on the beach"
TARGET = "a photo of a golden car on the beach"
STEPS = 4


@pytest.fixture(scope="module")
def model64(random_model64):
    """The random model with a random CLIP of its own, all in float64."""
    from editbook.model import Model
    from editbook.training.clip import build_clip

    parts = random_model64
    model = Model(parts.unet, parts.vae, parts.text_encoder, parts.tokenizer, parts.scheduler, name="random64")
    torch.manual_seed(1)
    tokenizer = parts.tokenizer
    clip = build_clip(len(tokenizer), tokenizer.bos_token_id, tokenizer.eos_token_id)
    model.clip = clip.double().eval().requires_grad_(False)
    return model


def edit(model, picture, target=TARGET, **options):
    return editbook.edit(
        model, picture, "disentanglement-diffusion", source=SOURCE, target=target, **{"steps": STEPS, **options}
    )


def inverted(model, picture):
    return ddim_inversion(model, model.encode(picture), SOURCE, Schedule(model.scheduler, STEPS))


def sample(model, inversion, weights, target=TARGET, scale=7.5, gradients=False):
    guidance = mixed_guidance(model, inversion, target, weights, scale)
    return follow(model, inversion.z_T, inversion.moves, guidance, gradients=gradients)


@pytest.mark.parametrize(("share", "prompt"), [(1.0, SOURCE), (0.0, TARGET)])
def test_the_ends_are_the_two_prompts(random_model64, picture, share, prompt):
    model = random_model64
    inversion = inverted(model, picture)
    mixed = sample(model, inversion, torch.full((STEPS,), share, dtype=torch.float64))
    plain = follow(model, inversion.z_T, inversion.moves, guided(model, [prompt], 7.5))
    torch.testing.assert_close(mixed, plain, rtol=0, atol=1e-10)


def test_all_weights_one_is_the_neutral_picture_and_another_switch_is_not(random_model64, picture):
    neutral = edit(random_model64, picture, switch=1.0, epochs=0)
    assert neutral.image.tobytes() == neutral.reconstruction.tobytes()
    late = edit(random_model64, picture, switch=0.5, epochs=0)
    assert late.image.tobytes() != late.reconstruction.tobytes() == neutral.reconstruction.tobytes()


def test_each_weight_acts_in_its_own_step(random_model64, picture):
    """Changing weight i leaves all steps before i as they were."""
    model = random_model64
    inversion = inverted(model, picture)
    walks = []
    for weights in ([1.0, 1.0, 0.0, 0.0], [1.0, 1.0, 0.5, 0.0]):
        seen = []
        guidance = mixed_guidance(model, inversion, TARGET, torch.tensor(weights, dtype=torch.float64), 7.5)
        follow(model, inversion.z_T, inversion.moves, guidance, callbacks=[seen.append])
        walks.append([step.z_next for step in seen])
    assert [torch.equal(a, b) for a, b in zip(*walks, strict=True)] == [True, True, False, False]


def test_equal_prompts_do_not_depend_on_the_weights(model64, picture):
    inversion = inverted(model64, picture)
    neutral = sample(model64, inversion, torch.ones(STEPS, dtype=torch.float64), SOURCE)
    weights = torch.linspace(1, -0.2, STEPS, dtype=torch.float64).requires_grad_(True)
    other = sample(model64, inversion, weights, SOURCE, gradients=True)
    torch.testing.assert_close(other.detach(), neutral, rtol=0, atol=1e-10)
    loss = DirectionalLoss(model64, None, SOURCE, SOURCE, pixels(model64, neutral))(pixels(model64, other))
    assert loss.item() == 1
    assert not torch.autograd.grad(loss, weights)[0].any()


def test_no_direction_where_the_picture_did_not_move(model64, picture):
    neutral = pixels(model64, model64.encode(picture)).requires_grad_(True)
    loss = DirectionalLoss(model64, None, SOURCE, TARGET, neutral.detach())(neutral)
    assert loss.item() == 1
    assert not torch.autograd.grad(loss, neutral)[0].any()
    assert PerceptualDistance(model64, neutral.detach())(neutral).item() == 0


def test_the_loss_is_the_metric(pocket_model):
    """On one picture pair, 1 - loss is the library's directional similarity of the same towers."""
    from editbook.metrics import directional_similarity
    from editbook.metrics.towers import pocket_clip

    task = editbook.pocket.task("golden-car")
    before, after = (pixels(pocket_model, pocket_model.encode(image)) for image in (task.source_image, task.truth))
    loss = DirectionalLoss(pocket_model, None, task.source_prompt, task.target_prompt, before)(after)
    pictures = [pocket_model.decode(pocket_model.encode(image)) for image in (task.source_image, task.truth)]
    prompts = task.source_prompt, task.target_prompt
    expected = directional_similarity(*pictures, *prompts, pocket_clip(), normalise=False).value
    assert 1 - loss.item() == pytest.approx(expected, abs=0.01)


def test_gradients_pass_through_every_step_and_agree_with_differences(model64, picture):
    inversion = inverted(model64, picture)
    neutral = pixels(model64, sample(model64, inversion, torch.ones(STEPS, dtype=torch.float64)))
    directional = DirectionalLoss(model64, None, SOURCE, TARGET, neutral)
    distance = PerceptualDistance(model64, neutral)

    def loss(weights):
        picture = pixels(model64, sample(model64, inversion, weights, gradients=weights.requires_grad))
        return directional(picture) + distance(picture)

    weights = torch.tensor([1.0, 0.8, 0.3, 0.1], dtype=torch.float64)
    (gradient,) = torch.autograd.grad(loss(weights.requires_grad_(True)), weights)
    weights = weights.detach()
    for i in range(STEPS):
        shift = torch.zeros_like(weights)
        shift[i] = 1e-5
        with torch.no_grad():
            difference = float(loss(weights + shift) - loss(weights - shift)) / 2e-5
        assert float(gradient[i]) == pytest.approx(difference, rel=1e-3, abs=1e-8)
        assert gradient[i] != 0


def test_switch_and_weights_count_the_steps_that_are_walked(model64, random_model, picture):
    """Edit-friendly inversion leaves 4 of 6 steps: each of those has a weight, and each weight acts."""
    options = {"steps": 6, "switch": 0.7, "inversion": "edit-friendly"}
    method = DisentanglementDiffusion(epochs=1, **options)
    made = editbook.edit(model64, picture, method, source=SOURCE, target=TARGET)
    assert len(made.inversion.moves) == 4
    assert method.learned.weights[0] == [1.0, 1.0, 1.0, 0.0]
    assert all(abs(value) > 0 for value in method.learned.gradient)
    hard = edit(random_model, picture, epochs=0, **options)
    assert hard.image.tobytes() != hard.reconstruction.tobytes()
    given = edit(random_model, picture, weights=method.learned.weights[0], **options)
    assert given.image.tobytes() == hard.image.tobytes()
    before = random_model.nfe
    with pytest.raises(EditbookError, match="weights must hold 4 numbers"):
        edit(random_model, picture, weights=[0.0] * 6, **options)
    assert random_model.nfe == before


def hashes(model):
    """One of every part that has weights."""
    parts = {"unet": model.unet, "vae": model.vae, "text encoder": model.text_encoder, "clip": model.clip}
    return {
        name: hashlib.sha256(
            b"".join(value.cpu().numpy().tobytes() for value in part.state_dict().values())
        ).hexdigest()
        for name, part in parts.items()
    }


def test_only_n_numbers_are_learned_and_the_model_is_untouched(model64, picture):
    before = hashes(model64)
    method = DisentanglementDiffusion(steps=STEPS, epochs=3)
    editbook.edit(model64, picture, method, source=SOURCE, target=TARGET)
    learned = method.learned
    assert [len(weights) for weights in learned.weights] == [STEPS] * 4
    assert learned.weights[0] == [1.0, 1.0, 0.0, 0.0]
    assert learned.weights[-1] != learned.weights[0]
    assert len(learned.clip) == len(learned.perceptual) == 3
    assert len(learned.gradient) == STEPS
    assert all(abs(value) > 0 for value in learned.gradient)
    assert hashes(model64) == before
    parts = (model64.unet, model64.vae, model64.text_encoder, model64.clip)
    assert all(parameter.grad is None for part in parts for parameter in part.parameters())


def test_learned_weights_repeat_the_picture_without_clip(model64, random_model64, picture):
    method = DisentanglementDiffusion(steps=STEPS, epochs=2)
    first = editbook.edit(model64, picture, method, source=SOURCE, target=TARGET)
    again = edit(random_model64, picture, weights=method.learned.weights[-1])
    assert random_model64.clip is None
    assert again.image.tobytes() == first.image.tobytes()


def test_callbacks_get_no_graph(model64, picture):
    seen = []
    edit(model64, picture, epochs=1, callbacks=[seen.append])
    assert len(seen) == 4 * STEPS  # inversion, neutral, one epoch, the result
    assert not any(step.z_next.requires_grad or step.eps.requires_grad for step in seen)


def test_a_generated_source_needs_no_picture(random_model):
    made = edit(random_model, None, epochs=0)
    assert made.inversion is None
    assert made.source_image.tobytes() == made.reconstruction.tobytes() != made.image.tobytes()


def test_cost(model64, picture):
    """The U-Net runs twice in each optimised step: forwards, and again for the gradient."""
    assert edit(model64, picture, epochs=0).nfe == STEPS * (1 + 2 + 2)
    assert edit(model64, picture, epochs=2).nfe == STEPS * (1 + 2 + 2 + 2 * 2 * 2)


def test_the_mask_keeps_the_neutral_picture_outside(random_model64, picture):
    mask = torch.zeros(64, 64)
    mask[:, :32] = 1
    masked = edit(random_model64, picture, epochs=0, mask=mask.numpy())
    last = masked.inversion.sampled.latents[-1]
    seen = []
    edit(random_model64, picture, epochs=0, mask=mask.numpy(), callbacks=[seen.append])
    half = last.shape[-1] // 2
    assert torch.equal(seen[-1].z_next[..., half:], last[..., half:])
    assert not torch.equal(seen[-1].z_next[..., :half], last[..., :half])


def test_without_clip_it_says_what_to_do(random_model, picture):
    with pytest.raises(EditbookError, match="clip="):
        edit(random_model, picture)
    with pytest.raises(EditbookError, match="Could not load the CLIP"):
        edit(random_model, picture, clip="/nowhere/clip")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"switch": 1.5}, "switch"),
        ({"epochs": -1}, "epochs"),
        ({"epochs": 1.5}, "epochs"),
        ({"learning_rate": float("nan")}, "learning_rate"),
        ({"perceptual": -1.0}, "perceptual"),
        ({"late": float("inf")}, "late"),
        ({"weights": [0.0] * (STEPS + 1)}, "weights must hold 4 numbers"),
    ],
)
def test_bad_options_raise(random_model, picture, options, message):
    with pytest.raises(EditbookError, match=message):
        edit(random_model, picture, **options)


def test_what_it_is_for(pocket_model):
    """The loss falls; car and beach are closer to the truth than under the target prompt alone."""
    from editbook.metrics import truth_psnr

    task = editbook.pocket.task("golden-car")

    def make(**options):
        method = DisentanglementDiffusion(steps=10, guidance_scale=3.0, **options)
        prompts = {"source": task.source_prompt, "target": task.target_prompt}
        result = editbook.edit(pocket_model, task.source_image, method, **prompts)
        return method.learned, truth_psnr(result.image, task)

    learned, near = make(epochs=10)
    _, all_near = make(switch=0.0, epochs=0)
    balance = learned.clip[0] / learned.perceptual[0]
    losses = [clip + balance * distance for clip, distance in zip(learned.clip, learned.perceptual, strict=True)]
    assert losses[-1] < losses[0]
    assert near.inside > all_near.inside + 1
    assert near.outside > all_near.outside + 0.5
