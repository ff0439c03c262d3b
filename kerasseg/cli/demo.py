"""`tools/predict.py --demo`: masks by the small network that comes with the library; needs no TensorFlow."""

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from kerasseg.cli.running import make_parser
from kerasseg.errors import KerassegError

DEMO_NETWORK = Path(__file__).resolve().parents[1] / "demo" / "shapes_int8.tflite"
"""Trained on the built-in drawings by tools/make_demo_network.py; its description lies beside it."""

_DRAWINGS = 6
# As the network was trained on.
_SIZE = (96, 128)


def drawings(count: int, size: tuple[int, int] = _SIZE) -> list[np.ndarray]:
    """Draws images of the built-in set that no training sees.

    Args:
        count: How many.
        size: Height and width in pixels.
    Returns:
        Arrays of shape `(*size, 3)`, uint8.
    """
    from kerasseg.data import open_data

    data = open_data("shapes", split="test", size=size, length=count)
    return [data[index].image for index in range(count)]


def run_demo(arguments: Sequence[str]) -> None:
    """Writes masks of drawings, or of photographs, by the network that comes with the library.

    Args:
        arguments: Those of `tools/predict.py`, `--demo` among them; the network is not named.
    Raises:
        KerassegError: If they cannot be followed.
    """
    from kerasseg.cli import predict
    from kerasseg.cli.inference import check_out

    options = _parser().parse_args(arguments)
    predict.check_kinds(options.kinds)
    check_out(options.out)
    paths = list(predict.find_images(options.images))
    kinds, out = options.kinds or predict.KINDS, Path(options.out)
    for path, _ in paths:
        if path.suffix.lower() == predict.ARRAY_SUFFIX:
            raise KerassegError(f"{path}: the demo labels photographs, expected .jpg or .png")
    predict.check_apart(paths, {predict.mask_path(out, kind, name): path for path, name in paths for kind in kinds})
    start = time.perf_counter()
    network, labels = _open_network()
    count = 0
    for name, image in _pictures(paths, out):
        predict.write_masks(out, name, image, label_photograph(network, image), labels, kinds)
        count += 1
    seconds = time.perf_counter() - start
    what = "photographs (the network knows nothing but drawings of shapes)" if paths else "drawings"
    print(f"{count} {what} labelled in {seconds:.1f} s by a network of {DEMO_NETWORK.stat().st_size // 1000} kB")
    print(f"masks: {options.out} ({', '.join(kinds)})")


def _parser():
    made = make_parser("predict.py --demo", "Label drawings, or photographs, by the small network that comes with the library.")
    made.add_argument("--demo", action="store_true", help="(what you are reading about)")
    made.add_argument("images", nargs="*", metavar="IMAGE_OR_FOLDER", help="photographs (default: a few drawings)")
    made.add_argument("--out", required=True, help="folder for index/, color/ and overlay/, one PNG each per picture")
    made.add_argument("--kinds", nargs="+", default=None, help="what to write of these three (default: all)")
    return made


def _open_network():
    from kerasseg.labels import LABELS
    from kerasseg.runtimes import open_file

    return open_file(DEMO_NETWORK), LABELS["shapes"]


def _pictures(paths, out: Path):
    """Yields (name, image): photographs, or drawings, which are written into `images/`."""
    from PIL import Image

    from kerasseg.data import decode_image
    from kerasseg.runs import atomic_path

    for path, name in paths:
        yield name, decode_image(path)
    for index, image in enumerate([] if paths else drawings(_DRAWINGS), start=1):
        name = Path(f"drawing_{index}")
        with atomic_path(out / "images" / f"{name}.png") as temporary:
            Image.fromarray(image).save(temporary, format="PNG")
        yield name, image


def label_photograph(network, image: np.ndarray) -> np.ndarray:
    """Labels the pixels of a photograph by an exported network of one input size, as `kerasseg.evaluation.Fitted` does.

    The photograph is shrunk, never enlarged, to fit, and continued by reflection at the bottom and right; its scores are cropped
    and resized back.

    Args:
        network: What `kerasseg.runtimes.open_file` gave; its result logits.
        image: Shape `(H, W, 3)`, uint8, RGB.
    Returns:
        Shape `(H, W)`, uint8, classes.
    """
    size, given = network.input_shape[1:3], image.shape[:2]
    factor = min(1.0, size[0] / given[0], size[1] / given[1])
    inner = tuple(min(whole, max(1, round(side * factor))) for whole, side in zip(size, given, strict=True))
    fitted = _resized(image, inner)
    fitted = np.pad(fitted, ((0, size[0] - inner[0]), (0, size[1] - inner[1]), (0, 0)), mode="reflect")
    scores = network.run(fitted[np.newaxis])[network.output_names[0]][0, : inner[0], : inner[1]]
    return _resized(scores, given).argmax(-1).astype(np.uint8)


def _resized(maps: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Maps (H, W, C) resized bilinearly, antialiased where they shrink, in float32."""
    from PIL import Image

    if maps.shape[:2] == tuple(size):
        return maps.astype(np.float32)
    channels = (Image.fromarray(channel) for channel in np.moveaxis(maps.astype(np.float32), -1, 0))
    return np.stack([np.asarray(channel.resize(size[::-1], Image.Resampling.BILINEAR)) for channel in channels], -1)
