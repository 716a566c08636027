"""Human preference scores, v1 (Wu et al., ICCV 2023) and v2 (Wu et al. 2023), through open_clip."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from ..errors import unknown
from ..images import as_image
from .towers import Picture, loaded

# version: (open_clip's name of the architecture, repository on the hub, file)
VERSIONS: dict[str, tuple[str, str | None, str]] = {
    "v1": ("ViT-L-14-quickgelu", None, "hpc.pt"),
    "v2.0": ("ViT-H-14", "xswu/HPSv2", "HPS_v2_compressed.pt"),
    "v2.1": ("ViT-H-14", "xswu/HPSv2", "HPS_v2.1_compressed.pt"),
}


class Hps:
    """CLIP tuned on people's choices between pictures made from one prompt.

    Only pictures of the *same* prompt can be compared, and only by one version.

    Args:
        version: One of `VERSIONS`. The survey's Table 2 shows values near 20, which fit v1.
        weights: A local copy of the weight file. v1's is on its authors' page and must be given; None downloads v2's.
        device: Where it computes.

    Raises:
        EditbookError: Unknown version, open_clip not installed, or the weights cannot be had.
    """

    def __init__(self, version: str = "v2.1", weights: str | Path | None = None, device: str = "cpu") -> None:
        if version not in VERSIONS:
            raise unknown("HPS version", version, VERSIONS)
        architecture, repository, file = VERSIONS[version]
        self.name, self.device = f"HPS {version}", device

        def load() -> tuple[Any, Any, Any]:
            import open_clip

            path = weights
            if path is None:
                if repository is None:
                    raise OSError(f"{file} is not on the hub. Get it from its authors' page and pass weights=.")
                from huggingface_hub import hf_hub_download

                path = hf_hub_download(repository, file)
            model, _, preprocess = open_clip.create_model_and_transforms(architecture, pretrained=None)
            model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True)["state_dict"])
            return model.eval().to(device), preprocess, open_clip.get_tokenizer(architecture)

        self.model, self._preprocess, self._tokenizer = loaded(self.name, weights or file, load)

    @torch.no_grad()
    def __call__(self, image: Picture, prompt: str) -> float:
        """100 times the cosine of picture and prompt."""
        pixels = self._preprocess(as_image(image))[None].to(self.device)
        features = self.model.encode_image(pixels), self.model.encode_text(self._tokenizer([prompt]).to(self.device))
        return 100 * float(functional.cosine_similarity(*features))
