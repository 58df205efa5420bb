"""What is known of a model before any case is opened: the file, its contract, and how it is run."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from numpy.typing import NDArray

from segpipe.contract import Contract
from segpipe.errors import SourceError
from segpipe.geometry.windows import Tiling
from segpipe.messages.printable import dims
from segpipe.network.averaging import AS_IT_IS, Axes
from segpipe.network.conversion import OlderForm
from segpipe.network.device import ON_HOST, DeviceMemory, Kind, Options
from segpipe.network.ending import Ending
from segpipe.network.feeds import Feed
from segpipe.network.openvino_session import Engine
from segpipe.settings import BlendOn, Like

Blended = BlendOn | Literal["labels"]
"""What is blended: scores, or labels where the network gives no scores."""


@dataclass(frozen=True)
class ModelSpec:
    """A model file checked against its contract and the settings; picklable: all that a worker needs to load the model."""

    path: Path
    files: tuple[Path, ...]
    """The model file, and files beside it with its weights."""
    sha256: str
    """Hash of the files and the contract in force; for several models, of their hashes."""
    contract: Contract
    contract_origin: str
    tiling: Tiling
    """Tiling of a case with the network's spatial axes; ``tiling_of`` gives the tiling of any case."""
    blend_on: Blended
    batch: int
    device: Kind
    device_reason: str
    input: str
    """The input of pixels; the first of several."""
    output: str
    input_dtype: str
    ending: Ending
    """The end of its graph, at that output."""
    feeds: tuple[Feed, ...] = ()
    """What each input of the graph gets of a batch."""
    older: OlderForm | None = None
    """What the graph is converted to, which is newer than ONNX Runtime takes; None: nothing."""
    batch_is_fixed: bool = False
    may_drop: bool = False
    """Whether its dropout may be in training mode, which the trial looks at."""
    threads: int = 1
    """Threads within one call on a CPU."""
    options: Options = field(default_factory=Options)
    """Numerical options of a GPU."""
    weights_mb: float = 0.0
    """Host memory of the loaded network before its trial."""
    network_mb: float = 0.0
    """Host memory that one batch took in the trial, besides the weights."""
    trial_shapes: tuple[tuple[int, ...], tuple[int, ...]] | None = None
    """Shapes of the trial's batch on a CPU and of the raw output for it; None before a trial."""
    output_mb: float = 0.0
    """Host memory of the scores of one batch, which is part of ``network_mb``."""
    memory: DeviceMemory | None = None
    """Memory limits on the device; None on the CPU."""
    engine: Engine | None = None
    """OpenVINO and what it computes in; None for ONNX Runtime."""
    min_agreement: float = 0.99
    """Least share of labels equal to those of ONNX Runtime on the CPU."""
    agreement: float | None = None
    """Share of labels equal to those of ONNX Runtime on trial tiles; None for ONNX Runtime on the CPU."""
    flips: tuple[Axes, ...] = AS_IT_IS
    """Flips of a tile whose scores are averaged, as sets of the network's spatial axes; the first is the identity."""
    like: Like | None = None
    """The program whose choices a run takes for comparison; None: segpipe's own."""
    folds: tuple["ModelSpec", ...] = ()
    """The models whose scores are averaged, this one first; empty for a single model."""
    listed: tuple["ListMember", ...] = ()
    """The models of a list, whose label maps are joined in this order; empty for a model that is run itself."""

    @property
    def members(self) -> tuple["ModelSpec", ...]:
        """Each model on its own without flips, with the batch and threads of the ensemble; of a list, each of its models."""
        if self.listed:
            return tuple(member for one in self.listed for member in one.spec.members)
        if not self.folds:
            return (replace(self, flips=AS_IT_IS),)
        ours: dict[str, Any] = {
            key: getattr(self, key) for key in ("batch", "threads", "tiling", "blend_on", "device", "options", "memory")
        }
        return tuple(replace(fold, **ours) for fold in self.folds)

    def located(self) -> "ModelSpec":
        """The same with absolute paths, for a process in another folder; not of a list."""
        path, *files = (file.absolute() for file in (self.path, *self.files))
        return replace(self, path=path, files=tuple(files), folds=tuple(fold.located() for fold in self.folds))

    def given(self, batch: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """What each input of the graph gets of a batch ``(batch, channels, *tile)``."""
        return {feed.name: feed.given(batch) for feed in self.feeds}

    @property
    def folder(self) -> Path | None:
        """Folder of the external data of a converted graph; None if the file is opened itself."""
        return None if self.older is None else self.path.parent

    @property
    def on_host(self) -> bool:
        """Whether scores come back as NumPy arrays, from calls that run side by side."""
        return self.device in ON_HOST

    @property
    def title(self) -> str:
        """Path or paths of the model, for a message."""
        return ", ".join(str(model.path) for model in self.folds or (self,))

    @property
    def passes(self) -> int:
        """Number of times that a tile is scored; joining the labels of a list scores none."""
        if self.listed:
            return 1
        return len(self.flips) * len(self.folds or (self,))

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """Shape of a batch in the pipeline: ``(batch, channels, *Tiling.input)``."""
        return (self.batch, self.contract.input_channels, *self.tiling.input)

    @property
    def output_shape(self) -> tuple[int, ...] | None:
        """Shape of the raw output for a batch, as the trial has shown; None if no batch of this shape was tried."""
        if self.trial_shapes is None or self.trial_shapes[0] != self.batch_shape:
            return None
        return self.trial_shapes[1]

    def tiling_of(self, shape: Sequence[int]) -> Tiling:
        """Tiling of a case of this shape; a 2-D network gets the slices of a volume along its first axis.

        Raises:
            SourceError: the number of axes does not fit the network.
        """
        layout = self.contract.layout
        if self.contract.neighbours and len(shape) == 2:
            raise SourceError(
                f"a model that takes neighbouring slices (neighbours = {self.contract.neighbours}) needs volumes, got an "
                f"image of {dims(shape)}: give all slices as one file, such as .nii.gz"
            )
        if len(shape) == layout.ndim:
            return self.tiling
        if not layout.is_volume and len(shape) == 3:
            return self.tiling.sliced()
        if layout.is_volume and len(shape) == 2:
            raise SourceError(
                f"a model of volumes needs volumes, got an image of {dims(shape)} and the model {self.path} of layout "
                f'"{layout}": take a model of images, or give all slices as one file, such as .nii.gz'
            )
        raise SourceError(f"a case must have 2 spatial axes, or 3 for a volume, got {dims(shape)}: give one image or volume")


@dataclass(frozen=True)
class ListMember:
    """A model of a list, and what its labels become in the joined map."""

    name: str
    spec: ModelSpec
    ids: tuple[tuple[int, int], ...]
    """Each label of its masks, or each band if its classes are independent, with the id in the joined map; 0: no claim."""
