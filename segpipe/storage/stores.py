"""Find the store that a path or URL names."""

import re
from pathlib import Path

from segpipe.errors import OutputError
from segpipe.storage import Store
from segpipe.storage.bucket import Bucket
from segpipe.storage.folder import Folder
from segpipe.storage.paths import in_bucket, is_remote


def store_at(text: str) -> Store:
    """The store named by the user: ``s3://bucket/prefix``, or a folder.

    Raises:
        OutputError: the text names neither.
    """
    if in_bucket(text):
        return Bucket.at(text)
    if is_remote(text) or re.match(r"\w+:/", text):
        raise OutputError(f"the output must be a folder of this machine, or s3://bucket/prefix, got {text}")
    return Folder(Path(text))
