"""The networks, by their `--arch` names.

Each entry is a function `(num_classes=21, *, input_shape, preprocessing, width_multiplier, …) -> keras.Model`, imported when it is
looked up; listing the names imports nothing. A new network is one file here and one line in `MODELS`.
"""

from kerasseg.tables import LazyTable

MODELS = LazyTable(
    "arch",
    {
        "fcn32s": "kerasseg.models.fcn:fcn32s",
        "fcn16s": "kerasseg.models.fcn:fcn16s",
        "fcn8s": "kerasseg.models.fcn:fcn8s",
        "fcn8s_atonce": "kerasseg.models.fcn:fcn8s_atonce",
        "fcn_pool5": "kerasseg.models.fcn:fcn_pool5",
        "fcn_pool4": "kerasseg.models.fcn:fcn_pool4",
        "fcn_pool3": "kerasseg.models.fcn:fcn_pool3",
        "fcn_alexnet": "kerasseg.models.fcn:fcn_alexnet",
        "fcn_googlenet": "kerasseg.models.fcn:fcn_googlenet",
        "deeplab_v1": "kerasseg.models.deeplab_v1:deeplab_v1",
        "deeplab_v1_largefov": "kerasseg.models.deeplab_v1:deeplab_v1_largefov",
        "deeplab_v2_vgg16": "kerasseg.models.deeplab_v2:deeplab_v2_vgg16",
        "deeplab_v2_resnet101": "kerasseg.models.deeplab_v2:deeplab_v2_resnet101",
        "deeplab_v3": "kerasseg.models.deeplab_v3:deeplab_v3",
        "deeplab_v3_cascade": "kerasseg.models.deeplab_v3:deeplab_v3_cascade",
        "dilation_frontend": "kerasseg.models.dilation:dilation_frontend",
        "dilation7": "kerasseg.models.dilation:dilation7",
        "dilation8": "kerasseg.models.dilation:dilation8",
        "dilation10": "kerasseg.models.dilation:dilation10",
        "gcn": "kerasseg.models.gcn:gcn",
        "deconvnet": "kerasseg.models.deconvnet:deconvnet",
        "crf_rnn": "kerasseg.models.crf_rnn:crf_rnn",
    },
)
