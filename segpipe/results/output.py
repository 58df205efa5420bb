"""The files of one case: its mask, its confidence, its style and, last, its record."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from segpipe.errors import DamagedPartError, OutputError, SourceError, on_failure
from segpipe.formats.case import Case
from segpipe.formats.identity import FolderListings, identities
from segpipe.formats.registry import CONFIDENCE, FORMATS, open_case
from segpipe.formats.sink import Sink, Target
from segpipe.formats.style import Style
from segpipe.geometry.windows import Window
from segpipe.pipeline.decide import Decided
from segpipe.pipeline.decision import Decision
from segpipe.pipeline.opening import CHANGED, CaseInfo
from segpipe.results.boxes import BoxSink, read_boxes
from segpipe.results.case_record import WrittenFiles, record_of, shown_scene
from segpipe.results.case_statistics import CaseStatistics
from segpipe.results.class_files import ClassFile, FinishedMask, Written, class_files, write_class_files
from segpipe.results.cleaning.cleaner import MaskForm
from segpipe.results.cleaning.stage import NamedGrid, Uncleaned
from segpipe.results.lesions.rule import INSTANCES
from segpipe.results.mask_style import confidence_style, instance_style, legend, mask_style, segments
from segpipe.results.name_conflicts import is_foreign, refuse_alike
from segpipe.results.parts import Tally, part_files, read_tally, write_tally
from segpipe.results.records import read_record
from segpipe.results.run import Run
from segpipe.results.schema import Record
from segpipe.results.statistics import Row
from segpipe.results.targets import record_name, style_name, targets
from segpipe.storage import Store
from segpipe.storage.files import output_errors
from segpipe.storage.ownership import is_own_style
from segpipe.timing.spans import span

SMALL = 2**22
"""Most pixels of a case whose record is not flushed to disk; flushing takes most of the 0.4 ms of a record (measured)."""


def check_unchanged(case: Case, info: CaseInfo) -> None:
    """Refuse a case whose files changed while it was read: its mask could mix pixels of both versions."""
    files = identities(case.path, info.asked)
    if files != info.files or FolderListings().place(case.path) != info.place:
        raise SourceError(CHANGED.format(case.path))


class BoxWriter(Protocol):
    """Takes the labels, or the confidence, of finished boxes: a sink, a file of a part, or one that is to be cleaned."""

    def write(self, window: Window, values: NDArray[Any]) -> None: ...

    def discard(self) -> None: ...


Writer = TypeVar("Writer", bound=BoxWriter)


class Layers(Generic[Writer]):
    """Writes a mask, a confidence if requested, and statistics, from finished boxes in any order."""

    def __init__(
        self,
        statistics: CaseStatistics,
        run: Run,
        mask: Callable[[Decision], Writer],
        confidence: Callable[[Decision], Writer],
    ) -> None:
        self.decision = Decision(run.model.contract, run.model.blend_on)
        self.statistics = statistics
        self.inferred = 0
        self.names: BoxSink | None = None
        self.mask = mask(self.decision)
        self.confidence: Writer | None = None
        if run.settings.confidence:
            with on_failure(self.mask.discard):
                self.confidence = confidence(self.decision)

    @property
    def sinks(self) -> list[Writer]:
        """The mask's and, if there is one, the confidence's."""
        return [sink for sink in (self.mask, self.confidence) if sink is not None]

    def keep(self, box: Decided, into: Sequence[BoxWriter] | None = None) -> None:
        """Write a box to its own sinks, or to others, without counting its labels."""
        self.inferred += box.inferred
        self.statistics.check(box)
        for sink, values in zip(self.sinks if into is None else into, (box.labels, box.confidence), strict=False):
            if box.window.size and values is not None:
                sink.write(box.window, values)

    def write(self, box: Decided) -> None:
        """Write and count a box."""
        self.inferred += box.inferred
        if not box.window.size:
            return  # this box of the network's grid owns no own pixel
        self.mask.write(box.window, box.labels)
        with span("count"):
            names = self.statistics.add(box)
        if self.names is not None and names is not None:
            self.names.write(box.window, names)
        if self.confidence is not None and box.confidence is not None:
            self.confidence.write(box.window, box.confidence)

    def discard(self) -> None:
        """Remove everything half-written."""
        self.statistics.close()
        for sink in self.sinks:
            sink.discard()
        if self.names is not None:
            self.names.discard()


def _name_components(layers: Layers[Any], output: Store, name: str) -> None:
    """Keep the names of each box's components for a volume of instances: their numbers are only known at the end."""
    lesions = layers.statistics.lesions
    if lesions is None or not lesions.rule.instances:
        return
    with on_failure(layers.discard):
        layers.names = BoxSink(output, name)


