"""What a path names: a file of this machine, something that GDAL resolves, or an object of a bucket."""

SCHEME, GDAL_SCHEME = "s3://", "/vsis3/"


def is_remote(path: str) -> bool:
    """Whether a path is resolved by GDAL, not by the operating system."""
    return path.startswith("/vsi") or "://" in path


def plain_path(path: str) -> str:
    """Path of a local file in a form that GDAL takes as a plain path, whatever the file's name.

    GDAL and rasterio interpret prefixes: ``GTIFF_DIR:1:a.tif`` is a part of a.tif, ``zip:a.tif`` a member of an
    archive, and so is ``/vsizip/a.tif``.
    """
    if path.startswith("/vsi"):
        return f"/.{path}"
    # a VRT's relative sources are resolved against its path
    interpreted = any(sign in path for sign in ":<{") or ("/" not in path and path.endswith(".vrt"))
    return f"./{path}" if interpreted and not path.startswith(("/", "./")) else path


def in_bucket(path: str) -> bool:
    """Whether a path names an object, or a prefix of objects, of S3-compatible storage."""
    return path.startswith((SCHEME, GDAL_SCHEME))


def canonical(path: str) -> str:
    """``s3://bucket/key``, whichever way an object is named."""
    return SCHEME + path.removeprefix(GDAL_SCHEME) if path.startswith(GDAL_SCHEME) else path
