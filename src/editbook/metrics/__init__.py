"""How good an edit is: against the source, the text, and, in the pocket world, the exact answer.

Numbers that a network makes carry its name, `tower.name`: those of different networks cannot be compared.
"""

from ..perception.reader import Reader, load_reader
from .clip import Direction, clip_image_similarity, clip_score, directional_similarity
from .editval import (
    EditValEdit,
    EditValReport,
    EditValRow,
    OwlViT,
    ReaderDetector,
    Verdict,
    editval,
    editval_detection,
    editval_reading,
    editval_report,
)
from .evaluate import Mean, mean_without_nan, pie_bench_scores, regions, truth_distances
from .frechet import Fid, fid, frechet_distance
from .hps import Hps
from .lpips import Lpips
from .pixels import l1, mask_iou, mse, peak_inside, psnr
from .ssim import ssim
from .structure import structure_distance
from .towers import Clip, Dino, Inception, pocket_clip
from .truth import Success, edit_success

__all__ = [
    "Clip",
    "Dino",
    "Direction",
    "EditValEdit",
    "EditValReport",
    "EditValRow",
    "Fid",
    "Hps",
    "Inception",
    "Lpips",
    "Mean",
    "OwlViT",
    "Reader",
    "ReaderDetector",
    "Success",
    "Verdict",
    "clip_image_similarity",
    "clip_score",
    "directional_similarity",
    "edit_success",
    "editval",
    "editval_detection",
    "editval_reading",
    "editval_report",
    "fid",
    "frechet_distance",
    "l1",
    "load_reader",
    "mask_iou",
    "mean_without_nan",
    "mse",
    "peak_inside",
    "pie_bench_scores",
    "pocket_clip",
    "psnr",
    "regions",
    "ssim",
    "structure_distance",
    "truth_distances",
]
