"""All that one case leaves: its mask, its confidence, its areas and, last, its record."""

import time
from pathlib import Path

import numpy as np

from segpipe import __version__
from segpipe.pipeline.areas import Areas
from segpipe.pipeline.batches import Sheet
from segpipe.pipeline.blend import Finished
from segpipe.pipeline.cases import Case
from segpipe.pipeline.contract import Contract
from segpipe.pipeline.files import partial, write_json
from segpipe.pipeline.labels import CONFIDENCE_NODATA, CONFIDENCE_TOP, Decision
from segpipe.pipeline.records import Record, Run, device_kind, read_record, record_path, targets
from segpipe.pipeline.sinks.raster import Color, RasterSink, Style, palette, parse_color

ABSENT: Color = (225, 225, 225, 255)


def sweep(output: Path, case: Case) -> None:
    """Remove what a worker that was stopped left half-written of a case."""
    drafts = [path.with_suffix(".draft") for path in targets(output, case)]
    for path in (*targets(output, case), *drafts, record_path(output, case)):
        partial(path).unlink(missing_ok=True)


class CaseOutput:
    """What is written of one case, box by box; nothing has its name before ``finish``."""

    def __init__(self, case: Case, sheet: Sheet, run: Run) -> None:
        self._case, self._sheet, self._run = case, sheet, run
        self._decision = Decision(run.model.contract, run.model.blend_on)
        self._areas = Areas(sheet.grid, run.model.contract)
        self._inferred = 0
        self._mask = RasterSink(self._path(""), sheet.grid, mask_style(self._decision, run))
        self._confidence: RasterSink | None = None
        if run.settings.confidence:
            try:
                self._confidence = RasterSink(self._path(".confidence"), sheet.grid, confidence_style(self._decision))
            except BaseException:
                self._mask.discard()
                raise

    def _path(self, kind: str) -> Path:
        style = self._decision
        picture = self._sheet.picture and style.bands == 1 and style.dtype == np.uint8
        return self._run.output / f"{self._case.name}{kind}{'.png' if picture else '.tif'}"

    def write(self, box: Finished) -> None:
        """Decide, write and count one finished box."""
        shape = (self._decision.bands, *box.window.shape)
        if box.sums is None:
            labels = np.full(shape, self._decision.nodata, self._decision.dtype)
            confidence = np.full(shape, CONFIDENCE_NODATA, np.uint8)
        else:
            self._inferred += 1
            total = self._total(box)
            labels = self._decision.labels(box.sums, total, box.invalid)
            if self._confidence is not None and total is not None:
                confidence = self._decision.confidence(box.sums, total, box.invalid)
        self._mask.write(box.window, labels)
        self._areas.add(box.window, labels)
        if self._confidence is not None:
            self._confidence.write(box.window, confidence)

    def _total(self, box: Finished) -> np.ndarray | None:
        if self._confidence is None and not self._decision.needs_total:
            return None
        window = box.window
        return box.sheet.weights.total(tuple(slice(a, b) for a, b in zip(window.start, window.stop, strict=True)))

    def finish(self) -> None:
        """Give every file its name, the record last."""
        record = record_path(self._run.output, self._case)
        sinks = [sink for sink in (self._mask, self._confidence) if sink is not None]
        self._forget([sink.path for sink in sinks], read_record(record))
        # without its record a case is not done: an old one must not vouch for a new mask
        record.unlink(missing_ok=True)
        written = [path for sink in sinks for path in sink.finish()]
        write_json(record, self._record(written))

    def _forget(self, coming: list[Path], before: Record | None) -> None:
        """Remove what an earlier run with other settings wrote of this case and this one will not."""
        for path in targets(self._run.output, self._case):
            if before is not None and path not in coming and self._relative(path) in before["outputs"]:
                path.unlink(missing_ok=True)

    def _relative(self, path: Path) -> str:
        return path.relative_to(self._run.output).as_posix()

    def discard(self) -> None:
        """Leave nothing half-written."""
        for sink in (self._mask, self._confidence):
            if sink is not None:
                sink.discard()

    def _record(self, outputs: list[Path]) -> Record:
        grid, model = self._sheet.grid, self._run.model
        return {
            "case": self._case.name,
            "segpipe": __version__,
            "input": {"path": self._case.path, "shape": list(grid.shape), "crs": str(grid), "files": self._sheet.files},
            "model": {"path": str(model.path), "sha256": model.sha256, "contract": model.contract_origin},
            "settings": self._run.label_settings,
            "confidence": self._confidence is not None,
            "device": device_kind(model),
            "windows": len(self._sheet.cover),
            "inferred": self._inferred,
            "seconds": round(time.time() - self._sheet.opened, 3),
            "outputs": [self._relative(path) for path in outputs],
            "nodata": self._decision.nodata,
            "notes": [*self._sheet.notes, *([] if self._areas.valid()[0] else ["no pixel is valid"])],
            "valid": dict(zip(("pixels", "hectares"), self._areas.valid(), strict=True)),
            "areas": self._areas.table(),
        }


def class_colors(contract: Contract) -> dict[int, Color]:
    """Colour of each class id: the contract's own, or one from the palette."""
    return {c.id: parse_color(c.color) if c.color else palette(position) for position, c in enumerate(contract.mask_classes)}


def mask_style(decision: Decision, run: Run) -> Style:
    """Colour table and names for a mask of one band; band names for independent classes."""
    contract = run.model.contract
    tags = {"SEGPIPE": __version__, "MODEL_SHA256": run.model.sha256}
    if decision.bands > 1:
        bands = [c.name for c in contract.mask_classes]
        return Style(str(decision.dtype), decision.nodata, bands, tags=tags)
    names, colors = _legend(contract)
    return Style(
        str(decision.dtype),
        decision.nodata,
        ["class"],
        colors={**colors, decision.nodata: (0, 0, 0, 0)} if decision.dtype == np.uint8 else None,
        names=names,
        tags=tags | {f"CLASS_{value}": name for value, name in names.items()},
    )


def _legend(contract: Contract) -> tuple[dict[int, str], dict[int, Color]]:
    """Name and colour of each value of a mask of one band."""
    colors = class_colors(contract)
    if contract.task == "multilabel":
        # one independent class: its pixels are 1 where it is present, whatever its id
        (only,) = contract.mask_classes
        return {0: f"not {only.name}", 1: only.name}, {0: ABSENT, 1: colors[only.id]}
    return {c.id: c.name for c in contract.mask_classes}, colors


def confidence_style(decision: Decision) -> Style:
    """Confidence 0 to 254 stands for probability 0 to 1."""
    bands = [c.name for c in decision.contract.mask_classes] if decision.bands > 1 else ["confidence"]
    return Style("uint8", CONFIDENCE_NODATA, bands, tags={"SCALE": str(1 / CONFIDENCE_TOP)})
