"""Text optimisation: the embedding that describes one picture best, with frozen weights (Kawar et al. 2023, Imagic)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch

from ..errors import EditbookError
from ..model import Model
from ..sampling import Schedule, add_noise


def denoising_loss(
    model: Model, z_0: torch.Tensor, embedding: torch.Tensor, timesteps: Sequence[int], noise: torch.Tensor
) -> torch.Tensor:
    """The loss that diffusion models are trained with, ||eps - eps(z_t, t, e)||^2, averaged over each latent: (n,).

    Args:
        model: The model.
        z_0: One clean latent, (1, channels, height, width).
        embedding: e, (1, tokens, width).
        timesteps: t of each row.
        noise: eps of each row, (n, channels, height, width).
    """
    schedule = Schedule(model.scheduler, 1)  # for its noise levels only
    noisy = [add_noise(z_0, eps[None], schedule.alpha(t)) for t, eps in zip(timesteps, noise, strict=True)]
    estimate = model.noise(
        torch.cat(noisy), torch.tensor(timesteps, device=z_0.device), embedding.expand(len(noise), -1, -1)
    )
    return (estimate - noise).square().mean((1, 2, 3))


def fit_embedding(
    model: Model,
    z_0: torch.Tensor,
    start: torch.Tensor,
    *,
    steps: int = 100,
    learning_rate: float = 1e-2,
    batch: int = 4,
    seed: int = 0,
    callback: Callable[[int, torch.Tensor], None] | None = None,
) -> tuple[torch.Tensor, list[float]]:
    """Change a text embedding until the frozen model denoises one picture better with it.

    Adam on `denoising_loss`, each step with fresh timesteps, uniform over the whole schedule, and fresh noise. All
    positions of the embedding are changed: the padding too, since the U-Net reads it like any other token.

    Args:
        model: The model; its weights get no gradient.
        z_0: The picture's latent, (1, channels, height, width), from `Model.encode`.
        start: Where to begin, (1, tokens, width): Imagic begins at the target prompt.
        steps: Of Adam; 0 returns the start.
        learning_rate: Of Adam, which changes each number by about this much a step.
        batch: Pairs of timestep and noise in a step.
        seed: Of timesteps and noise, drawn on the CPU so that all devices get the same.
        callback: Gets the step and the embedding after it.

    Returns:
        The fitted embedding, (1, tokens, width), and the loss of each step before its update.

    Raises:
        EditbookError: An option out of its range; or the loss is not finite.
    """
    if not isinstance(steps, int) or steps < 0:
        raise EditbookError(f"The steps of text optimisation must be an integer of at least 0, got {steps!r}.")
    if not isinstance(batch, int) or batch < 1:
        raise EditbookError(f"The batch of text optimisation must be an integer of at least 1, got {batch!r}.")
    if not (math.isfinite(learning_rate) and learning_rate > 0):
        raise EditbookError(f"The learning rate of text optimisation must be above 0, got {learning_rate!r}.")
    generator = torch.Generator().manual_seed(seed)
    embedding = start.detach().clone().requires_grad_()
    optimiser = torch.optim.Adam([embedding], lr=learning_rate)
    losses: list[float] = []
    total = int(model.scheduler.config.num_train_timesteps)
    with torch.enable_grad():
        for step in range(steps):
            timesteps = torch.randint(total, (batch,), generator=generator).tolist()
            noise = torch.randn((batch, *z_0.shape[1:]), generator=generator, dtype=torch.float32).to(z_0)
            loss = denoising_loss(model, z_0, embedding, timesteps, noise).mean()
            # Towards the embedding only: whatever else the caller made trainable keeps its own gradients.
            (embedding.grad,) = torch.autograd.grad(loss, [embedding])
            optimiser.step()
            losses.append(loss.item())
            if callback is not None:
                callback(step, embedding.detach().clone())
    return embedding.detach(), losses
