"""Every network of keras.applications that can be made dense, at output strides 16, 8 and 4, on an even and an odd image.

For each: the largest difference between every (32 / stride)-th cell of the dense map and the classifier's map, relative to the
latter's largest value, and the size of the dense map. Weights are random, with every normalisation on the image's own statistics.
The last line counts what exceeds 1e-5. The whole table takes about an hour on two cores and up to 12 GB.
"""

import argparse
import os
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

SIZES, TOLERANCE = (224, 193), 1e-5
# Small ones first, each family's smallest before its others.
SMALLEST = (
    *("MobileNet", "MobileNetV2", "MobileNetV3Small", "MobileNetV3Large", "EfficientNetB0", "EfficientNetV2B0", "DenseNet121"),
    *("VGG16", "ResNet50", "ResNet50V2", "Xception", "InceptionV3", "InceptionResNetV2"),
)
OTHERS = (
    *("EfficientNetB1", "EfficientNetB2", "EfficientNetB3", "EfficientNetV2B1", "EfficientNetV2B2", "EfficientNetV2B3"),
    *("DenseNet169", "DenseNet201", "VGG19", "ResNet101", "ResNet101V2", "ResNet152", "ResNet152V2", "EfficientNetV2S"),
    *("EfficientNetB4", "EfficientNetB5", "EfficientNetB6", "EfficientNetB7", "EfficientNetV2M", "EfficientNetV2L"),
)


def rows(name: str, strides, sizes):
    """Yields stride, image size, size of the dense map, difference."""
    import keras
    from dense_helpers import difference, features, picture, randomized, rescales

    from kerasseg.backbones.atrous import atrous

    keras.backend.clear_session()
    net = getattr(keras.applications, name)(include_top=False, weights=None, input_shape=(None, None, 3))
    images = {size: picture(size, rescales=rescales(net)) for size in sizes}
    randomized(net, images[sizes[0]])
    expected = {size: features(net, image) for size, image in images.items()}
    for stride in strides:
        extractor, step = atrous(net, stride), 32 // stride
        for size, image in images.items():
            dense = features(extractor, image)
            yield stride, size, dense.shape[1:3], difference(dense[:, ::step, ::step], expected[size])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("networks", nargs="*", default=[*SMALLEST, *OTHERS], help="names in keras.applications (default: all)")
    parser.add_argument("--strides", type=int, nargs="+", default=[16, 8, 4], help="output strides (default: 16 8 4)")
    arguments = parser.parse_args()
    print(f"{'network':18} stride   image       dense  difference")
    above = count = 0
    for name in arguments.networks:
        for stride, size, dense, received in rows(name, arguments.strides, SIZES):
            count, above = count + 1, above + (received > TOLERANCE)
            print(f"{name:18} {stride:6} {size:7} {dense[0]:5} × {dense[1]:<4} {received:9.1e}", flush=True)
    print(f"{above} of {count} above {TOLERANCE:g}")


if __name__ == "__main__":
    main()
