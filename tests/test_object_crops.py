"""Objects and proposals cut out of images, against drawings whose boxes are known."""

import subprocess
import sys

import numpy as np
import pytest

from kerasseg import KerassegError
from kerasseg.data import DataSet, Example, ObjectCrops, ProposalCrops, dense_windows, open_data
from kerasseg.data.object_crops import enlarged, object_boxes, overlap
from kerasseg.labels import LABELS, generic_table
from kerasseg.recipes import RECIPES
from kerasseg.recipes.building import open_training_data

VOC = LABELS["voc"]


def drawing():
    """20×30: a cat of 10×10 at (4, 5), cut by a border; a dog of 6×6 in the lower right corner; a speck of sheep."""
    label = np.zeros((20, 30), np.int32)
    label[5:15, 4:14] = 8
    label[9, 4:9] = 255
    label[14:20, 24:30] = 12
    label[0, 29] = 17
    return label


class Drawn(DataSet):
    def __init__(self, labels=VOC, maps=None, label=True):
        self._maps, self._label = [drawing(), np.zeros((8, 8), np.int32)] if maps is None else maps, label
        super().__init__(labels, [f"image{index}" for index in range(len(self._maps))], (1.0, 2.0, 3.0))

    def read(self, index):
        label = self._maps[index]
        rows, columns = np.indices(label.shape)
        image = np.stack([rows + 1, columns + 1, np.full_like(rows, 200 + index)], axis=-1).astype(np.uint8)
        return Example(image, label if self._label else None, self.ids[index], None)


def test_objects_are_components_of_a_class_by_edges_and_corners():
    label = np.zeros((6, 8), np.int32)
    label[0, 0] = label[1, 1] = 3
    label[0, 4] = label[5, 7] = 3
    label[1, 2] = 5
    label[4, 4] = 255
    # Class by class, then in reading order; a corner joins, another class does not.
    expected = [[0, 0, 2, 2], [4, 0, 5, 1], [7, 5, 8, 6], [2, 1, 3, 2]]
    np.testing.assert_array_equal(object_boxes(label, VOC), expected)
    # Without a class of that name, there is no background.
    plain = generic_table(["a", "b", "c", "d", "e", "f"])
    np.testing.assert_array_equal(object_boxes(label, plain), [[0, 0, 8, 6], *expected])
    assert object_boxes(np.full((3, 3), 255), VOC).shape == (0, 4)


def test_boxes_grow_around_their_centre():
    assert enlarged((10, 20, 20, 40), 1.2) == (9, 18, 21, 42)
    # 5 wide: half a pixel on each side, rounded outwards.
    assert enlarged((10, 20, 15, 40), 1.2) == (9, 18, 16, 42)
    assert enlarged((0, 0, 3, 3), 1.0) == (0, 0, 3, 3)
    for box in ((0, 0, 10, 10), (3, 4, 110, 90)):
        left, top, right, bottom = enlarged(box, 1.2)
        assert left + right == box[0] + box[2] and top + bottom == box[1] + box[3]


def test_an_object_is_cut_out_with_its_surroundings():
    crops = ObjectCrops(Drawn(), minimum_size=5)
    assert crops.ids == ("image0#1", "image0#2") and crops.labels is VOC and crops.mean == (1.0, 2.0, 3.0)
    cat = crops[0]
    # 10×10 at left 4, top 5 becomes 12×12 at 3, 4, within the image.
    assert cat.image.shape == (12, 12, 3) and cat.image.dtype == np.uint8 and cat.label.dtype == np.int32
    np.testing.assert_array_equal(cat.image, Drawn()[0].image[4:16, 3:15])
    np.testing.assert_array_equal(cat.label, drawing()[4:16, 3:15])
    assert (cat.id, cat.path) == ("image0#1", None)
    # The dog ends in the corner: 6×6 at left 24, top 14 becomes 8×8 at 23, 13, a row and a column of it outside.
    dog = crops[1]
    assert dog.label.shape == (8, 8)
    np.testing.assert_array_equal(dog.image[:7, :7], Drawn()[0].image[13:, 23:])
    np.testing.assert_array_equal(dog.label[:7, :7], drawing()[13:, 23:])
    for edge in ((-1, slice(None)), (slice(None), -1)):
        assert not dog.image[edge].any() and (dog.label[edge] == 255).all()
    for index in range(2):
        np.testing.assert_array_equal(crops.read_label(index), crops[index].label)


