"""ADE20K as the scene parsing challenge of 2016 has it: 150 classes."""

from kerasseg.data.layouts.folder import IMAGE_SUFFIXES, pair_files
from kerasseg.data.layouts.shared import check_split, files_in, find_root
from kerasseg.data.paths import check_folder
from kerasseg.data.records import FileDataSet, Record
from kerasseg.errors import KerassegError
from kerasseg.labels import LABELS

_FOLDERS = {"train": ("training",), "val": ("validation",), "trainval": ("training", "validation"), "test": ()}
_LAYOUT = "ADEChallengeData2016: images/{training,validation}/*.jpg and annotations/{training,validation}/*.png"
# The images of the challenge's test are a release of their own.
_TESTS = ("release_test/testing", "images/testing")


class Ade20k(FileDataSet):
    """ADE20K's 150 classes for scene parsing: 20,210 images to train on and 2,000 to validate.

    In the files class k is k + 1 and 0 is a pixel without class, which is ignored, not trained as a class of its own.

    Args:
        data_dir: The folder `ADEChallengeData2016` or the one around it.
        split: `"train"`, `"val"`, `"trainval"`, or `"test"`, whose 3,352 images come without labels, in `release_test/testing`.
    Raises:
        KerassegError: If the folder is missing or laid out otherwise, or an image lacks its mask or a mask its image.
    Reference:
        Zhou et al. 2017, "Scene parsing through ADE20K dataset", CVPR.
    Example:
        >>> Ade20k("data/ADEChallengeData2016", "val").num_classes  # doctest: +SKIP
        150
    """

    splits = tuple(_FOLDERS)

    def __init__(self, data_dir=None, split: str = "train"):
        folder = check_folder(data_dir, "ade20k", _LAYOUT)
        check_split("ade20k", split, self.splits)
        root = find_root(folder, ("images",), ("ADEChallengeData2016", "ade20k"))
        if root is None:
            raise KerassegError(f"'{data_dir}' does not hold data set 'ade20k': expected {_LAYOUT}")
        parts = [pair_files(root / "images" / part, root / "annotations" / part) for part in _FOLDERS[split]]
        super().__init__(LABELS["ade20k"], sum(parts, []) if parts else _test_images(root, folder))


def _test_images(*roots) -> list[Record]:
    for place in (root / test for root in roots for test in _TESTS):
        if place.is_dir():
            return [Record(path.stem, path, None) for path in files_in(place, IMAGE_SUFFIXES)]
    raise KerassegError(f"'{roots[0]}' does not hold split 'test' of data set 'ade20k': expected its images in {_TESTS[0]}/")
