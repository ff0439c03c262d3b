"""Training runs, by name. Listing and reading them imports no TensorFlow."""

from kerasseg.recipes.base import Recipe as Recipe
from kerasseg.tables import LazyTable

RECIPES = LazyTable(
    "recipe",
    {
        "shapes": "kerasseg.recipes.shapes:SHAPES",
        "camvid_small": "kerasseg.recipes.camvid:CAMVID_SMALL",
        "camvid_fcn8s": "kerasseg.recipes.camvid:CAMVID_FCN8S",
        "fcn32s_voc": "kerasseg.recipes.fcn:FCN32S_VOC",
        "fcn16s_voc": "kerasseg.recipes.fcn:FCN16S_VOC",
        "fcn8s_voc": "kerasseg.recipes.fcn:FCN8S_VOC",
        "fcn8s_atonce_voc": "kerasseg.recipes.fcn:FCN8S_ATONCE_VOC",
        "fcn_alexnet_voc": "kerasseg.recipes.fcn:FCN_ALEXNET_VOC",
    },
)
