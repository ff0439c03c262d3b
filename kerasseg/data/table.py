"""The table of the data sets, and how one is opened."""

import inspect

from kerasseg.data.records import DataSet
from kerasseg.errors import KerassegError
from kerasseg.tables import LazyTable, did_you_mean

DATA_SETS = LazyTable(
    "data set",
    {
        "shapes": "kerasseg.data.shapes:Shapes",
        "folder": "kerasseg.data.layouts.folder:Folder",
        "camvid": "kerasseg.data.layouts.camvid:CamVid",
        "features": "kerasseg.data.features:StoredFeatures",
    },
)
"""Name → class of the data set; each is called as `(data_dir, split, **options)`."""


def open_data(name: str, data_dir=None, split: str = "train", **options) -> DataSet:
    """Opens a data set by its name.

    Args:
        name: One of `DATA_SETS`.
        data_dir: Its folder; `None` for `shapes`, which is drawn.
        split: `"train"`, `"val"`, … as the data set has them.
        options: What else the data set takes, e.g. `size` for `shapes`.
    Returns:
        The opened data set; files are listed and paired, not yet decoded.
    Raises:
        KerassegError: If the name or an option is unknown, or the folder is not laid out as expected.
    Example:
        >>> len(open_data("shapes", split="val", length=8))
        8
    """
    data_set = DATA_SETS[name]
    known = [option for option in inspect.signature(data_set).parameters if option not in ("data_dir", "split")]
    for option in options:
        if option not in known:
            answer = did_you_mean(option, known) if known else "it takes only data_dir and split"
            raise KerassegError(f"data set '{name}' has no option '{option}': {answer}")
    return data_set(data_dir, split, **options)
