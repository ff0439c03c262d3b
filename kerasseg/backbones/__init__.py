"""Classification networks in the form that segmentation needs: named functions from tensors to feature maps."""

from kerasseg.tables import LazyTable

_FORMS = ("", "_beta", "_caffe", "_msra", "_torchvision")

# Of keras.applications; `resnet50` without a prefix is our own.
_APPLICATIONS = (
    *("vgg16", "vgg19", "keras_resnet50", "keras_resnet101", "keras_resnet152", "resnet50_v2", "resnet101_v2", "resnet152_v2"),
    *("mobilenet", "mobilenet_v2", "mobilenet_v3_small", "mobilenet_v3_large", "densenet121", "densenet169", "densenet201"),
    *(f"efficientnet_b{size}" for size in range(8)),
    *(f"efficientnet_v2_{size}" for size in ("b0", "b1", "b2", "b3", "s", "m", "l")),
    *("xception", "inception_v3", "inception_resnet_v2"),
)

BACKBONES = LazyTable(
    "backbone",
    {
        f"resnet{depth}{form}": f"kerasseg.backbones.resnet:RESNET{depth}{form.upper()}"
        for depth in (50, 101, 152)
        for form in _FORMS
    }
    | {"resnet50_gcn": "kerasseg.backbones.resnet:RESNET50_GCN"}
    | {name: f"kerasseg.backbones.applications:{name.upper()}" for name in _APPLICATIONS},
)
"""Trunks of the networks that offer a choice, by their `--backbone` names; each a `kerasseg.backbones.table.Backbone`."""
