"""Frechet inception distance (Heusel et al. 2017; the survey's Eq. 10, corrected: see the errata page)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch

from ..errors import EditbookError
from ..images import Picture, image_batches, picture_list
from .towers import ImageTower


def frechet_distance(mean_a: np.ndarray, cov_a: np.ndarray, mean_b: np.ndarray, cov_b: np.ndarray) -> float:
    r"""Squared Frechet distance of two normal distributions.

    $\lVert\mu_a-\mu_b\rVert^2+\mathrm{Tr}(\Sigma_a+\Sigma_b-2(\Sigma_a\Sigma_b)^{1/2})$. The trace of the root is
    the sum of the square roots of the eigenvalues of the symmetric $\Sigma_a^{1/2}\Sigma_b\Sigma_a^{1/2}$, which stay
    real where a root of the product itself picks up imaginary rounding errors.

    Args:
        mean_a: (width,).
        cov_a: (width, width), symmetric, with no negative eigenvalue beyond rounding.
        mean_b: (width,).
        cov_b: (width, width).

    Raises:
        EditbookError: The shapes do not belong together, or a value is not finite.
    """
    width = len(mean_a)
    for name, value, shape in (
        ("mean_a", mean_a, (width,)),
        ("cov_a", cov_a, (width, width)),
        ("mean_b", mean_b, (width,)),
        ("cov_b", cov_b, (width, width)),
    ):
        if np.shape(value) != shape or not np.isfinite(value).all():
            raise EditbookError(f"{name} must be finite and of shape {shape}, it is of shape {np.shape(value)}.")
    values, vectors = np.linalg.eigh(cov_a)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ cov_b @ root).clip(0)).sum()
    distance = ((mean_a - mean_b) ** 2).sum() + np.trace(cov_a) + np.trace(cov_b) - 2 * cross
    return max(float(distance), 0.0)


@dataclass(frozen=True)
class Fid:
    """A Frechet distance between two sets of pictures.

    Args:
        value: The distance; 0 for equal sets.
        counts: Pictures in either set.
        features: Width of the features.
        tower: What the features come from; distances of different towers cannot be compared.
    """

    value: float
    counts: tuple[int, int]
    features: int
    tower: str

    @property
    def full_rank(self) -> bool:
        """False where a set has no more pictures than features: then a covariance is singular and the value too high.

        It may still rank methods, on sets of one size.
        """
        return min(self.counts) > self.features


@dataclass(frozen=True)
class Moments:
    """All that the Frechet distance knows of a set of pictures.

    Args:
        mean: Of the features, (width,).
        covariance: (width, width).
        count: Pictures in the set.
        tower: What the features come from.
    """

    mean: np.ndarray
    covariance: np.ndarray
    count: int
    tower: str


def moments(pictures: Iterable[Picture], tower: ImageTower, name: str = "pictures") -> Moments:
    """What `fid` needs of a set: take it once for a set that several others are compared with.

    Args:
        pictures: At least two, in a list, a generator or an array (n, height, width, 3). Their sizes may differ: every
            tower resizes them, and those of this package but `Inception` look at the middle square.
        tower: Where features come from.
        name: What errors call the set.

    Raises:
        EditbookError: As `fid`.
    """
    listed = picture_list(pictures, name)
    if len(listed) < 2:
        raise EditbookError(f"{name} must hold at least two pictures for FID, not {len(listed)}.")
    features = torch.cat([tower.images(batch) for batch in image_batches(listed, name)]).double().cpu().numpy()
    return Moments(features.mean(0), np.cov(features, rowvar=False), len(listed), tower.name)


def fid(images: Iterable[Picture] | Moments, reference: Iterable[Picture] | Moments, tower: ImageTower) -> Fid:
    """How far the pictures of one set are from those of another, as sets.

    Args:
        images: A set of pictures as `moments` takes it, or its moments.
        reference: The same; they need not belong to those of `images` one by one.
        tower: Where features come from: `Inception` for published numbers, `pocket_clip()` in the pocket world.

    Raises:
        EditbookError: Fewer than two pictures in a set, a single picture in place of a set, a picture that cannot be
            read (the message names it), or moments of another tower's features.
    """
    a, b = (
        given if isinstance(given, Moments) else moments(given, tower, name)
        for name, given in (("images", images), ("reference", reference))
    )
    for name, given in (("images", a), ("reference", b)):
        if given.tower != tower.name:
            raise EditbookError(f"{name} holds moments of features of {given.tower}, and the tower is {tower.name}.")
    value = frechet_distance(a.mean, a.covariance, b.mean, b.covariance)
    return Fid(value, (a.count, b.count), len(a.mean), tower.name)
