"""What the library takes for a photograph: files, PIL images and arrays."""

from pathlib import Path

import numpy as np
import PIL.Image

from kerasseg.data.decode import decode_image
from kerasseg.errors import KerassegError


def name_of(image, name: str | None) -> str | None:
    """What a photograph is called: as it is said, else, of a path, the file's name without its suffix."""
    return Path(image).stem if name is None and isinstance(image, (str, Path)) else name


def image_array(image) -> np.ndarray:
    """An RGB array (H, W, 3) from whatever `predict` accepts.

    Raises:
        KerassegError: If it is no RGB image of 0–255.
    """
    if isinstance(image, (str, Path)):
        image = decode_image(image)
    elif isinstance(image, PIL.Image.Image):
        image = image.convert("RGB")
    array = np.asarray(image)
    check_image(array)
    check_colors(array, array.dtype)
    return array


def check_image(image) -> None:
    """Refuses what is not shaped as an image; nothing of it is read.

    Args:
        image: Whatever has a shape and a type.
    Raises:
        KerassegError: If it is no image.
    """
    if len(image.shape) != 3 or image.shape[2] < 3 or 0 in image.shape:
        raise KerassegError(
            f"image has shape {tuple(image.shape)}: expected (height, width, 3), one RGB image; of a grey one "
            "np.stack([grey] * 3, -1)"
        )
    if np.dtype(image.dtype).kind not in "uif":
        raise KerassegError(f"image has dtype {image.dtype}: expected uint8 or float32, RGB 0-255")


def check_colors(pixels: np.ndarray, dtype) -> None:
    """Refuses colours that are not 0–255.

    Args:
        pixels: Shape `(…, 3)` or more channels, of which the first three are colours.
        dtype: What the image was: of uint8 nothing has to be looked at.
    Raises:
        KerassegError: If there are such.
    """
    colors = pixels[..., :3]
    if dtype != np.uint8 and not (colors.min() >= 0 and colors.max() <= 255):
        raise KerassegError(f"image has values {colors.min()} to {colors.max()}: expected RGB 0-255, neither centred nor 16 bits")
