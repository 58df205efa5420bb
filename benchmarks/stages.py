"""What a run spends beside the network: each stage alone, on one core, over all windows of a scene."""

import shutil
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from scenes import CLASSES, SCRATCH, TILE

from segpipe.formats.case import Case
from segpipe.formats.case_scaling import scaling_of
from segpipe.formats.raster.gdal import gdal_options
from segpipe.formats.raster.sink import raster_sink
from segpipe.geometry.reflection import reflected
from segpipe.network.read import read_spec
from segpipe.pipeline.blend import Strip
from segpipe.pipeline.decision import Decision
from segpipe.pipeline.opening import open_checked
from segpipe.results.areas import Areas
from segpipe.results.mask_style import mask_style
from segpipe.results.run import Run
from segpipe.results.statistics import Box
from segpipe.settings import load_settings
from segpipe.storage.folder import Folder

Seconds = dict[str, float]


def stages(model: Path, source: Path) -> Seconds:
    """Core-seconds by stage; scores are noise over large fields, so that masks compress as real ones do."""
    settings = load_settings(None, {"input": (str(source),), "model": model, "output": SCRATCH / "stages", "device": "cpu"})
    run, spent = Run(read_spec(settings), settings), Seconds()
    with gdal_options():
        _measure(run, Case("scene", str(source)), spent)
    shutil.rmtree(SCRATCH / "stages", ignore_errors=True)
    return spent


def _measure(run: Run, case: Case, spent: Seconds) -> None:
    source, info = open_checked(case, run.model)
    scaling, decision = scaling_of(source, run.model.contract), Decision(run.model.contract, run.model.blend_on)
    areas, strip = Areas(info.grid, run.model.contract), Strip(info.cover)
    sink = raster_sink(Folder(SCRATCH / "stages"), "scene.tif", info.grid, mask_style(decision, run))
    fields = np.kron(np.random.default_rng(0).normal(size=(CLASSES, 16, 16)), np.ones((1, TILE // 16, TILE // 16)))
    with closing(source):
        for index in info.cover:
            inside, _ = reflected(info.cover.window(index), info.cover.shape)
            stored, invalid = _timed(spent, "read", source.read, inside)
            _timed(spent, "scale", scaling, stored, invalid)
            scores, window = fields.astype(np.float32), info.cover.finished(index)
            _timed(spent, "weight", np.multiply, scores, info.weights.of(index), scores)
            sums = _timed(spent, "blend", strip.add, index, scores)[:, : window.shape[0], : window.shape[1]]
            labels, _ = _timed(spent, "decide", decision.labels, sums, None, None)
            _timed(spent, "count", areas.add, Box(window, labels))
            _timed(spent, "write", sink.write, window, labels)
    _timed(spent, "finish", sink.finish)


def _timed(spent: Seconds, stage: str, work: Callable[..., Any], *arguments: Any) -> Any:
    started = time.perf_counter()
    result = work(*arguments)
    spent[stage] = spent.get(stage, 0.0) + time.perf_counter() - started
    return result
