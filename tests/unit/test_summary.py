"""What a run notes of its cases, and what it hides of them, against outcomes by hand."""

from dataclasses import replace
from pathlib import Path

import pytest

from segpipe.errors import OutputError, SegpipeError
from segpipe.formats.case import Case, Failure
from segpipe.jobs.case_states import CaseStates
from segpipe.jobs.plan import Cut, Plan, PlannedCase
from segpipe.jobs.redaction import hide_outcome, hide_plan
from segpipe.jobs.summary import WARNED, Summary
from segpipe.jobs.tasks import Outcome
from segpipe.messages.redaction import Redactor, redacting

CASES = [Case(f"c{n:03}", f"/in/hans/c{n:03}.tif") for n in range(WARNED + 2)]


def test_each_outcome_counts_once() -> None:
    summary = Summary(CaseStates(CASES[:4]))
    summary.add(Outcome(CASES[0], 1.0, 3_000_000))
    summary.add(Outcome(CASES[1], 1.0, 5_000_000, error="no bands"))
    summary.add(Outcome(CASES[2], 1.0, outside=True))
    assert (summary.done, summary.outside, summary.skipped) == (["c000"], ["c002"], [])
    assert summary.failed == [Failure(CASES[1], "no bands")]
    assert [case.name for case in summary.good] == ["c000"]
    assert summary.megapixels_per_second == 0
    summary.seconds = 2.0
    assert summary.megapixels_per_second == 1.5  # pixels of the failed case are not labels


def test_the_first_cases_with_unusual_pixels_are_named_and_all_counted() -> None:
    summary = Summary(CaseStates(CASES))
    for case in CASES:
        summary.add(Outcome(case, 0.0, warnings=("dark", "flat")))
    assert summary.unusual == WARNED + 2
    assert summary.warnings == [{"case": c.name, "warning": text} for c in CASES[:WARNED] for text in ("dark", "flat")]


def test_a_usual_case_after_these_adds_nothing() -> None:
    summary = Summary(CaseStates(CASES[:2]))
    summary.add(Outcome(CASES[0], 0.0, warnings=("dark",)))
    summary.add(Outcome(CASES[1], 0.0))
    assert (summary.unusual, len(summary.warnings)) == (1, 1)


def test_errors_to_mend_are_noted_and_faults_of_ours_are_not() -> None:
    summary = Summary(CaseStates([]))
    with summary.noting():
        raise OutputError("no space: free some")
    assert summary.problems == ["no space: free some"]
    with pytest.raises(ZeroDivisionError), summary.noting():
        _ = 1 / 0
    assert len(summary.problems) == 1


def test_a_run_that_hides_names_hides_them_in_what_it_notes(tmp_path: Path) -> None:
    case = Case("c1", str(tmp_path / "hans" / "c1.tif"))
    outcome = Outcome(case, 0.0, error=f"{case.path}: no bands", warnings=(f"{case.path}: dark",))
    seen = PlannedCase(case, (8, 8), 1, notes=(f"{case.path}: in parts",))
    plan = Plan(workers=1, calls=1, small=(seen,), cuts=(Cut(seen, (), 0.0),), failed=(Failure(case, outcome.error),))
    assert (hide_outcome(outcome), hide_plan(plan)) == (outcome, plan)
    with redacting(Redactor((str(tmp_path),), (), ["hans"])):
        hidden, planned, summary = hide_outcome(outcome), hide_plan(plan), Summary(CaseStates([]))
        with summary.noting():
            raise SegpipeError(f"{case.path} cannot be read")
    said = (hidden.error, hidden.warnings, summary.problems, [failure.error for failure in planned.failed])
    assert "hans" not in str((said, [one.notes for one in planned.opened]))
    assert replace(hidden, error=outcome.error, warnings=outcome.warnings) == outcome
    assert [replace(one, notes=seen.notes) for one in planned.opened] == [seen, seen]