def _statistics(case: Case, info: CaseInfo, run: Run) -> CaseStatistics:
    """The statistics of a case; the case is opened again if a statistic asks for its pixels."""
    contract, overrides = run.model.contract, run.overrides
    return CaseStatistics(info.grid, contract, lambda: open_case(case, contract, overrides), run.lesions, run.settings.audit)


class PartOutput:
    """Writes the files of one part of a case, which are kept until the parts are joined."""

    def __init__(self, case: Case, info: CaseInfo, run: Run, number: int, batch: int) -> None:
        output, files = run.output, part_files(case, number)
        self._case, self._info = case, info
        self.warnings: tuple[str, ...] = ()  # the case reports them when it is joined
        self._output, self._counts, self._opened, self._batch = output, files.counts, info.opened, batch
        self._layers = Layers(
            _statistics(case, info, run),
            run,
            lambda _: BoxSink(output, files.mask),
            lambda _: BoxSink(output, files.confidence),
        )
        self.write, self.discard = self._layers.write, self._layers.discard
        if run.cleaning is None:
            _name_components(self._layers, output, files.instances)
        else:  # what is counted is known when the parts are joined
            self.write = self._layers.keep

    def finish(self) -> None:
        """Give each file its name, the counts last."""
        self._layers.statistics.close()
        check_unchanged(self._case, self._info)
        named = [] if self._layers.names is None else [self._layers.names]
        digests = tuple(sink.finish() for sink in (*self._layers.sinks, *named))
        seconds = time.monotonic() - self._opened
        tally = Tally(self._layers.statistics.states, self._layers.inferred, seconds, self._batch, digests)
        write_tally(self._output, self._counts, tally)


