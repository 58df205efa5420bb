"""Coded concepts of classes: SNOMED CT where the contract has codes, else a private coding scheme."""

import hashlib
from collections.abc import Sequence
from functools import cache

from highdicom.coding_schemes import CodingSchemeIdentificationItem
from highdicom.sr import CodedConcept
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code

from segpipe.formats.style import Segment

PRIVATE = "99SEGPIPE"
"""Coding scheme designator of classes without a SNOMED CT code; ``99`` marks a private scheme (PS3.16, 8.2)."""

LONGEST = 64
"""Characters of a label or a meaning (LO)."""

UNKNOWN_CATEGORY = Code("CLASS", PRIVATE, "Class of a segmentation model")
"""Category of a class without a code: whether it is an anatomical structure or a lesion is not known."""


def text(name: str) -> str:
    """A name as one value of the type LO: a backslash would separate two values."""
    return name.replace("\\", "/").strip()[:LONGEST] or "class"


def concepts_of(segment: Segment) -> tuple[CodedConcept, CodedConcept]:
    """Category and type of a class.

    The code of a private type is a digest of the name: a name has the same code for every model.
    """
    if not segment.snomed:
        value = "C-" + hashlib.sha256(segment.name.encode()).hexdigest()[:12].upper()
        return _concept(UNKNOWN_CATEGORY), _concept(Code(value, PRIVATE, text(segment.name)))
    *category, kind = segment.snomed
    return _concept(_category(category, kind)), _concept(Code(kind, "SCT", text(segment.name)))


def _concept(code: Code) -> CodedConcept:
    return CodedConcept(code.value, code.scheme_designator, code.meaning)


def _category(stated: Sequence[str], kind: str) -> Code:
    """The category of a type: as stated, else that of lesions (CID 7159), else anatomical structure."""
    known = _by_value(7150)
    if stated:
        return known.get(stated[0]) or Code(stated[0], "SCT", "Category of the class")
    lesion = kind in _by_value(7159)
    category: Code = codes.cid7150.MorphologicallyAbnormalStructure if lesion else codes.cid7150.AnatomicalStructure
    return category


@cache
def _by_value(context_group: int) -> dict[str, Code]:
    group = getattr(codes, f"cid{context_group}")
    members = (getattr(group, name) for name in group.dir())
    return {code.value: code for code in members if code.scheme_designator == "SCT"}


def schemes(segments: Sequence[Segment]) -> list[CodingSchemeIdentificationItem] | None:
    """The declaration of the private scheme, if a class of the file needs it."""
    if all(segment.snomed for segment in segments):
        return None
    return [
        CodingSchemeIdentificationItem(
            PRIVATE, name="Classes of segmentation models, by name", responsible_organization="segpipe"
        )
    ]
