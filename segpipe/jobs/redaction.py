"""Names of inputs are left out of the messages of a run that hides them."""

from dataclasses import replace

from segpipe.formats.redaction import hide_case
from segpipe.jobs.plan import Plan, PlannedCase
from segpipe.jobs.tasks import Outcome
from segpipe.messages.redaction import is_redacting


def hide_plan(plan: Plan) -> Plan:
    """A plan whose messages do not have the names of inputs that the run hides."""
    if not is_redacting():
        return plan

    def hidden(one: PlannedCase) -> PlannedCase:
        return replace(one, notes=tuple(hide_case(note, one.case) for note in one.notes))

    failed = tuple(replace(failure, error=hide_case(failure.error, failure.case)) for failure in plan.failed)
    cuts = tuple(replace(cut, case=hidden(cut.case)) for cut in plan.cuts)
    return replace(plan, failed=failed, small=tuple(map(hidden, plan.small)), cuts=cuts)


def hide_outcome(outcome: Outcome) -> Outcome:
    """An outcome without the names of inputs that the run hides."""
    if not is_redacting():
        return outcome
    error = None if outcome.error is None else hide_case(outcome.error, outcome.case)
    return replace(outcome, error=error, warnings=tuple(hide_case(text, outcome.case) for text in outcome.warnings))