class CaseOutput:
    """Writes the files of one case, box by box or part by part; no file has its final name before ``finish``."""

    def __init__(self, case: Case, info: CaseInfo, run: Run) -> None:
        self._case, self._info, self._run = case, info, run
        self._output = run.output
        self._seconds = 0.0
        self._batches: set[int] = set()
        self._layers = Layers(
            _statistics(case, info, run),
            run,
            lambda decision: self._sink("", replace(mask_style(decision, run), scene=shown_scene(info, run))),
            lambda decision: self._sink(CONFIDENCE, confidence_style(decision)),
        )
        self._instances: Sink | None = None
        self._class_sizes: dict[str, int | None] = {}
        """Bytes of the masks of classes, and None for what lies beside them."""
        self._parts: list[tuple[str, str]] = []
        self.write = self._layers.write
        with on_failure(self._layers.discard):
            self._refuse_taken_classes()
            self._uncleaned = self._begin_cleaning()
        _name_components(self._layers, self._output, f"{case.name}{INSTANCES}.boxes")

    def _begin_cleaning(self) -> Uncleaned | None:
        """Where labels stay until all are there, if they are to be cleaned."""
        rule, decision = self._run.cleaning, self._layers.decision
        if rule is None:
            return None
        place = NamedGrid(self._case.name, self._case.path, self._info.grid)
        form = MaskForm.of(decision, confidence=self._run.settings.confidence)
        self.write = self._keep
        return Uncleaned(self._output, place, form, rule)

    def _keep(self, box: Decided) -> None:
        """Keep a box until the case is cleaned."""
        assert self._uncleaned is not None
        self._layers.keep(box, self._uncleaned.layers)

    def _clean(self) -> None:
        """Write and count the cleaned labels."""
        if self._uncleaned is None:
            return
        with span("clean", self._case.name):
            for slab in self._uncleaned.cleaned():
                self._layers.write(Decided(self._info, slab.window, slab.labels, slab.confidence, 0))
        self._uncleaned.discard()

    def discard(self) -> None:
        """Remove everything half-written."""
        self._layers.discard()
        if self._uncleaned is not None:
            self._uncleaned.discard()
        if self._instances is not None:
            self._instances.discard()

    @property
    def warnings(self) -> tuple[str, ...]:
        """Texts about unusual pixels of the case."""
        return self._info.warnings

    def _sink(self, kind: str, style: Style) -> Sink:
        info, spare = self._info, not self._run.model.on_host
        derived = self._run.derived
        name = self._case.name + kind
        target = Target(
            output=self._output,
            stem=name,
            grid=info.grid,
            style=style,
            template=info.template,
            spare=spare,
            derived=derived,
            tables=lambda: self._tables,
        )
        return FORMATS[self._case.format].sink(target)

    @cached_property
    def _tables(self) -> dict[str, list[Row]]:
        """Tables by name; once all is counted."""
        return self._layers.statistics.rows()

    def add(self, number: int) -> None:
        """Add the boxes and counts of one part.

        Raises:
            DamagedPartError: the part has changed since it was written, and must be processed again.
        """
        files = part_files(self._case, number)
        tally = read_tally(self._output, files.counts)
        if len(tally.digests) < len(self._layers.sinks):
            raise DamagedPartError(f"{self._output.path(files.confidence)} is gone")
        layers: Sequence[BoxWriter] = self._layers.sinks if self._uncleaned is None else self._uncleaned.layers
        for sink, name, digest in zip(layers, (files.mask, files.confidence), tally.digests, strict=False):
            for window, values in read_boxes(self._output, name, digest):
                sink.write(window, values)
        if self._layers.names is not None and self._uncleaned is None:
            self._parts.append((files.instances, tally.digests[-1]))
            for _ in read_boxes(self._output, *self._parts[-1]):
                break  # the digest has been compared
        if self._uncleaned is None:
            self._layers.statistics.merge(tally.states)
        else:
            self._layers.statistics.merge_checked(tally.states)
        self._layers.inferred += tally.inferred
        self._seconds += tally.seconds
        self._batches.add(tally.batch)

    def finish(self) -> None:
        """Give each file its name, the record last."""
        self._clean()
        self._layers.statistics.close()
        check_unchanged(self._case, self._info)
        record, sinks = record_name(self._case), [*self._layers.sinks, *self._numbered()]
        refuse_alike(self._case, self._output)
        before = read_record(self._output, self._case)
        with output_errors(self._output.path(record)):
            styles = {style_name(self._case): style} if (style := self._style()) is not None else {}
            self._forget([*(name for sink in sinks for name in sink.files()), *styles, *self._class_names()], before)
            # without its record a case is not done: an old one must not vouch for a new mask
            self._output.remove(record)
        written = [name for sink in sinks for name in sink.finish()]
        for name, style in styles.items():
            self._output.write(name, style, flush=False)
        self._class_sizes = dict(self._write_classes())
        written += self._class_sizes
        # one that a power cut takes is done again: the small need not wait for the disk
        flush = math.prod(self._info.grid.shape) > SMALL
        self._output.write_json(record, self._record([*written, *styles]).as_json(), flush=flush)

    def _record(self, outputs: list[str]) -> Record:
        made = WrittenFiles(
            outputs=outputs,
            sizes=self._sizes(outputs),
            tables=self._tables,
            inferred=self._layers.inferred,
            seconds=time.monotonic() - self._info.opened + self._seconds,
            batches=self._batches,
        )
        return record_of(self._case, self._info, self._run, self._layers.statistics, made)

    def _class_names(self) -> list[str]:
        """Names of the masks of the classes; empty unless requested."""
        suffix = self._layers.mask.name.removeprefix(self._case.name)
        return [file.stem + suffix for file in class_files_of(self._case, self._run)]

    def _refuse_taken_classes(self) -> None:
        """Refuse to replace files that segpipe did not write."""
        for name in self._class_names():
            with output_errors(self._output.path(name)):
                there = self._output.has(name)
            if there and is_foreign(self._output, name, self._case):
                raise OutputError(
                    f"{self._output.path(name)} was not written by segpipe: move it away, or name another --output"
                )

    def _write_classes(self) -> list[Written]:
        """Write a mask for each class, made of the finished mask."""
        files, decision = class_files_of(self._case, self._run), self._layers.decision
        if not files:
            return []
        mask = FinishedMask(
            case=self._case,
            output=self._output,
            name=self._layers.mask.name,
            nodata=decision.nodata,
            bands=decision.bands,
            contract=decision.contract,
            tags=mask_style(decision, self._run).tags or {},
        )
        with span("classes", self._case.name):
            return list(write_class_files(mask, files, self._sink))

    def _numbered(self) -> list[Sink]:
        """A second mask with the number of each component, if requested; complete, but not finished."""
        names, lesions = self._layers.names, self._layers.statistics.lesions
        if names is None or lesions is None:
            return []
        self._instances = self._sink(INSTANCES, instance_style(self._layers.decision, self._run))
        if self._parts:
            each = zip(self._parts, lesions.numbers(), strict=True)
            named = [(read_boxes(self._output, *part), numbers) for part, numbers in each]
        else:
            named = [(names.boxes(), np.concatenate([np.zeros(0, np.uint16), *lesions.numbers()]))]
        for boxes, numbers in named:
            lookup = np.append(numbers, np.uint16(0))  # -1 is in no component
            for window, values in boxes:
                self._instances.write(window, lookup[values])
        names.discard()
        return [self._instances]

    def _style(self) -> bytes | None:
        """QGIS's style, if it is requested and QGIS can open the mask."""
        style = FORMATS[self._case.format].style if self._run.styled else None
        return None if style is None else style(*legend(self._run.model.contract))

    def _forget(self, coming: list[str], before: Record | None) -> None:
        """Remove the files of an earlier run that this one does not write."""
        for name in self._derived(coming) if before is None else before.outputs:
            if name not in coming and not self._is_theirs(name):
                self._output.remove(name)

    def _derived(self, coming: list[str]) -> list[str]:
        """Files made of an earlier mask whose run was killed between removing the record and writing a new one."""
        family = FORMATS[self._case.format]
        others = set(targets(self._case)) - {*coming, style_name(self._case)} if family.derives else set()
        return [name for name in sorted(others) if self._output.has(name) and family.owns(self._output, name)]

    def _is_theirs(self, name: str) -> bool:
        """Whether a style was not written by segpipe."""
        return name == style_name(self._case) and self._output.has(name) and not is_own_style(self._output.read(name))

    def _sizes(self, outputs: list[str]) -> dict[str, int | None]:
        """Bytes of the masks, and of the files made of them, such as a SEG."""
        sinks = [*self._layers.sinks, *([self._instances] if self._instances else [])]
        masks: dict[str, int | None] = {sink.name: sink.size for sink in sinks}
        masks |= {name: size for name, size in self._class_sizes.items() if size is not None}
        derived = [name for sink in sinks for name in sink.files()] if FORMATS[self._case.format].derives else []
        return masks | {name: self._output.size(name) for name in derived if name in outputs and name not in masks}


def class_files_of(case: Case, run: Run) -> list[ClassFile]:
    """The masks of classes that a run writes beside the mask of a case."""
    return class_files(case, segments(run.model.contract)) if run.settings.per_class else []
