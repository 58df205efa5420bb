"""Values that settings may have: their types, their limits, and checks of texts and paths."""

import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from segpipe.contract.keys import MOST_CHANNELS, MOST_PIXELS

DEVICES = ("auto", "cpu", "openvino", "cuda", "tensorrt", "cpu-tensors")
OPENVINO_DEVICE = re.compile(r"openvino:[A-Z]+(\.\d+)?")
"""One of OpenVINO's devices, such as ``openvino:GPU.1``."""


def _check_device(value: str) -> str:
    if value not in DEVICES and not OPENVINO_DEVICE.fullmatch(value):
        raise ValueError(f"must be {', '.join(DEVICES[:-2])} or {DEVICES[-2]}; openvino:GPU names one of OpenVINO's devices")
    return value


Device = Annotated[str, AfterValidator(_check_device)]
ALL = "*"
"""Value of ``--lesions`` given without classes."""

LARGEST = 1e18
"""Maximum ``min_size``: still finite in voxels of any size."""

CaseNames = Literal["path", "uid", "number"]
UnusualValues = Literal["fail", "allow"]
Seg = Literal["binary", "labelmap", "none"]
BlendOn = Literal["logits", "probabilities"]
Tta = Literal["none", "flips"]
Like = Literal["nnunet"]

LONGEST_WAIT = 30 * 86_400
"""Seconds, a month: timers of Python and of the kernel overflow far above it."""

MOST_MEMORY = 1_000_000
"""GB, a petabyte; no machine has more."""

MOST_WORKERS = 65_535
"""Each worker takes one of the scheduler's ports, and there are no more ports."""

MOST_TILES = 65_535
"""Maximum batch, which is held in memory at once."""

MOST_THREADS = 1_024
"""Maximum per call; ONNX Runtime starts them all at once."""

MOST_PARTS = 999_999
"""Part files are numbered with six digits."""

MOST_AUDITED = 1000
"""Most windows that ``--audit`` can list."""

LARGEST_WINDOW = 101
"""Largest window of the majority filter."""

MOST_RETRIES = 16
"""Each wait is twice the previous one: the 16th takes nine hours."""

LONGEST_PATH, LONGEST_FILE_NAME = 4_095, 255
"""Maximum lengths in bytes on Linux."""


def check_text(value: Any) -> Any:
    """Check that text from the user, such as a path, is not empty and has no NUL, which would end it for the system."""
    text = str(value) if isinstance(value, str | Path) else None
    if text is not None and (not text.strip() or "\0" in text):
        raise ValueError("must not hold a NUL character" if text.strip() else "must not be empty")
    return value


def check_path(value: Any) -> Any:
    """Check that a local path is not too long for Linux."""
    text = os.fsencode(check_text(value)) if isinstance(value, str | Path) else b""
    if b"://" not in text and (len(text) > LONGEST_PATH or max(map(len, text.split(b"/"))) > LONGEST_FILE_NAME):
        raise ValueError(f"must be a path of at most {LONGEST_PATH} bytes, and {LONGEST_FILE_NAME} in each part")
    return value


Text = Annotated[str, BeforeValidator(check_text)]
File = Annotated[Path, BeforeValidator(check_path)]
Band = Annotated[int, Field(le=MOST_CHANNELS)]
Tile = Annotated[int, Field(ge=1, le=MOST_PIXELS)]
Overlap = Annotated[int, Field(ge=0, le=MOST_PIXELS)]


def on_this_machine(path: Path) -> Path:
    """Check that a path is none of a bucket or a server."""
    if re.match(r"\w+:/", str(path)):  # Path has made s3:/ of s3://
        raise ValueError("must be a file of this machine")
    return path
