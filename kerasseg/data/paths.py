"""Where data lie: on a disk, or beyond `scheme://` where TensorFlow reads."""

import os
from pathlib import Path

from kerasseg.errors import KerassegError
from kerasseg.tables import import_lazily

_SEPARATOR = "://"


def is_remote(place) -> bool:
    """Tells whether a place is one beyond `scheme://`.

    Args:
        place: Text or path.
    Returns:
        True of `gs://bucket/data`, false of anything on a disk.
    """
    return _SEPARATOR in str(place)


def data_path(place) -> Path:
    """Gives a place as a path, by which every file of a data set is reached.

    Args:
        place: Text or path: on a disk, `~` being the user's own folder, or `gs://bucket/folder`.
    Returns:
        A `pathlib.Path`, or of a remote place a `RemotePath`, which has the methods of one that reading needs; need not exist.
    Example:
        >>> data_path("gs://bucket/VOCdevkit") / "VOC2012"
        RemotePath('gs://bucket/VOCdevkit/VOC2012')
    """
    if is_remote(place):
        # TensorFlow is imported with it.
        return place if hasattr(place, "url") else import_lazily("kerasseg.data.remote").RemotePath(str(place))
    return Path(place).expanduser()


def several_places(data_dir) -> tuple[str, ...]:
    """Parts folders that are joined by commas, as a union of data sets takes them.

    Args:
        data_dir: One place, or several joined by `,`; a folder whose own name has a comma in it is one.
    Returns:
        The places in their order.
    """
    text = str(data_dir)
    return (text,) if "," not in text or (not is_remote(text) and Path(text).exists()) else tuple(filter(None, text.split(",")))


def check_folder(data_dir, name: str, layout: str) -> Path:
    """Checks that a data folder was given and is there.

    Args:
        data_dir: What was given.
        name: Of the data set.
        layout: What the folder is expected to hold, for the message.
    Returns:
        The folder; on a disk from the root on, so that it has a name and folders above it, also where `.` was given.
    Raises:
        KerassegError: If it was not or is not.
    """
    remedy = f"open_data('{name}', data_dir=FOLDER) or --data {name} --data-dir FOLDER"
    if data_dir is None:
        raise KerassegError(f"data set '{name}' received no data_dir: expected a folder with {layout}; {remedy}")
    folder = data_path(data_dir)
    try:
        found = folder.is_dir()
    except OSError as error:
        raise KerassegError(
            f"data set '{name}' cannot reach data_dir '{data_dir}' ({error.strerror}): check access to it"
        ) from error
    if not found:
        raise KerassegError(f"data set '{name}' received data_dir '{data_dir}', which is no folder: expected {layout}; {remedy}")
    return Path(os.path.abspath(folder)) if isinstance(folder, Path) else folder
