"""Outside models of mask-based methods: what is where in a picture, in words and in outlines.

Each kind is a protocol with three backings: the real model, a small stand-in for the pocket world that ships with the
package and says so in its `name`, and an oracle that reads the scene.
"""

from .base import Grounder, Segmenter
from .captioner import Blip2Captioner, Captioner, OracleCaptioner, PocketCaptioner, load_captioner
from .grounder import DinoGrounder, PocketGrounder, load_grounder
from .inpainter import BorderInpainter, Inpainter, LamaInpainter, PocketInpainter, load_inpainter
from .oracle import SceneOracle
from .parser import ChatParser, Parsed, Parser, RuleParser, load_parser, read_answer
from .reader import Reader, load_reader
from .segmenter import PocketSegmenter, SamSegmenter, load_segmenter

__all__ = [
    "Blip2Captioner",
    "BorderInpainter",
    "Captioner",
    "ChatParser",
    "DinoGrounder",
    "Grounder",
    "Inpainter",
    "LamaInpainter",
    "OracleCaptioner",
    "Parsed",
    "Parser",
    "PocketCaptioner",
    "PocketGrounder",
    "PocketInpainter",
    "PocketSegmenter",
    "Reader",
    "RuleParser",
    "SamSegmenter",
    "SceneOracle",
    "Segmenter",
    "load_captioner",
    "load_grounder",
    "load_inpainter",
    "load_parser",
    "load_reader",
    "load_segmenter",
    "read_answer",
]
