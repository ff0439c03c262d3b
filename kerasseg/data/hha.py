"""HHA: depth as three channels that a network for photographs understands, disparity, height above ground, angle with gravity."""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from kerasseg.errors import KerassegError

# Gupta et al. 2014, §3, and the constants of their saveHHA and getYDir.
_DISPARITY = 31000.0
_ANGLE_OFFSET, _NO_NORMAL = 128.0 - 90.0, 180.0
_FINE, _COARSE = 3, 10
_THRESHOLDS, _ROUNDS = (45.0, 15.0), 5
_LOWEST, _EYE_LEVEL = -90.0, -130.0
_DOWN = np.array([0.0, 1.0, 0.0])
# Of all weight, on what gravity was taken for before: decides where the surfaces leave it open, as a lone wall does.
_PRIOR = 1e-6


@dataclass(frozen=True)
class Camera:
    """A pinhole camera.

    Args:
        fx: Focal length along rows, in pixels.
        fy: Focal length along columns, in pixels.
        cx: Column of the principal point, counted from 0 at the centre of the first pixel.
        cy: Row of the principal point, likewise.
    Raises:
        KerassegError: If a focal length is not positive.
    Example:
        >>> Camera(500, 500, 319.5, 239.5).cropped(45, 40).cy
        194.5
    """

    fx: float
    fy: float
    cx: float
    cy: float

    def __post_init__(self):
        if not (self.fx > 0 and self.fy > 0):
            raise KerassegError(f"received the focal lengths fx={self.fx}, fy={self.fy}: expected pixels, more than 0")

    def cropped(self, top: float, left: float) -> "Camera":
        """The camera of a picture whose first rows and columns were cut off.

        Args:
            top: Rows cut off.
            left: Columns cut off.
        Returns:
            The other camera.
        """
        return Camera(self.fx, self.fy, self.cx - left, self.cy - top)


# The toolbox of the data set counts pixels from 1.
NYU_CAMERA = Camera(518.85790117450188, 519.46961112127485, 325.58244941119034 - 1, 253.73616633400465 - 1)
"""The colour camera of NYUDv2, 640×480, to whose frame its depth maps are projected (toolbox `camera_params.m`)."""


@dataclass(frozen=True, eq=False)
class Geocentric:
    """What a depth map says about the scene.

    Args:
        depth: Shape `(H, W)`, metres, holes filled from the nearest measured pixel.
        height: Shape `(H, W)`, metres above the lowest point.
        angle: Shape `(H, W)`, degrees between the surface, seen from behind, and gravity: 0 floor, 90 wall, 180 ceiling; NaN
            where nothing was measured around.
        gravity: Unit vector of the direction down, in the camera's frame (right, down, ahead).
    """

    depth: np.ndarray
    height: np.ndarray
    angle: np.ndarray
    gravity: np.ndarray


def hha(depth, camera: Camera = NYU_CAMERA, measured=None) -> np.ndarray:
    """Encodes a depth map as HHA, as the networks of Gupta et al. and FCN read it.

    Channel 0 is 31000 / depth in cm, which is full at 1.2 m; channel 1 the height above the lowest point in cm, up to 255; channel
    2 the angle with gravity in degrees + 38, where nothing was measured around 218, as in the authors' own files.

    Args:
        depth: Shape `(H, W)`, metres; 0 or not finite where there is none.
        camera: What took it.
        measured: Shape `(H, W)`, boolean: where depth was measured, not filled in later; angles come from these pixels only.
            `None`: wherever there is depth.
    Returns:
        Shape `(H, W, 3)`, uint8: horizontal disparity, height, angle.
    Raises:
        KerassegError: If shapes differ, there is no depth at all or a negative one.
    Reference:
        Gupta, Girshick, Arbeláez & Malik 2014, arXiv:1407.5736, §3; s-gupta/rcnn-depth, `saveHHA.m`. Differs: pixels without
        depth take that of the nearest pixel with one, where the authors' code would see a point in the camera's centre; and
        heights are turned upright also below 0.1° of tilt.
    Example:
        >>> hha(np.full((480, 640), 2.0)).shape
        (480, 640, 3)
    """
    scene = geocentric(depth, camera, measured)
    disparity = _DISPARITY / (100 * scene.depth)
    angle = np.where(np.isnan(scene.angle), _NO_NORMAL, scene.angle)
    return np.clip(np.rint(np.stack([disparity, 100 * scene.height, angle + _ANGLE_OFFSET], axis=-1)), 0, 255).astype(np.uint8)


def geocentric(depth, camera: Camera = NYU_CAMERA, measured=None) -> Geocentric:
    """Estimates gravity, and heights and angles by it.

    The lowest point is ground; unless it lies 90 cm or more below the camera, in which case ground is taken to be 130 cm below:
    it is not in the picture.

    Args:
        depth: Shape `(H, W)`, metres; 0 or not finite where there is none.
        camera: What took it.
        measured: As for `hha`.
    Returns:
        The maps, float64, and gravity.
    Raises:
        KerassegError: As `hha`.
    Reference:
        As `hha`; gravity: Gupta, Arbeláez & Malik, CVPR 2013, §3.1.
    """
    depth, measured = _checked(depth, measured)
    there = depth > 0
    depth = fill_depth(depth)
    gravity = estimate_gravity(surface_normals(depth, camera, _COARSE, measured))
    normals = surface_normals(depth, camera, _FINE, measured)
    angle = np.degrees(np.arccos(np.clip(normals @ gravity, -1, 1)))
    height = -100 * depth * (_rays(camera, depth.shape) @ gravity)
    # What fills a hole may seem to lie below the floor.
    lowest = height[there].min()
    return Geocentric(depth, (height - (lowest if lowest <= _LOWEST else _EYE_LEVEL)) / 100, angle, gravity)


