"""Names of the files that a case may write."""

from segpipe.formats.case import Case
from segpipe.formats.registry import FORMATS, kinds
from segpipe.results.lesions.rule import INSTANCES

STYLE = ".qml"


def targets(case: Case) -> list[str]:
    """All files that a case may write besides its record."""
    return [f"{case.name}{kind}" for kind in (*kinds([FORMATS[case.format]]), STYLE)]


def instance_targets(case: Case) -> list[str]:
    """All files that a case may write with ``--instances``, besides the others."""
    return [f"{case.name}{INSTANCES}{suffix}" for suffix in FORMATS[case.format].outputs]


def past_targets(case: Case) -> list[str]:
    """All files that an earlier run may have written for a case of this name, in any format."""
    families = list(FORMATS.values())
    instances = [INSTANCES + suffix for family in families for suffix in family.outputs]
    return [f"{case.name}{kind}" for kind in (*kinds(families), *instances, STYLE)]


def style_name(case: Case) -> str:
    """Name of QGIS's style beside the mask."""
    return case.name + STYLE


def record_name(case: Case) -> str:
    """Name of a case's record."""
    return f"{case.name}.json"
