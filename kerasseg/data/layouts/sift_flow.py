"""SIFT Flow: 2,688 outdoor pictures of 256×256, 33 things and 3 kinds of surfaces."""

import re
from pathlib import Path

import numpy as np

from kerasseg.data.layouts.devkit import read_lines, read_mat
from kerasseg.data.layouts.shared import check_split, files_in
from kerasseg.data.layouts.values import label_from_values
from kerasseg.data.paths import check_folder
from kerasseg.data.records import FileDataSet, Record
from kerasseg.errors import KerassegError
from kerasseg.labels import LABELS, LabelTable
from kerasseg.tables import did_you_mean

_SPLITS = ("trainval", "test")
_COLLECTION = "spatial_envelope_256x256_static_8outdoorcategories"
_OFFICIAL_TEST = "TestSet1.txt"
_LAYOUT = f"Images/{_COLLECTION}/, SemanticLabels/, GeoLabels/ and {_OFFICIAL_TEST} or trainval.txt and test.txt"
# Head → folder of its label maps, and their table.
_HEADS = {
    "semantic": ("SemanticLabels", LABELS["sift_flow"]),
    "geometric": ("GeoLabels", LABELS["sift_flow_geometric"]),
}
# Nobody labelled them (FCN, data/sift-flow/classes.txt).
_UNLABELLED = ("highway_bost181", "street_urb506")
# FCN's siftflow_layers.py, whose BGR is RGB here.
_MEAN = (108.353, 115.294, 114.578)


class SiftFlow(FileDataSet):
    """SIFT Flow with both its label maps: 33 semantic and 3 geometric classes; semantic 0 and geometric −1 and 0 = ignore.

    2,486 images to train on and 200 to test on, of which cow, desert and moon are absent. (The paper says 2,488; two of them have
    no labels.)

    Args:
        data_dir: The unpacked `SiftFlowDataset.zip`, `Images/`, `SemanticLabels/`, `GeoLabels/` with `TestSet1.txt`, or the same
            with FCN's lists `trainval.txt` and `test.txt`; or a folder around it.
        split: `"trainval"` or `"test"`. Without a list of its own `trainval` is every image that is not in `test`.
        head: `"semantic"` or `"geometric"` opens that label map alone; `None` both.
    Raises:
        KerassegError: If the folder is missing or laid out otherwise, or there is no list to part it by.
    Reference:
        Liu, Yuen & Torralba 2011, TPAMI 33(12); geometric labels and test images: Tighe & Lazebnik, ECCV 2010; two heads, lists
        and mean: Shelhamer et al. 2017, §5, Table 6.
    Example:
        >>> SiftFlow("SiftFlowDataset", "test")[0].label.shape  # doctest: +SKIP
        (256, 256, 2)
    """

    splits, choices = _SPLITS, ("head",)

    def __init__(self, data_dir=None, split: str = "trainval", head: str | None = None):
        check_split("sift_flow", split, _SPLITS)
        tables = {name: table for name, (_, table) in _HEADS.items()}
        if head is None:
            self.heads: dict[str, LabelTable] | None = tables
        elif head in tables:
            # The name that reports say.
            self.heads, self.task = None, head
        else:
            raise KerassegError(f"data set 'sift_flow' has no head '{head}': {did_you_mean(str(head), tables)}")
        self._read_heads = tuple(tables) if head is None else (head,)
        self._root = _found(check_folder(data_dir, "sift_flow", _LAYOUT))
        records = (Record(name, self._image(name), self._mask(self._read_heads[0], name)) for name in _names(self._root, split))
        super().__init__(tables[self._read_heads[0]], records, _MEAN)

    @classmethod
    def from_prepared(cls, prepared, split: str, **options):
        """Opens what `prepare_data` made, which holds both label maps; see `DataSet`."""
        # They build on the records.
        from kerasseg.data.preparation.prepared import PreparedFiles
        from kerasseg.data.views.heads import OneHead

        prepared.check_options(cls, options)
        data, head = PreparedFiles(prepared, split), options.get("head")
        return data if head is None else OneHead(data, head)

    def _image(self, name: str) -> Path:
        return self._root / "Images" / _COLLECTION / f"{name}.jpg"

    def _mask(self, head: str, name: str) -> Path:
        return self._root / _HEADS[head][0] / _COLLECTION / f"{name}.mat"

    def files(self, index: int) -> tuple[Path, ...]:
        """Tells the image and the label maps; see `FileDataSet`."""
        return (self.records[index].image, *(self._mask(head, self.ids[index]) for head in self._read_heads))

    def read_label(self, index: int) -> np.ndarray:
        """Reads the label maps of one example.

        Args:
            index: 0 to `len(self)` − 1.
        Returns:
            Shape `(H, W, 2)`, semantic and geometric, or with one head `(H, W)`; int32, 255 = ignore.
        Raises:
            KerassegError: If a file is missing or damaged, holds other values, or the two differ in size.
        """
        maps = list(self._maps(index).values())
        return maps[0] if self.heads is None else np.stack(maps, axis=-1)

    def _maps(self, index: int) -> dict[str, np.ndarray]:
        paths = {head: self._mask(head, self.ids[index]) for head in self._read_heads}
        maps = {head: label_from_values(read_mat(path, "S", np.asarray), path, _HEADS[head][1]) for head, path in paths.items()}
        if len({label.shape for label in maps.values()}) > 1:
            told = ", ".join(f"{paths[head]} is {label.shape[1]}×{label.shape[0]}" for head, label in maps.items())
            raise KerassegError(f"the label maps of example '{self.ids[index]}' differ in size: {told}; copy the files again")
        return maps

    def sources(self, index: int) -> dict[str, Path | np.ndarray]:
        """Tells the image and the label maps, `mask` and `mask_geometric`; see `DataSet`."""
        roles = {"semantic": "mask", "geometric": "mask_geometric"} if self.heads else {self._read_heads[0]: "mask"}
        return {"image": self.records[index].image, **{roles[head]: label for head, label in self._maps(index).items()}}


def _found(root) -> Path:
    for folder in (root, *(each for each in sorted(root.iterdir()) if each.is_dir())):
        if (folder / "Images" / _COLLECTION).is_dir():
            return folder
    raise KerassegError(f"'{root}' does not hold data set 'sift_flow', nor does a folder in it: expected {_LAYOUT}")


def _names(root, split: str) -> list[str]:
    path = root / f"{split}.txt"
    if path.is_file():
        return _listed(path)
    test = next((path for path in (root / "test.txt", root / _OFFICIAL_TEST) if path.is_file()), None)
    if test is None:
        raise KerassegError(f"{root} has neither {split}.txt nor {_OFFICIAL_TEST}, which say what is for testing: copy one into it")
    tested = _listed(test)
    if split == "test":
        return tested
    others = {*tested, *_UNLABELLED}
    names = sorted(path.stem for path in files_in(root / "Images" / _COLLECTION, (".jpg",)))
    return [name for name in names if name not in others]


def _listed(path) -> list[str]:
    """Names of images, with or without suffix and folders before them, of either slash."""
    return [re.split(r"[/\\]", words[0])[-1].removesuffix(".jpg") for words in read_lines(path)]
