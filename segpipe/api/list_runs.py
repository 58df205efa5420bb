"""Run the models of a list one after the other, each over the cases that are not done, before their labels are joined."""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace

from segpipe.formats.case import Case, Failure
from segpipe.jobs.case_states import CaseState
from segpipe.jobs.plan import Plan
from segpipe.jobs.prepare import Prepared, prepare
from segpipe.jobs.summary import Summary
from segpipe.jobs.tasks import Halt
from segpipe.network.joined_spec import settings_of_listed
from segpipe.network.spec import ListMember

Execute = Callable[[Prepared, str], Summary]
"""Carries out a run under a title."""


def runs_of_list(prepared: Prepared, *, open_all: bool = False) -> Iterator[tuple[ListMember, Prepared]]:
    """Each model of a list with its prepared run, for the cases that the joined run still has to do.

    Raises:
        SegpipeError: a model cannot run.
    """
    left = frozenset(case.name for case in remaining(prepared.plan))
    for listed in prepared.run.model.listed if left else ():
        settings = settings_of_listed(prepared.run.settings, listed)
        yield listed, replace(prepare(settings, open_all=open_all, only=left), command=prepared.command)


def remaining(plan: Plan) -> Iterator[Case]:
    """Cases that a plan has to do."""
    yield from (planned.case for planned in plan.opened)
    yield from plan.unopened


def without(plan: Plan, names: Collection[str]) -> Plan:
    """A plan that does not do the cases of these names."""
    return replace(
        plan,
        small=tuple(one for one in plan.small if one.case.name not in names),
        cuts=tuple(one for one in plan.cuts if one.case.case.name not in names),
        unopened=[case for case in plan.unopened if case.name not in names],
    )


def after_models(prepared: Prepared, runs: Sequence[tuple[ListMember, Prepared]], execute: Execute, halt: Halt) -> Prepared:
    """Carry out the runs of the models, of which none begins after a halt; return the run that joins their labels.

    If a case fails in one model, the models after it skip the case, and it fails in the joined run.
    """
    failed: dict[str, Failure] = {}
    for k, (listed, own) in enumerate(runs, 1):
        summary = execute(_reduced(own, failed), f"model {k} of {len(runs)}: {listed.name}, {listed.spec.title}")
        problems = [f"model {listed.name}: {problem}" for problem in summary.problems]
        prepared = replace(prepared, spent=prepared.spent + summary.seconds, problems=(*prepared.problems, *problems))
        if summary.interrupted or halt.is_set():  # also by a signal while the tables of a model are written
            halt.set()
            return prepared
        failed |= {failure.case.name: failure for failure in (*_unknown(prepared, own, listed), *_failures(listed, summary))}
        if failed and prepared.run.settings.fail_fast:
            break
    plan = without(prepared.plan, failed)
    return replace(prepared, plan=replace(plan, failed=(*plan.failed, *failed.values())))


def _reduced(prepared: Prepared, names: Collection[str]) -> Prepared:
    """A run without the cases of these names."""
    plan = without(prepared.plan, names)
    done = [case for case in plan.done if case.name not in names]
    failed = tuple(failure for failure in plan.failed if failure.case.name not in names)
    outside = [case for case in plan.outside if case.name not in names]
    cases = [case for case in prepared.cases if case.name not in names]
    return replace(prepared, cases=cases, plan=replace(plan, done=done, failed=failed, outside=outside))


def _unknown(prepared: Prepared, own: Prepared, listed: ListMember) -> Iterator[Failure]:
    """Cases that a model does not find, because it groups files by other channels."""
    known = {case.name for case in own.cases}
    for case in remaining(prepared.plan):
        if case.name not in known:
            text = "finds no case of this name, since it groups files otherwise: give all models the same channels"
            yield Failure(case, f"{case.path}: model {listed.name} {text}")


def _failures(listed: ListMember, summary: Summary) -> Iterator[Failure]:
    """Cases that have no labels by a model, and why."""
    for failure in summary.failed:
        yield replace(failure, error=f"model {listed.name}: {failure.error}")
    for case in summary.states.cases(CaseState.MISSING):
        yield Failure(case, f"{case.path}: model {listed.name} did not get to it: run the same command again")
