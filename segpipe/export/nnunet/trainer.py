"""Which trainers of nnU-Net leave the network of the plans as it is."""

import re

from segpipe.errors import ExportError

OWN = re.compile(
    r"nnUNetTrainer(?:V2)?"
    r"(?:_?(?:\d+epochs?|\d+ep|Benchmark_\d+epochs(?:_noDataLoading)?|DA5(?:ord0|Segord0)?|DASegOrd0|DAOrd0|NoDA|noDummy2DDA"
    r"|NoMirroring|onlyMirror01|warmup|CosAnneal|(?:Vanilla)?Ada[mn](?:\d+en\d+)?|(?:Dice|CE|DiceCE|Topk10|DiceTopK10)Loss"
    r"|Topk10LossLS01|noSmooth|NoDeepSupervision|probabilisticOversampling(?:_\d+)?))*"
)
"""Trainers of nnU-Net that change augmentation, loss, optimiser or length of the training, and not the network."""

BATCH_NORM = "nnUNetTrainerBN"
"""The trainer that replaces instance norm by batch norm."""


def check_trainer(name: str, *, network_of_plans: bool) -> None:
    """Check that a trainer's network is that of the plans, or that the user says so.

    Raises:
        ExportError: it may be another.
    """
    if network_of_plans or name == BATCH_NORM or OWN.fullmatch(name):
        return
    raise ExportError(
        f"the trainer must be one of nnU-Net's that use the network of plans.json, got {name}, whose code is not in the "
        "folder: if it changes the training alone, give --network-of-plans; if it builds its own network, export that with "
        "segpipe export --module"
    )
