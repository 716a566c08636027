"""Human preference scores, v1 (Wu et al., ICCV 2023) and v2 (Wu et al. 2023), through open_clip; and a stand-in."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from ..errors import EditbookError, unknown
from ..images import Picture, as_image
from ..pocket import QUALITIES
from .towers import Clip, Score, cached_file, loaded, pocket_clip

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
        if weights is None and repository is None:
            raise EditbookError(
                f"{file} of HPS {version} is not on the hub: get it from its authors' page, as weights=."
            )
        self.name, self.device = f"HPS {version}", device

        def load() -> tuple[Any, Any, Any]:
            import open_clip
            from huggingface_hub import hf_hub_download

            path = hf_hub_download(str(repository), file) if weights is None else weights
            # weights_only: a pickle of anything else could run code.
            saved = torch.load(path, map_location="cpu", weights_only=True)
            if not isinstance(saved, dict) or "state_dict" not in saved:
                raise ValueError("there is no state_dict in it")
            model, _, preprocess = open_clip.create_model_and_transforms(architecture, pretrained=None)
            model.load_state_dict(saved["state_dict"])
            return model.eval().to(device), preprocess, open_clip.get_tokenizer(architecture)

        self.model, self._preprocess, self._tokenizer = loaded(self.name, weights or file, load)

    @torch.no_grad()
    def __call__(self, image: Picture, prompt: str) -> Score:
        """100 times the cosine of picture and prompt. open_clip looks at the middle square of a picture."""
        pixels = self._preprocess(as_image(image, "image"))[None].to(self.device)
        features = self.model.encode_image(pixels), self.model.encode_text(self._tokenizer([prompt]).to(self.device))
        return Score(100 * float(functional.cosine_similarity(*features)), self.name)


class PocketPreference:
    """What stands in for `Hps` in the pocket world: does the picture agree with its prompt, and is it unspoiled?

    No person's choice is in it. The pocket CLIP has learned from pictures that blur and noise had spoiled, with
    captions that say so: "..., image quality is two out of five". The score is 100 times the cosine of picture and
    prompt, times the quality that the tower expects: the mean rating, 1/5 to 1, by the softmax over the five captions.
    It falls with noise, with blur, and for a wrong prompt, in the mean over many pictures: single ones often disagree,
    and a blur of a pixel or less goes unseen. As with `Hps`, compare only pictures of the *same* prompt.

    Args:
        tower: The pocket CLIP; other towers do not know its quality phrases.
    """

    name = "pocket-CLIP asked for quality, in place of HPS"

    def __init__(self, tower: Clip | None = None) -> None:
        self.tower = tower or pocket_clip()

    def __call__(self, image: Picture, prompt: str) -> Score:
        """The score, in [-100, 100]; seldom below 0.

        Raises:
            EditbookError: The picture cannot be read, or the prompt leaves no room for the quality phrases.
        """
        texts = self.tower.texts([prompt, *(f"{prompt}, {quality}" for quality in QUALITIES)])
        cosines = functional.cosine_similarity(self.tower.images([as_image(image, "image")]), texts)
        likely = (self.tower.model.logit_scale.exp() * cosines[1:]).softmax(0)
        expected = float(likely @ torch.linspace(1 / len(QUALITIES), 1, len(QUALITIES)))
        return Score(100 * float(cosines[0]) * expected, self.name)


def preference_tower(
    version: str = "v2.1", weights: str | Path | None = None, device: str = "cpu"
) -> Hps | PocketPreference:
    """For preference scores: HPS if open_clip and its weights are on this machine, `PocketPreference` otherwise.

    Args:
        version: Of HPS.
        weights: Its weight file; None looks into the hub's cache, and never goes online.
        device: Where HPS computes.

    Raises:
        EditbookError: Unknown version; `weights` was given and cannot be loaded, or what the cache holds is damaged.
    """
    if version not in VERSIONS:
        raise unknown("HPS version", version, VERSIONS)
    _, repository, file = VERSIONS[version]
    if weights is None and repository is not None and find_spec("open_clip"):
        weights = cached_file(repository, file)
    return PocketPreference() if weights is None else Hps(version, weights, device)