def _checked(depth, measured) -> tuple[np.ndarray, np.ndarray]:
    """Depth in metres, 0 where there is none, and where it was measured."""
    depth = np.array(depth, np.float64)
    depth[~np.isfinite(depth)] = 0
    measured = np.ones(depth.shape, bool) if measured is None else np.asarray(measured, bool)
    if depth.ndim != 2 or measured.shape != depth.shape:
        raise KerassegError(f"received depth of shape {depth.shape}, measured of {measured.shape}: expected (H, W), both alike")
    if (depth < 0).any() or not depth.any():
        raise KerassegError(
            f"received depth from {depth.min():.4g} to {depth.max():.4g}: expected metres, 0 where there is none, and some depth"
        )
    return depth, measured & (depth > 0)


def fill_depth(depth: np.ndarray) -> np.ndarray:
    """Gives pixels without depth that of the nearest pixel that has one.

    Args:
        depth: Shape `(H, W)`, any unit, 0 where there is none; some is not 0.
    Returns:
        The same shape and type, without zeros.
    """
    holes = depth == 0
    if not holes.any():
        return depth
    rows, columns = ndimage.distance_transform_edt(holes, return_distances=False, return_indices=True)
    return depth[rows, columns]


def _rays(camera: Camera, shape: tuple[int, int]) -> np.ndarray:
    """Where the camera looks at each pixel, one unit ahead: (right, down, ahead)."""
    rows, columns = np.indices(shape, np.float64)
    return np.stack([(columns - camera.cx) / camera.fx, (rows - camera.cy) / camera.fy, np.ones(shape)], axis=-1)


def surface_normals(depth, camera: Camera, radius: int, measured) -> np.ndarray:
    """Fits a plane to the measured points around each pixel.

    The inverse of depth is linear in the pixel's place on any plane, which is what is fitted, by least squares.

    Args:
        depth: Shape `(H, W)`, metres, more than 0.
        camera: What took it.
        radius: Half the side of the square of pixels that is looked at, without the centre.
        measured: Shape `(H, W)`, boolean.
    Returns:
        Shape `(H, W, 3)`, unit vectors (right, down, ahead) that point away from the camera; NaN where fewer than three points,
        or only points in a row, were measured.
    """
    mask = measured.astype(np.float64)
    inverse = np.where(measured, 1 / depth, 0)
    # Places relative to the window's own centre: sums of places in the picture would lose their digits in the differences below.
    steps = np.arange(-radius, radius + 1, dtype=np.float64)
    powers = [steps**0, steps, steps**2]

    def moment(values, across: int, down: int):
        rows = ndimage.correlate1d(values, powers[across], axis=1, mode="constant")
        return ndimage.correlate1d(rows, powers[down], axis=0, mode="constant")

    n, x, y, xx, xy, yy = (moment(mask, *p) for p in ((0, 0), (1, 0), (0, 1), (2, 0), (1, 1), (0, 2)))
    t, tx, ty = (moment(inverse, *p) for p in ((0, 0), (1, 0), (0, 1)))
    # Cramer's rule for inverse = centre + right * dx + down * dy; the moments of the mask are whole numbers, the rest is exact.
    a, b, c = xx * yy - xy * xy, xy * y - x * yy, x * xy - xx * y
    determinant = n * a + x * b + y * c
    centre = a * t + b * tx + c * ty
    right = b * t + (n * yy - y * y) * tx + (x * y - n * xy) * ty
    down = c * t + (x * y - n * xy) * tx + (n * xx - x * x) * ty
    rows, columns = np.indices(depth.shape, np.float64)
    ahead = centre - right * (columns - camera.cx) - down * (rows - camera.cy)
    normals = np.stack([right * camera.fx, down * camera.fy, ahead], axis=-1) * np.where(centre < 0, -1, 1)[..., np.newaxis]
    length = np.linalg.norm(normals, axis=-1, keepdims=True)
    flat = (determinant[..., np.newaxis] > 0.5) & (length > 0)
    return np.divide(normals, length, out=np.full(normals.shape, np.nan), where=flat)


def estimate_gravity(normals) -> np.ndarray:
    """Finds the direction to which the most surfaces are at right angles or parallel.

    It starts from the camera's own down and takes those surfaces for horizontal or vertical that are so within 45°, then within
    15°, five times each. So a camera that is tilted or rolled by more than about 45° is not understood.

    Args:
        normals: Shape `(…, 3)`, unit vectors; NaN are left out.
    Returns:
        Unit vector, `(3,)`; the camera's down where there is no normal.
    Reference:
        Gupta, Arbeláez & Malik, CVPR 2013, §3.1; s-gupta/rgbdutils, `getYDir.m`.
    """
    normals = np.asarray(normals, np.float64).reshape(-1, 3)
    normals = normals[~np.isnan(normals[:, 0])]
    gravity = _DOWN
    for threshold in np.repeat(np.radians(_THRESHOLDS), _ROUNDS):
        along = np.abs(normals @ gravity)
        weight = (along < np.sin(threshold)).astype(np.float64) - (along > np.cos(threshold))
        scatter = (normals * weight[:, np.newaxis]).T @ normals - _PRIOR * len(normals) * np.outer(gravity, gravity)
        # Eigenvalues come in rising order: the first vector is the one that walls avoid and floors follow.
        direction = np.linalg.eigh(scatter)[1][:, 0]
        gravity = direction if direction @ gravity >= 0 else -direction
    return gravity if len(normals) else _DOWN
