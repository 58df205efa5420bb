"""Refuse cases by the names of their files: the run must not replace such files, or the output cannot store them."""

from collections.abc import Collection, Iterator, Sequence

from segpipe.errors import OutputError
from segpipe.formats.case import Case, Failure
from segpipe.formats.cases import Found
from segpipe.formats.registry import FORMATS
from segpipe.results.class_files import FOLDER as CLASSES
from segpipe.results.lesions.rule import INSTANCES
from segpipe.results.records import alike_case, read_record
from segpipe.results.run import Run
from segpipe.results.targets import instance_targets, record_name, style_name, targets
from segpipe.storage import Store
from segpipe.storage.files import output_errors
from segpipe.storage.ownership import is_begun_record, is_own_record, is_own_style


def storable(found: Found, output: Store) -> Found:
    """A search in which cases are refused whose names the output cannot store."""
    return found.without([*_not_storable(found.cases, output)])


def _not_storable(cases: Sequence[Case], output: Store) -> Iterator[Failure]:
    for case in cases:
        try:
            output.check_name(case.name)
        except OutputError as error:
            yield Failure(case, f"{error}: rename {case.path}")


def without_reserved(found: Found, run: Run) -> Found:
    """A search in which cases are refused whose masks could have the names of other cases' instances or classes."""
    rule, cases = run.lesions, found.cases
    failed: list[Failure] = []
    if rule is not None and rule.instances:
        text = "with --instances the names *.instances are reserved, got {}: rename it"
        failed += [Failure(case, text.format(case.path)) for case in cases if case.name.endswith(INSTANCES)]
    if run.settings.per_class:
        text = "with --per-class the folders *.classes are reserved, got {}: rename it"
        failed += [Failure(case, text.format(case.path)) for case in cases if f"{CLASSES}/" in case.name]
    return found.without(failed)


def refuse_taken(case: Case, run: Run, sources: Collection[str]) -> None:
    """Refuse a case that would replace one of ``sources``, which are absolute paths, or a file not written by segpipe.

    Raises:
        OutputError: the case would replace such a file; the message has its path.
    """
    output = run.output
    refuse_alike(case, output)
    rule = run.lesions
    more = instance_targets(case) if rule is not None and rule.instances else []
    for name in (*targets(case), *more, record_name(case)):
        if name == style_name(case) and not run.styles(case):
            continue  # not written in this run
        with output_errors(output.path(name)):
            there = output.has(name)
        if there and (output.is_among(name, sources) or is_foreign(output, name, case)):
            raise OutputError(f"{output.path(name)} is an input or was not written by segpipe: name another --output")


def refuse_alike(case: Case, output: Store) -> None:
    """Refuse a case whose files would replace those of another one.

    Raises:
        OutputError: the file system of the output takes the names of both for one.
    """
    if (other := alike_case(output, case)) is not None:
        raise OutputError(
            f"the file system of the output must tell names of cases apart, and {output} has files of {other} under the "
            f"name {case.name}: rename one of them, or give them outputs of their own"
        )


def is_foreign(output: Store, name: str, case: Case) -> bool:
    """Whether a file that has the name of one of a case's outputs was not written by segpipe.

    What a power cut has emptied, or left beside a record that it cut off, is no one else's.
    """
    record = read_record(output, case)
    if record is not None and name in (*record.outputs, record_name(case)) and name != style_name(case):
        return False
    with output_errors(output.path(name)):
        if name.endswith(".json"):
            return not is_own_record(output.read(name))
        if name.endswith(".qml"):
            return not is_own_style(output.read(name))
        return not (_is_left(output, name, case) or FORMATS[case.format].owns(output, name))


def _is_left(output: Store, name: str, case: Case) -> bool:
    """Whether a power cut has left a file that only its place shows to be segpipe's: small ones are not flushed."""
    if not output.size(name) or output.is_blank(name):
        return True
    record = record_name(case)
    return output.has(record) and read_record(output, case) is None and is_begun_record(output.read(record))
