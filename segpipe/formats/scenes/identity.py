"""Whether the files of a scene are those of its record."""

from collections.abc import Sequence

from segpipe.formats.case import Case
from segpipe.formats.identity import FolderListings, Identity, identities, unhidden
from segpipe.formats.raster.dataset_files import has_no_more
from segpipe.formats.scenes.reading import product_of
from segpipe.messages.url_secrets import without_secrets


def is_same_scene(place: str, files: Sequence[Identity], case: Case, listings: FolderListings, *, remote: bool) -> bool:
    """Whether the files that would be read for a case now are the unchanged files of its record.

    Args:
        place: path of the case in the record.
        files: files of the case in the record.
        case: the case now.
        listings: recent listings of folders, shared between cases.
        remote: whether a file may refer to servers.

    Raises:
        OSError, SourceError: the files cannot be examined.
    """
    if without_secrets(place) != listings.place(case.path) or not files:
        return False
    product = product_of(case)
    paths = [*(band.path for band in product.bands), *product.metadata]
    files = unhidden(files, map(listings.named, [*paths, *(file for path in paths for file in listings.sidecars(path))]))
    names = [str(file["path"]) for file in files]
    if files != identities(case.path, names, listings):
        return False
    known = {listings.place(name) for name in names}
    images = [band.path for band in product.bands if listings.place(listings.named(band.path)) in known]
    own = {listings.place(listings.named(path)) for path in (*images, *product.metadata)}
    near = {listings.place(file) for path in images for file in listings.sidecars(path)}
    if not images or not known <= own | near or not {listings.place(listings.named(p)) for p in product.metadata} <= known:
        return False
    return all(has_no_more(known, path, listings, remote=remote) for path in images)
