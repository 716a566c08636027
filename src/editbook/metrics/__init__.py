"""How good an edit is: against the source, the text, and, in the pocket world, the exact answer.

A `Score`, a `Direction` and a `Fid` say as `tower` which network made them, and so do the names of
`pie_bench_scores`: numbers of different networks cannot be compared.
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
from .evaluate import Mean, TruthPsnr, mean_without_nan, pie_bench_scores, regions, truth_distances, truth_psnr
from .frechet import Fid, Moments, fid, frechet_distance, moments
from .hps import Hps, PocketPreference, preference_tower
from .lpips import Lpips
from .pixels import l1, mask_iou, mse, peak_inside, psnr
from .ssim import mirrored_ssim, ssim
from .structure import structure_distance
from .towers import Clip, Dino, Inception, Score, clip_tower, fid_tower, pocket_clip, structure_tower
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
    "Moments",
    "OwlViT",
    "PocketPreference",
    "Reader",
    "ReaderDetector",
    "Score",
    "Success",
    "TruthPsnr",
    "Verdict",
    "clip_image_similarity",
    "clip_score",
    "clip_tower",
    "directional_similarity",
    "edit_success",
    "editval",
    "editval_detection",
    "editval_reading",
    "editval_report",
    "fid",
    "fid_tower",
    "frechet_distance",
    "l1",
    "load_reader",
    "mask_iou",
    "mean_without_nan",
    "mirrored_ssim",
    "moments",
    "mse",
    "peak_inside",
    "pie_bench_scores",
    "pocket_clip",
    "preference_tower",
    "psnr",
    "regions",
    "ssim",
    "structure_distance",
    "structure_tower",
    "truth_distances",
    "truth_psnr",
]
