"""Training runs, by name. Listing and reading them imports no TensorFlow."""

from kerasseg.recipes.base import Recipe as Recipe
from kerasseg.recipes.base import Stage as Stage
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
        "fcn32s_voc_accum": "kerasseg.recipes.fcn:FCN32S_VOC_ACCUM",
        "fcn32s_voc_online": "kerasseg.recipes.fcn:FCN32S_VOC_ONLINE",
        "fcn32s_voc_fixed": "kerasseg.recipes.fcn:FCN32S_VOC_FIXED",
        "fcn_pool5_voc": "kerasseg.recipes.fcn:FCN_POOL5_VOC",
        "fcn_pool4_voc": "kerasseg.recipes.fcn:FCN_POOL4_VOC",
        "fcn_pool3_voc": "kerasseg.recipes.fcn:FCN_POOL3_VOC",
        "fcn32s_context": "kerasseg.recipes.fcn:FCN32S_CONTEXT",
        "fcn16s_context": "kerasseg.recipes.fcn:FCN16S_CONTEXT",
        "fcn8s_context": "kerasseg.recipes.fcn:FCN8S_CONTEXT",
        "fcn32s_siftflow": "kerasseg.recipes.fcn:FCN32S_SIFTFLOW",
        "fcn16s_siftflow": "kerasseg.recipes.fcn:FCN16S_SIFTFLOW",
        "fcn8s_siftflow": "kerasseg.recipes.fcn:FCN8S_SIFTFLOW",
        "fcn32s_nyud_color": "kerasseg.recipes.fcn:FCN32S_NYUD_COLOR",
        "fcn32s_nyud_color_d": "kerasseg.recipes.fcn:FCN32S_NYUD_COLOR_D",
        "fcn32s_nyud_hha": "kerasseg.recipes.fcn:FCN32S_NYUD_HHA",
        "fcn32s_nyud_color_hha": "kerasseg.recipes.fcn:FCN32S_NYUD_COLOR_HHA",
    },
)
