"""The settings of a run, as lines."""

from typing import Any

from segpipe.jobs.prepare import Prepared
from segpipe.messages.printable import counted
from segpipe.settings import Settings

IN_HEAD = {"input", "model", "output", "device", "executor", "workers", "scheduler", "cluster"}
"""Settings that the line words in its own way, and the input, whose cases are listed."""


def settings_lines(prepared: Prepared, *, everything: bool = False) -> list[str]:
    """Settings for stderr: one line with model, place and non-default values; or one line per setting."""
    if everything:
        return [f"{key} = {value}" for key, value in _resolved(prepared).items()]
    run = prepared.run
    chosen = [f"{key} = {_shown(value)}" for key, value in _chosen(run.settings).items()]
    device = f"device {run.model.device} ({run.model.device_reason})"
    models = f"model{'s' * bool(run.model.folds)} {run.model.title}"
    head = f"{models}, {device}, {_where(prepared)}, output {run.output}"
    return ["; ".join([head, *chosen])]


def _resolved(prepared: Prepared) -> dict[str, Any]:
    """Every setting, including the values that the contract and the machine gave."""
    run = prepared.run
    return (
        run.settings.model_dump(mode="json")
        | run.label_settings
        | {
            "batch": run.model.batch,
            "device": f"{run.model.device} ({run.model.device_reason})",
            "workers": prepared.plan.workers,
            "contract": run.model.contract_origin,
        }
    )


def _chosen(settings: Settings) -> dict[str, Any]:
    """Settings that differ from the defaults."""
    return settings.model_dump(mode="json", exclude_defaults=True, exclude=IN_HEAD)


def _shown(value: Any) -> str:
    """
    >>> _shown([512, 256]), _shown(True), _shown("linear")
    ('512,256', 'true', 'linear')
    """
    if isinstance(value, list):
        return ",".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def _where(prepared: Prepared) -> str:
    """Description of the processes that do the work."""
    settings, count = prepared.run.settings, prepared.plan.workers
    if settings.executor == "serial":
        return "in this process"
    place = settings.scheduler or settings.cluster
    return counted(count, "worker") + (f" of {place}" if place else "")