def test_other_objects_in_the_window_are_background():
    label = np.zeros((10, 20), np.int32)
    label[2:8, 2:8] = 8
    # Another cat that does not touch it, a dog, and a border.
    label[1:9, 9] = 8
    label[9, 2:6] = 12
    label[1, 3] = 255
    crops = ObjectCrops(Drawn(maps=[label]), 1.6, minimum_size=6)
    assert len(crops) == 1 and crops.windows[0] == (0, (0, 0, 10, 10))
    expected = np.zeros((10, 10), np.int32)
    expected[2:8, 2:8] = 8
    expected[1, 3] = 255
    np.testing.assert_array_equal(crops[0].label, expected)
    everything = ObjectCrops(Drawn(maps=[label]), 1.6, minimum_size=6, only_object=False)
    np.testing.assert_array_equal(everything[0].label, label[:10, :10])
    # Without a background, the others mean nothing.
    plain = ObjectCrops(Drawn(generic_table([f"class{i}" for i in range(21)]), [label]), 1.6, minimum_size=6)
    cat = plain.ids.index("image0#2")
    np.testing.assert_array_equal(plain[cat].label, np.where(expected == 8, 8, 255))


def test_specks_are_left_out():
    assert len(ObjectCrops(Drawn(), minimum_size=1)) == 3
    assert len(ObjectCrops(Drawn(), minimum_size=6)) == 2
    assert len(ObjectCrops(Drawn(), minimum_size=7)) == 1
    # Both sides count.
    line = np.zeros((40, 40), np.int32)
    line[20:23, :] = 4
    with pytest.raises(KerassegError, match="'voc' has no object of 4 pixels or more in 1 images: choose another split"):
        ObjectCrops(Drawn(maps=[line]), minimum_size=4)


def test_overlap_is_intersection_over_union():
    boxes = [[0, 0, 4, 4], [2, 2, 6, 6], [4, 0, 8, 4]]
    expected = [[1, 4 / 28, 0], [4 / 28, 1, 4 / 28], [0, 4 / 28, 1]]
    np.testing.assert_allclose(overlap(np.int32(boxes), np.int32(boxes)), expected)
    assert overlap(np.int32(boxes), np.zeros((0, 4), np.int32)).shape == (3, 0)
    # Areas beyond 32 bits.
    huge = np.int32([[0, 0, 60000, 60000]])
    np.testing.assert_allclose(overlap(huge, huge), 1)


def test_proposals_are_kept_where_they_overlap_an_object_by_half():
    # The cat's tight box is (4, 5, 14, 15), of 100 pixels: 60 of 110 in common is 0.545, 50 of 100 exactly half, 49 of 100 less.
    kept, half, less = [4, 9, 14, 16], [4, 5, 9, 15], [4, 5, 14, 9]
    boxes = {"image0": np.int32([less, kept, [0, 0, 30, 20], half, [24, 14, 30, 20]]), "image1": np.int32([[0, 0, 8, 8]])}
    crops = ProposalCrops(Drawn(), boxes)
    assert [box for _, box in crops.windows] == [tuple(kept), tuple(half), (24, 14, 30, 20)]
    np.testing.assert_array_equal(crops[0].label, drawing()[9:16, 4:14])
    np.testing.assert_array_equal(crops[2].image, Drawn()[0].image[14:20, 24:30])
    assert len(ProposalCrops(Drawn(), boxes, 0.3)) == 4 and len(ProposalCrops(Drawn(), boxes, 0.51)) == 2
    # All classes keep their labels.
    whole = ProposalCrops(Drawn(), {**boxes, "image0": np.int32([[0, 0, 30, 20]])}, 0.01)
    np.testing.assert_array_equal(whole[0].label, drawing())


