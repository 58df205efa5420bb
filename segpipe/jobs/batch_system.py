"""Workers that are jobs of a batch system."""

import importlib.util
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from segpipe.errors import SettingsError, WorkerError
from segpipe.jobs.dask_options import LOOKS, MESSAGES
from segpipe.jobs.tls import own_keys, security
from segpipe.process.extras import install
from segpipe.process.spawning import WORKER_ENVIRONMENT
from segpipe.settings import LONGEST_WAIT, MOST_MEMORY, MOST_THREADS, MOST_WORKERS, Settings
from segpipe.storage.documents import DocumentError, read_toml
from segpipe.storage.invalid import readable

if TYPE_CHECKING:
    from distributed import Client

CLASSES = {"slurm": "SLURMCluster", "lsf": "LSFCluster", "pbs": "PBSCluster"}
"""Classes of dask-jobqueue."""


class ClusterFile(BaseModel):
    """The file of ``--cluster``: the batch system, the number of jobs, and the resources of each."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    kind: Literal["slurm", "lsf", "pbs"]
    jobs: int = Field(ge=1, le=MOST_WORKERS)
    """Worker processes, one per job."""
    wait: float = Field(default=600, gt=0, le=LONGEST_WAIT, strict=True)
    """Seconds to wait for the first worker."""
    cores: int = Field(default=1, ge=1, le=MOST_THREADS)
    """Processors of a job, which its one worker uses for calls of the model in flight."""
    memory: str
    """Memory of a job, such as 8GB."""
    job: dict[str, Any] = Field(default_factory=dict)
    """Passed on to dask-jobqueue: queue, walltime, account, job_extra_directives ..."""

    @field_validator("memory")
    @classmethod
    def _bytes(cls, value: str) -> str:
        if not 0 < bytes_of(value) <= MOST_MEMORY * 1e9:
            raise ValueError(f"must be above 0 and at most {MOST_MEMORY} GB")
        return value


def read_cluster(path: Path) -> ClusterFile:
    """Read and check the file of ``--cluster``."""
    try:
        return ClusterFile.model_validate(read_toml(path))
    except DocumentError as error:
        raise SettingsError(f"--cluster {path} {error}") from None
    except ValidationError as error:
        raise SettingsError(f"--cluster {path}: {readable(error)}") from None


def bytes_of(text: str) -> int:
    """Parse a size such as 8GB into bytes.

    Raises:
        ValueError: it is not a size.
    """
    from dask.utils import parse_bytes

    try:
        return int(parse_bytes(text))
    except (ValueError, OverflowError):
        raise ValueError("must be a size, such as 8GB") from None


def submitted(path: Path, settings: Settings) -> Any:
    """A cluster of dask-jobqueue; each job is one process with one thread, whatever its processors.

    Its scheduler is reachable by other nodes, and so by other users: all connections use TLS, with keys made for this run
    unless files are named.
    """
    file = read_cluster(path)
    try:
        jobqueue = importlib.import_module("dask_jobqueue")
    except ModuleNotFoundError:
        raise WorkerError(f"--cluster needs dask-jobqueue, which is not installed: {install('cluster')}") from None
    keys = {"security": security(settings) or own_keys(), "shared_temp_directory": str(Path.cwd())}
    looks = {f"DASK_{key.replace('.', '__').upper()}": value for key, value in {**LOOKS, **MESSAGES}.items()}
    exports = [f"export {key}={value}" for key, value in {**WORKER_ENVIRONMENT, **looks}.items()]
    own = {"scheduler_options": {"dashboard_address": settings.dashboard}, **keys, **_processors(file), **file.job}
    own["job_script_prologue"] = [*exports, *own.get("job_script_prologue", [])]
    try:
        cluster = getattr(jobqueue, CLASSES[file.kind])(cores=1, processes=1, memory=file.memory, **own)
        cluster.scale(jobs=file.jobs)
    except (TypeError, ValueError, OSError, RuntimeError) as error:
        raise WorkerError(f"{path}: jobs cannot be submitted to {file.kind}: {error}") from None
    return cluster


def _processors(file: ClusterFile) -> dict[str, Any]:
    """Options of dask-jobqueue for a job's processors: it assumes one worker with one thread."""
    if file.kind == "pbs":
        return {"resource_spec": f"select=1:ncpus={file.cores}:mem={math.ceil(bytes_of(file.memory) / 2**20)}mb"}
    return {"job_cpu" if file.kind == "slurm" else "ncpus": file.cores}


def await_worker(client: "Client", file: ClusterFile) -> None:
    """Wait for the first job to begin; raises ``WorkerError`` after the time that the cluster's file gives."""
    try:
        client.wait_for_workers(1, timeout=file.wait)
    except TimeoutError:
        raise WorkerError(
            f"no job of {file.kind} has begun within {file.wait:g} s: look at its queue, or raise wait in the cluster's file"
        ) from None
