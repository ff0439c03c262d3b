"""CamVid's own 32 classes, as its release paints them, and the eleven that SegNet made of them.

Names and colours are those of the release's `label_colors.txt`. Which of them make one class is as MATLAB's `camvidPixelLabelIDs`,
written after SegNet's training, lists it; only Void belongs to none.
"""

import numpy as np

from kerasseg.labels.table import IGNORE, LabelTable

# Colour, name in the release, and the class in SegNet's order, from 0 on.
_ROWS = """
808080 Sky 0
008040 Bridge 1
800000 Building 1
40c000 Wall 1
400040 Tunnel 1
c00080 Archway 1
c0c080 Column_Pole 2
000040 TrafficCone 2
804080 Road 3
8000c0 LaneMkgsDriv 3
c00040 LaneMkgsNonDriv 3
0000c0 Sidewalk 4
40c080 ParkingBlock 4
8080c0 RoadShoulder 4
808000 Tree 5
c0c000 VegetationMisc 5
c08080 SignSymbol 6
808040 Misc_Text 6
004040 TrafficLight 6
404080 Fence 7
400080 Car 8
4080c0 SUVPickupTruck 8
c080c0 Truck_Bus 8
c04080 Train 8
804040 OtherMoving 8
404000 Pedestrian 9
c08040 Child 9
4000c0 CartLuggagePram 9
408040 Animal 9
0080c0 Bicyclist 10
c000c0 MotorcycleScooter 10
"""
_COLORS, _NAMES, _CLASSES = zip(*(row.split() for row in _ROWS.split("\n") if row), strict=True)

CAMVID_RELEASE = LabelTable(
    "camvid (32 classes)", _NAMES, tuple(tuple(bytes.fromhex(color)) for color in _COLORS), ignore_colors=((0, 0, 0),)
)
"""The classes of the release; Void is to be ignored."""


def merged_classes(labels: LabelTable) -> np.ndarray:
    """Tells which of CamVid's eleven classes each of the release's becomes.

    Args:
        labels: A table of CamVid's eleven classes in any order, whose index files are SegNet's.
    Returns:
        Shape `(256,)`, int32: label by `CAMVID_RELEASE` → label by the table; 255 stays.
    Example:
        >>> from kerasseg.labels import LABELS
        >>> LABELS["camvid"].classes[merged_classes(LABELS["camvid"])[CAMVID_RELEASE.classes.index("Child")]]
        'pedestrian'
    """
    lookup = np.full(IGNORE + 1, IGNORE, np.int32)
    lookup[: len(_CLASSES)] = [labels.file_to_label.get(int(value), int(value)) for value in _CLASSES]
    return lookup
