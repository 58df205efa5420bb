"""``run.json``: what a run was, and what became of it."""

from typing import Any

from segpipe.jobs.prepare import Prepared
from segpipe.jobs.summary import Summary
from segpipe.results.device_kind import device_facts, versions
from segpipe.results.records import recorded


def run_record(prepared: Prepared, summary: Summary, state: str) -> dict[str, Any]:
    """The content of ``run.json``; ``state`` is ``running``, ``ended`` or ``interrupted``."""
    run = prepared.run
    return {
        "state": state,
        "command": list(prepared.command),
        "folder": summary.folder,
        "settings": run.settings.model_dump(mode="json"),
        "resolved": run.label_settings
        | {"batch": run.model.batch, "device": run.model.device, "threads": run.model.threads},
        "model": recorded(run.model).as_json(),
        "versions": versions(),
        "device": device_facts(run.model),
        "seconds": round(summary.seconds, 3),
        "megapixels_per_second": round(summary.megapixels_per_second, 3),
        "interrupted": summary.interrupted,
        "done": summary.done,
        "skipped": summary.skipped,
        **({"outside": summary.outside} if run.aoi is not None else {}),
        "failed": [{"case": failure.case.name, "error": failure.error} for failure in summary.failed],
        "left_out": dict(summary.left_out),
        "problems": summary.problems,
        "unusual_cases": summary.unusual,
        "warnings": summary.warnings,
        **({"totals": summary.totals.as_json()} if summary.totals else {}),
        **({"profile": summary.profile.as_json()} if summary.profile else {}),
    }
