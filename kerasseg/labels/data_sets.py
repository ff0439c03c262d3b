"""The label tables of the data sets that the papers use.

Names, orders and colours are facts of the data sets' own development kits: VOC 2012's colour map and class list, PASCAL-Context's
59 classes, the SIFT Flow and NYUDv2 lists used by FCN, cityscapesScripts' `labels.py`, SegNet's CamVid folder, and the
SceneParsing ADE20K object list with the colours of its `color150`. Cityscapes' groups are the categories of the same `labels.py`,
less the one without classes to score; what SIFT Flow's test images lack, FCN's `classes.txt` says.
"""

from kerasseg.labels.table import IGNORE, IGNORE_COLOR, LabelTable, voc_palette


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


def _colors(text: str) -> tuple[tuple[int, int, int], ...]:
    return tuple(tuple(bytes.fromhex(word)) for word in text.split())


def _one_based(count: int) -> dict[int, int]:
    """Files that number their classes from 1 and leave 0 for unlabelled pixels."""
    return {0: IGNORE, **{value: value - 1 for value in range(1, count + 1)}}


_VOC = (
    "background,aeroplane,bicycle,bird,boat,bottle,bus,car,cat,chair,cow,diningtable,dog,horse,motorbike,person,"
    "pottedplant,sheep,sofa,train,tvmonitor"
)
_CONTEXT = (
    "bag,bed,bench,book,building,cabinet,ceiling,clothes,computer,cup,door,fence,floor,flower,food,grass,ground,keyboard,"
    "light,mountain,mouse,curtain,platform,sign,plate,road,rock,shelves,sidewalk,sky,snow,bedcloth,track,tree,truck,wall,"
    "water,window,wood"
)
# The parts of Chen et al. 2016, arXiv:1511.03339, §4; which raw ones each holds, `data/layouts/person_part.py` says.
_PERSON_PARTS = "background,head,torso,upper arms,lower arms,upper legs,lower legs"
_SIFT_FLOW = (
    "awning,balcony,bird,boat,bridge,building,bus,car,cow,crosswalk,desert,door,fence,field,grass,moon,mountain,person,"
    "plant,pole,river,road,rock,sand,sea,sidewalk,sign,sky,staircase,streetlight,sun,tree,window"
)
_NYUD = (
    "wall,floor,cabinet,bed,chair,sofa,table,door,window,bookshelf,picture,counter,blinds,desk,shelves,curtain,dresser,"
    "pillow,mirror,floor mat,clothes,ceiling,books,refridgerator,television,paper,towel,shower curtain,box,whiteboard,"
    "person,night stand,toilet,sink,lamp,bathtub,bag,otherstructure,otherfurniture,otherprop"
)
_CAMVID = "sky,building,pole,road,pavement,tree,sign symbol,fence,car,pedestrian,bicyclist"
# The order of fyu/dilation's networks for CamVid and KITTI, with its colours, which both releases have, too.
_DILATION_STREETS = "building,tree,sky,car,sign,road,pedestrian,fence,pole,sidewalk,bicyclist"
_DILATION_COLORS = "800000 808000 808080 400080 c08080 804080 404000 404080 c0c080 0000c0 0080c0"
# Label of the files' values 0, 1, ... 11, which are in SegNet's order.
_DILATION_OF_SEGNET = "2 0 8 5 9 1 4 7 3 6 10 255"
_CAMVID_COLORS = "808080 800000 c0c080 804080 3c28de 808000 c08080 404080 400080 404000 0080c0"
_CITYSCAPES = (
    "road,sidewalk,building,wall,fence,pole,traffic light,traffic sign,vegetation,terrain,sky,person,rider,car,truck,bus,"
    "train,motorcycle,bicycle"
)
_CITYSCAPES_COLORS = (
    "804080 f423e8 464646 66669c be9999 999999 faaa1e dcdc00 6b8e23 98fb98 4682b4 dc143c ff0000 00008e 000046 003c64 "
    "005064 0000e6 770b20"
)
# Of the classes that are not evaluated; "polegroup" and "license plate" share the colours of pole and car.
_CITYSCAPES_IGNORED = "000000 00005a 00006e 510051 6f4a00 966464 96785a b4a5b4 e6968c faaaa0"
# Train label of the ids -1 (license plate), 0, 1, ... 33.
_CITYSCAPES_TRAIN_IDS = (
    "255 255 255 255 255 255 255 255 0 1 255 255 2 3 4 255 255 255 5 255 6 7 8 9 10 11 12 13 14 15 255 255 16 17 18"
)
_CITYSCAPES_GROUPS = (
    ("flat", _names("road,sidewalk")),
    ("construction", _names("building,wall,fence")),
    ("object", _names("pole,traffic light,traffic sign")),
    ("nature", _names("vegetation,terrain")),
    ("sky", _names("sky")),
    ("human", _names("person,rider")),
    ("vehicle", _names("car,truck,bus,train,motorcycle,bicycle")),
)
_ADE20K = (
    "wall,building,sky,floor,tree,ceiling,road,bed,windowpane,grass,cabinet,sidewalk,person,earth,door,table,mountain,"
    "plant,curtain,chair,car,water,painting,sofa,shelf,house,sea,mirror,rug,field,armchair,seat,fence,desk,rock,wardrobe,"
    "lamp,bathtub,railing,cushion,base,box,column,signboard,chest of drawers,counter,sand,sink,skyscraper,fireplace,"
    "refrigerator,grandstand,path,stairs,runway,case,pool table,pillow,screen door,stairway,river,bridge,bookcase,blind,"
    "coffee table,toilet,flower,book,hill,bench,countertop,stove,palm,kitchen island,computer,swivel chair,boat,bar,"
    "arcade machine,hovel,bus,towel,light,truck,tower,chandelier,awning,streetlight,booth,television,airplane,dirt track,"
    "apparel,pole,land,bannister,escalator,ottoman,bottle,buffet,poster,stage,van,ship,fountain,conveyer belt,canopy,"
    "washer,plaything,swimming pool,stool,barrel,basket,waterfall,tent,bag,minibike,cradle,oven,ball,food,step,tank,"
    "trade name,microwave,pot,animal,bicycle,lake,dishwasher,screen,blanket,sculpture,hood,sconce,vase,traffic light,tray,"
    "ashcan,fan,pier,crt screen,plate,monitor,bulletin board,shower,radiator,glass,clock,flag"
)
_ADE20K_COLORS = (
    "787878 b47878 06e6e6 503232 04c803 787850 8c8c8c cc05ff e6e6e6 04fa07 e005ff ebff07 96053d 787846 08ff33 ff0652 "
    "8fff8c ccff04 ff3307 cc4603 0066c8 3de6fa ff0633 0b66ff ff0747 ff09e0 0907e6 dcdcdc ff095c 7009ff 08ffd6 07ffe0 "
    "ffb806 0aff47 ff290a 07ffff e0ff08 6608ff ff3d06 ffc207 ff7a08 00ff14 ff0829 ff0599 0633ff eb0cff a09614 00a3ff "
    "8c8cc8 fa0a0f 14ff00 1fff00 ff1f00 ffe000 99ff00 0000ff ff4700 00ebff 00adff 1f00ff 0bc8c8 ff5200 00fff5 003dff "
    "00ff70 00ff85 ff0000 ffa300 ff6600 c2ff00 008fff 33ff00 0052ff 00ff29 00ffad 0a00ff adff00 00ff99 ff5c00 ff00ff "
    "ff00f5 ff0066 ffad00 ff0014 ffb8b8 001fff 00ff3d 0047ff ff00cc 00ffc2 00ff52 000aff 0070ff 3300ff 00c2ff 007aff "
    "00ffa3 ff9900 00ff0a ff7000 8fff00 5200ff a3ff00 ffeb00 08b8aa 8500ff 00ff5c b800ff ff001f 00b8ff 00d6ff ff0070 "
    "5cff00 00e0ff 70e0ff 46b8a0 a300ff 9900ff 47ff00 ff00a3 ffcc00 ff008f 00ffeb 85ff00 ff00eb f500ff ff007a fff500 "
    "0abed4 d6ff00 00ccff 1400ff ffff00 0099ff 0029ff 00ffcc 2900ff 29ff00 ad00ff 00f5ff 4700ff 7a00ff 00ffb8 005cff "
    "b8ff00 0085ff ffd600 19c2c2 66ff00 5c00ff"
)