def test_without_a_file_there_are_dense_windows():
    data = open_data("shapes", length=4)
    crops = ProposalCrops(data)
    expected = []
    for index in range(4):
        label = data.read_label(index)
        for box in dense_windows(label.shape):
            best = max(overlap(box[None], object_boxes(label, data.labels))[0], default=0)
            expected += [(index, tuple(box))] if best >= 0.5 else []
    assert list(crops.windows) == expected and len(expected) > 4


def test_mistakes_are_one_line():
    boxes = {"image0": np.int32([[4, 5, 14, 15]]), "image1": np.int32([[0, 0, 9, 8]])}
    cases = [
        (lambda: ObjectCrops(Drawn(), 0.5), "ObjectCrops received scale=0.5"),
        (lambda: ObjectCrops(Drawn(), minimum_size=0), "minimum_size=0"),
        (lambda: ObjectCrops(Drawn(label=False)), "example 'image0' of data set 'voc' has no label"),
        (
            lambda: ProposalCrops(Drawn(), boxes),
            r"box 0 \[0, 0, 9, 8\] of image 'image1' in the file of boxes lies outside the image of 8x8",
        ),
        (lambda: ProposalCrops(Drawn(), {"image0": boxes["image0"]}), "has no boxes for image 'image1'"),
        (lambda: ProposalCrops(Drawn(), None, 0), "minimum_overlap=0: expected above 0 to 1"),
        (lambda: ProposalCrops(Drawn(maps=[drawing()]), {"image0": [[0, 0, 2, 2]]}), "none of 1 boxes in the file of boxes"),
    ]
    for action, message in cases:
        with pytest.raises(KerassegError, match=message) as error:
            action()
        assert "\n" not in str(error.value)


def test_recipes_name_what_is_cut_out(tmp_path):
    shapes = RECIPES["shapes"]
    told = []
    plain = open_training_data(shapes)
    objects = open_training_data(shapes.override(examples="objects"), lambda done, total: told.append((done, total)))
    assert isinstance(objects, ObjectCrops) and told[-1] == (len(plain), len(plain))
    assert type(plain) is type(open_data("shapes"))
    with pytest.raises(KerassegError, match=r"examples='object' of recipe shapes: did you mean 'objects'\?"):
        open_training_data(shapes.override(examples="object"))
    with pytest.raises(KerassegError, match="boxes='b.json' with examples='images': boxes need --examples proposals"):
        open_training_data(shapes.override(boxes="b.json"))
    with pytest.raises(KerassegError, match="no such file"):
        open_training_data(shapes.override(examples="proposals", boxes=str(tmp_path / "b.json")))


def test_recipes_read_their_boxes(tmp_path, monkeypatch):
    monkeypatch.setattr("kerasseg.recipes.building.open_data", lambda name, folder, split: Drawn())
    (tmp_path / "b.csv").write_text("image,left,top,right,bottom\nimage0,4,5,14,15\nimage1,0,0,8,8\n")
    proposals = RECIPES["shapes"].override(examples="proposals")
    assert open_training_data(proposals.override(boxes=str(tmp_path / "b.csv"))).windows == ((0, (4, 5, 14, 15)),)
    assert len(open_training_data(proposals.override(bootstrap_classes=("cat",)))) == 2 * len(open_training_data(proposals)) > 0


def test_the_file_of_boxes_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("kerasseg.recipes.building.open_data", lambda name, folder, split: Drawn())
    path = tmp_path / "b.csv"
    proposals = RECIPES["shapes"].override(examples="proposals", boxes=str(path))
    for row, message in (
        ("image0,4,5,14,15", f"'{path}' has no boxes for image 'image1'"),
        ("image1,0,0,9,8", f"of image 'image1' in '{path}' lies outside the image"),
        ("image1,0,0,1,1", f"none of 2 boxes in '{path}' overlaps"),
    ):
        first = "" if row.startswith("image0") else "image0,0,0,1,1\n"
        path.write_text(f"image,left,top,right,bottom\n{first}{row}\n")
        with pytest.raises(KerassegError, match=message):
            open_training_data(proposals)


def test_scipy_is_not_loaded_with_the_data():
    code = "import sys, kerasseg.data, kerasseg.recipes; kerasseg.data.read_boxes; sys.exit('scipy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
