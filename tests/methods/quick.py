"""Options that make methods and inversions which optimise something quick; nothing else about them changes."""

from __future__ import annotations

QUICK: dict[str, dict[str, object]] = {
    "disentanglement-diffusion": {"epochs": 0},
    "dynamic-prompt-learning": {"inner_steps": 1, "noun_steps": 1},
    "latent-inversion-timestep-aware": {"text_steps": 2},
    "null-text-inversion": {"inner_steps": 1},
}