_BLACK, _WHITE = (0, 0, 0), (255, 255, 255)


def _with_voc_colors(name: str, classes: tuple[str, ...], file_to_label: dict[int, int], absent=()) -> LabelTable:
    return LabelTable(name, classes, voc_palette(len(classes)), file_to_label=file_to_label, absent=absent)


_TABLES = (
    _with_voc_colors("voc", _names(_VOC), {}),
    _with_voc_colors("shapes", ("background", "circle", "square", "triangle", "striped", "golden"), {}),
    _with_voc_colors("pascal_context", _names(_VOC + "," + _CONTEXT), {}),
    _with_voc_colors("pascal_person_part", _names(_PERSON_PARTS), {}),
    _with_voc_colors("sift_flow", _names(_SIFT_FLOW), _one_based(33), _names("cow,desert,moon")),
    _with_voc_colors("sift_flow_geometric", ("sky", "horizontal", "vertical"), {-1: IGNORE, **_one_based(3)}),
    _with_voc_colors("nyud", _names(_NYUD), _one_based(40)),
    LabelTable("camvid", _names(_CAMVID), _colors(_CAMVID_COLORS), (_BLACK, IGNORE_COLOR), {11: IGNORE}),
    LabelTable(
        "camvid_dilation",
        _names(_DILATION_STREETS),
        _colors(_DILATION_COLORS),
        (_BLACK, IGNORE_COLOR),
        {value: int(label) for value, label in enumerate(_DILATION_OF_SEGNET.split())},
    ),
    LabelTable("kitti", _names(_DILATION_STREETS), _colors(_DILATION_COLORS), (_BLACK, _WHITE, IGNORE_COLOR), {11: IGNORE}),
    LabelTable(
        "cityscapes",
        _names(_CITYSCAPES),
        _colors(_CITYSCAPES_COLORS),
        (*_colors(_CITYSCAPES_IGNORED), IGNORE_COLOR),
        {value: int(label) for value, label in enumerate(_CITYSCAPES_TRAIN_IDS.split(), -1)},
        groups=_CITYSCAPES_GROUPS,
    ),
    LabelTable("ade20k", _names(_ADE20K), _colors(_ADE20K_COLORS), (_BLACK, IGNORE_COLOR), _one_based(150)),
)

LABELS: dict[str, LabelTable] = {table.name: table for table in _TABLES}
"""Name of the data set → its label table. Cityscapes' files are those of ids (`labelIds`), not of train ids."""
