"""TLS between the processes of a cluster."""

from typing import TYPE_CHECKING

from segpipe.settings import Settings

if TYPE_CHECKING:
    from distributed import Security


def security(settings: Settings) -> "Security | None":
    """TLS settings if files for it are named."""
    files = {"tls_ca_file": settings.tls_ca, "tls_client_cert": settings.tls_cert, "tls_client_key": settings.tls_key}
    if not any(files.values()):
        return None
    from distributed import Security

    named = {key: str(path) for key, path in files.items() if path}
    return Security(require_encryption=True, **named)


def own_keys() -> "Security":
    """TLS for one run, with keys in memory; dask-jobqueue passes them to its jobs in files, which it removes."""
    from distributed import Security

    own: Security = Security.temporary()
    return own
