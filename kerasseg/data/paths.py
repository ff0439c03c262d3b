"""Where data lie."""

from pathlib import Path

from kerasseg.errors import KerassegError


def data_path(place) -> Path:
    """Gives a place on disk as a path.

    Args:
        place: Text or path.
    Returns:
        The path; need not exist.
    """
    return Path(place)


def check_folder(data_dir, name: str, layout: str) -> Path:
    """Checks that a data folder was given and is there.

    Args:
        data_dir: What was given.
        name: Of the data set.
        layout: What the folder is expected to hold, for the message.
    Returns:
        The folder.
    Raises:
        KerassegError: If it was not or is not.
    """
    remedy = f"open_data('{name}', data_dir=FOLDER) or --data {name} --data-dir FOLDER"
    if data_dir is None:
        raise KerassegError(f"data set '{name}' received no data_dir: expected a folder with {layout}; {remedy}")
    folder = data_path(data_dir)
    if not folder.is_dir():
        raise KerassegError(f"data set '{name}' received data_dir '{data_dir}', which is no folder: expected {layout}; {remedy}")
    return folder
