"""Unusual pixels of an opened case: find and record them, or refuse the case if its labels would be meaningless."""

import logging
from collections.abc import Sequence
from dataclasses import replace

from segpipe.contract import Contract
from segpipe.errors import SourceError
from segpipe.formats.case import Case
from segpipe.formats.samples import sampled
from segpipe.formats.source import Source
from segpipe.formats.unusual.pixel_check import PixelCheck
from segpipe.formats.unusual.values import Finding
from segpipe.pipeline.opening import CaseInfo

LOG = logging.getLogger("segpipe")


def with_findings(case: Case, info: CaseInfo, findings: Sequence[Finding], *, allow: bool) -> CaseInfo:
    """Add findings to the facts of a case.

    Raises:
        SourceError: labels would be meaningless, and ``allow`` is False.
    """
    refuse_far(case, findings, allow=allow)
    return replace(info, findings=(*info.findings, *findings))


def refuse_far(case: Case, findings: Sequence[Finding], *, allow: bool) -> None:
    """Refuse a case whose labels would be meaningless.

    Raises:
        SourceError: labels would be meaningless, and ``allow`` is False.
    """
    far = [finding.text for finding in findings if finding.far]
    if far and not allow:
        raise SourceError(
            f"{case.path}: {far[0]}. To label it all the same, give --unusual-values allow, "
            'or unusual_values="allow" in Python'
        )


def warn_of_findings(case: Case, source: Source, contract: Contract) -> None:
    """Warn of unusual pixels in a scene that ``tune`` or ``export`` reads for comparison or calibration."""
    for finding in findings_of(source, contract):
        LOG.warning("warning: %s: %s", case.name, finding.text)


def findings_of(source: Source, contract: Contract) -> list[Finding]:
    """Unusual properties of the pixels of an opened case that can be found without its own statistics."""
    return PixelCheck(contract)(sampled(source), None, source.tags(), axes=len(source.grid.shape))
