"""Export a trained folder of nnU-Net: one verified file per fold, or one with the mean of all."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from segpipe.contract import Contract
from segpipe.errors import ExportError
from segpipe.export.families import Network
from segpipe.export.graph import Scorer, score, to_onnx
from segpipe.export.make import Exported, Say, Traced, write
from segpipe.export.network import weights_digest
from segpipe.export.nnunet.checkpoint import Checkpoint, read_checkpoint
from segpipe.export.nnunet.contract import contract_of
from segpipe.export.nnunet.folder import TrainedFolder, open_folder
from segpipe.export.nnunet.network import Folds, network_of
from segpipe.export.nnunet.plans import Configuration, configuration_of
from segpipe.export.nnunet.settings import NnunetSettings
from segpipe.export.nnunet.trainer import check_trainer
from segpipe.export.stride import Score, Stride
from segpipe.export.tiles import noise
from segpipe.export.verify import check_steady
from segpipe.messages.printable import dims


@dataclass(frozen=True)
class TrainedConfiguration:
    """What a trained folder says, before its network is built."""

    folder: TrainedFolder
    configuration: Configuration
    contract: Contract


def export_nnunet(settings: NnunetSettings, say: Say) -> Iterator[Exported]:
    """Export the folds one after the other, or their mean; yield each file when it is verified.

    Raises:
        SegpipeError: a fold cannot be exported; files of earlier folds stay.
    """
    folder = open_folder(settings.folder, settings.checkpoint)
    folds = folder.chosen(settings.folds)
    groups = [folds] if settings.merge else [[fold] for fold in folds]
    outputs = [settings.output_of(group[0], len(folds)) for group in groups]
    files = [settings.of_file(folder.checkpoint(group[0]), path) for group, path in zip(groups, outputs, strict=True)]
    for group, file in zip(groups, files, strict=True):
        say(f"loading fold {', '.join(group)} of {folder.path}")
        checkpoints = [read_checkpoint(folder.checkpoint(fold)) for fold in group]
        for checkpoint in checkpoints:
            check_trainer(checkpoint.trainer, network_of_plans=settings.network_of_plans)
        opened = opened_folder(folder, checkpoints)
        yield write(_trace(opened, checkpoints, say), file, say)


def opened_folder(folder: TrainedFolder, checkpoints: Sequence[Checkpoint]) -> TrainedConfiguration:
    """The configuration that checkpoints were trained in, and its contract.

    Raises:
        ExportError: checkpoints differ in it, or it needs what a contract cannot say.
    """
    first = checkpoints[0]
    for other in checkpoints[1:]:
        if (other.configuration, other.flips) != (first.configuration, first.flips):
            raise ExportError(
                f"folds must be of one training, and {other.path} differs from {first.path} in configuration or mirroring: "
                "name other folds by --fold"
            )
    name = first.configuration or folder.configuration_name
    if name is None:
        raise ExportError(
            f"neither {first.path} nor the name of its folder tells the configuration: rename the folder to "
            "TRAINER__PLANS__CONFIGURATION, as nnU-Net does"
        )
    configuration = configuration_of(folder.plans, name)
    return TrainedConfiguration(folder, configuration, contract_of(folder, configuration, first.flips))


def _trace(opened: TrainedConfiguration, checkpoints: Sequence[Checkpoint], say: Say) -> Traced:
    contract, architecture = opened.contract, opened.configuration.architecture
    module = network_of(architecture, checkpoints, contract.channel_count, contract.scores)
    folds = f", mean of {len(checkpoints)} folds" if isinstance(module, Folds) else ""
    network = Network(module, f"nnU-Net {opened.configuration.name}, {architecture.class_name}{folds}")
    scorer = Scorer(module)
    shape = (contract.channel_count, *opened.configuration.patch)
    check_scores(partial(score, scorer), shape, contract.scores)
    say("measuring the stride")
    stride = stride_of(partial(score, scorer), shape, opened.configuration.align)
    say("exporting")
    proto = to_onnx(network, shape, free_size=False)
    provenance = {**contract.provenance, **_origin(checkpoints)}
    return Traced(network, scorer, contract.model_copy(update={"provenance": provenance}), stride, proto, free_size=False)


def check_scores(torch_scores: Score, shape: tuple[int, ...], scores: int) -> None:
    """Check that the network gives the contract's scores at the patch's size, each time the same.

    Raises:
        ExportError: it does not.
    """
    tiles = [noise(shape, seed) for seed in (1, 2)]
    found = torch_scores(tiles[0][None]).shape
    if found != (1, scores, *shape[1:]):
        raise ExportError(
            f"the network must give {scores} scores for each voxel of the patch, got {dims(found)} for {dims(shape)}: take "
            "plans.json and dataset.json of its training"
        )
    check_steady(torch_scores, tiles)


def stride_of(torch_scores: Score, shape: tuple[int, ...], align: tuple[int, ...]) -> Stride:
    """The stride of the plans, and the change of scores in the middle of a patch that starts one stride further.

    Instance norm spans the whole patch, so there is always some.
    """
    canvas = noise((shape[0], *(n + a for n, a in zip(shape[1:], align, strict=True))), 0)
    here, there = (
        torch_scores(canvas[(None, slice(None), *(slice(s * a, s * a + n) for n, a in zip(shape[1:], align, strict=True)))])
        for s in (0, 1)
    )
    middle = [slice(a + (n - a) * 3 // 8, a + (n - a) * 5 // 8) for n, a in zip(shape[1:], align, strict=True)]
    moved = [slice(m.start - a, m.stop - a) for m, a in zip(middle, align, strict=True)]
    one, other = here[0][(slice(None), *middle)], there[0][(slice(None), *moved)]
    spread = float(one.std(dtype=np.float64)) or 1.0
    error = float(np.sqrt(np.square(np.subtract(one, other, dtype=np.float64)).mean())) / spread if one.size else 0.0
    return Stride(max(align), False, error)


def _origin(checkpoints: Sequence[Checkpoint]) -> dict[str, str]:
    """Provenance of the weights of several folds; that of one is its file's."""
    origin = {"trainer": checkpoints[0].trainer}
    if len(checkpoints) == 1:
        return {**origin, "weights": _named(checkpoints[0].path)}
    digests = [weights_digest(one.path) for one in checkpoints]
    together = hashlib.sha256("".join(digests).encode()).hexdigest()
    return {**origin, "weights": ", ".join(_named(one.path) for one in checkpoints), "weights_sha256": together}


def _named(path: Path) -> str:
    return f"{path.parent.name}/{path.name}"
