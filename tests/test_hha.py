from pathlib import Path

import numpy as np
import pytest
from fixtures.room import render_room

from kerasseg.data.hha import NYU_CAMERA, Camera, estimate_gravity, fill_depth, geocentric, hha, surface_normals
from kerasseg.errors import KerassegError

SIZE = (240, 320)
CAMERA = Camera(259.4, 259.7, 161.8, 125.9)
POSES = {"level": (0, 0, 0), "down": (25, 0, 0), "turned": (18, 35, 0), "rolled": (20, -30, 12), "steep": (38, 10, -9)}


def degrees_between(a, b):
    return np.degrees(np.arccos(np.clip(np.dot(a, b), -1, 1)))


@pytest.fixture(scope="module", params=POSES)
def view(request):
    return render_room(CAMERA, SIZE, *POSES[request.param])


def test_a_room_comes_out_within_two_centimetres_and_a_degree(view):
    check_room(view, view.depth, CAMERA, share_of_angles=1)


def test_a_room_whose_depth_is_rounded_to_millimetres(view):
    """As 16-bit files keep it: where few points are looked at, in a corner of the picture, a far wall is a little rough."""
    check_room(view, np.rint(view.depth * 1000) / 1000, CAMERA, share_of_angles=0.998)


def test_a_room_at_full_size():
    room = render_room(NYU_CAMERA, (480, 640), 21, 12, -5)
    check_room(room, room.depth, NYU_CAMERA, share_of_angles=1)


def check_room(room, depth, camera, share_of_angles):
    scene = geocentric(depth, camera)
    assert degrees_between(scene.gravity, room.gravity) < 1
    assert np.abs(scene.height - room.height).max() < 0.02
    assert room.flat.mean() > 0.7 and {0, 90} <= set(room.angle[room.flat].tolist())
    assert (np.abs(scene.angle - room.angle)[room.flat] < 1).mean() >= share_of_angles
    coded = hha(depth, camera).astype(float)
    assert np.abs(coded[..., 0] - np.minimum(31000 / (100 * room.depth), 255)).max() < 1
    assert np.abs(coded[..., 1] - np.clip(100 * room.height, 0, 255)).max() < 2
    assert (np.abs(coded[..., 2] - 38 - room.angle)[room.flat] <= 1).mean() >= share_of_angles


def test_a_room_with_missing_depth(view):
    """Holes: alone, as a block, as a rim; told by depth 0, or by `measured` where something wrong was filled in."""
    room, depth = view, view.depth
    missing = np.random.default_rng(3).random(SIZE) < 0.25
    missing[100:130, 140:190] = missing[:, :9] = True
    assert not np.isnan(geocentric(depth, CAMERA).angle).any()
    for scene in (
        geocentric(np.where(missing, 0, depth), CAMERA),
        geocentric(np.where(missing, np.nan, depth), CAMERA),
        geocentric(depth + 0.004 * missing, CAMERA, measured=~missing),
    ):
        known = ~missing & room.flat
        assert degrees_between(scene.gravity, room.gravity) < 1
        assert np.abs(scene.height - room.height)[~missing].max() < 0.02
        assert (np.abs(scene.angle - room.angle)[known] < 1).mean() > 0.999
        assert np.abs(scene.depth - depth)[~missing].max() == 0
        # Filled by what is nearest: on the surfaces that they are on, but for holes at an edge.
        assert np.median(np.abs(scene.depth - depth)[missing & room.flat]) < 0.05
        assert np.isfinite(scene.depth).all() and np.isfinite(scene.height).all() and (scene.depth > 0).all()
        assert np.isnan(scene.angle[105:125, 145:185]).all() and not np.isnan(scene.angle[~missing]).any()


def test_the_room_sees_tilt_that_is_left_out():
    """What the tests above would find: a camera taken for level, or one whose centre is 10 pixels off."""
    room = render_room(CAMERA, SIZE, *POSES["down"])
    assert np.abs(room.height - (1.4 - room.depth * (np.indices(SIZE)[0] - CAMERA.cy) / CAMERA.fy)).max() > 0.3
    off = geocentric(room.depth, Camera(CAMERA.fx, CAMERA.fy, CAMERA.cx, CAMERA.cy + 10))
    assert degrees_between(off.gravity, room.gravity) > 1


def test_the_code_of_others_gives_the_same():
    """Depth2HHA-python, which follows the authors' MATLAB code; see golden/README.md."""
    with np.load(Path(__file__).parent / "golden" / "fcn_layers_scenes.npz") as golden:
        expected, depth, measured = (golden[f"hha/{name}"] for name in ("room", "depth", "measured"))
    camera = Camera(NYU_CAMERA.fx / 4, NYU_CAMERA.fy / 4, 79.5, 59.5)
    received = hha(depth / 1000, camera, measured)
    difference = np.abs(received.astype(int) - expected)
    nothing = np.isnan(geocentric(depth / 1000, camera, measured).angle)
    # Of points in a row the other code makes a normal of rounding errors.
    assert difference[~nothing].max() <= 1 and difference[..., :2].max() <= 1 and (difference == 0).mean() > 0.99
    assert (received[nothing, 2] == 218).all() and (expected[nothing, 2] == 218).sum() > 50


def test_a_wall_ahead_by_hand():
    camera = Camera(100, 100, 2, 2)
    scene = geocentric(np.full((9, 7), 2.0), camera)
    assert np.allclose(scene.gravity, [0, 1, 0]) and np.allclose(scene.angle, 90)
    # The lowest row is 12 cm below the camera: ground is not in the picture, but 130 cm below it.
    assert np.allclose(scene.height[:, 3], 1.30 - 2.0 * (np.arange(9) - 2) / 100)
    assert hha(np.full((9, 7), 2.0), camera)[0, 0].tolist() == [155, 134, 128]
    # 620 does not fit.
    assert hha(np.full((9, 7), 0.5), camera)[2, 2].tolist() == [255, 130, 128]
    # 95 cm below the camera is ground, 85 cm is not.
    for lowest, ground in ((0.95, 0.95), (0.85, 1.30)):
        near = geocentric(np.full((9, 7), lowest / 6 * 100), camera)
        assert np.allclose(near.height[2], ground)


@pytest.mark.parametrize("radius", [3, 10])
def test_normals_are_least_squares_planes(radius):
    """Against `lstsq` over the points themselves, at the rim, by a hole, and on noise."""
    generator = np.random.default_rng(radius)
    depth = render_room(CAMERA, (60, 80), 20).depth + generator.normal(0, 0.01, (60, 80))
    measured = generator.random(depth.shape) < 0.7
    measured[20:32, 30:50] = False
    normals = surface_normals(depth, CAMERA, radius, measured)
    rows, columns = np.indices(depth.shape)
    points = depth[..., None] * np.stack(
        [(columns - CAMERA.cx) / CAMERA.fx, (rows - CAMERA.cy) / CAMERA.fy, np.ones_like(depth)], -1
    )
    for row, column in ((0, 0), (59, 79), (30, 10), (19, 40), (45, 60)):
        window = (slice(max(row - radius, 0), row + radius + 1), slice(max(column - radius, 0), column + radius + 1))
        near = points[window][measured[window]]
        # On a plane n·p = 1; divided by depth, which makes the noise of disparity alike everywhere.
        normal = np.linalg.lstsq(near / near[:, 2:], 1 / near[:, 2], rcond=None)[0]
        assert np.allclose(normals[row, column], normal / np.linalg.norm(normal), atol=1e-9)


def test_too_few_points_have_no_normal():
    depth, measured = np.full((20, 20), 2.0), np.zeros((20, 20), bool)
    measured[10, 3:9] = measured[5, 15] = True
    normals = surface_normals(depth, Camera(100, 100, 10, 10), 3, measured)
    assert np.isnan(normals).all()
    assert (hha(depth, Camera(100, 100, 10, 10), measured)[..., 2] == 218).all()
    measured[11, 5] = True
    assert np.allclose(surface_normals(depth, Camera(100, 100, 10, 10), 3, measured)[10, 5], [0, 0, 1])


def test_gravity_of_nothing_and_of_one_wall():
    assert estimate_gravity(np.full((4, 4, 3), np.nan)).tolist() == [0, 1, 0]
    assert np.allclose(estimate_gravity(np.tile([0.0, 0, 1], (50, 1))), [0, 1, 0])
    tilted = np.array([[0, np.cos(0.3), np.sin(0.3)]] * 50 + [[1.0, 0, 0]] * 20)
    assert np.allclose(estimate_gravity(tilted), tilted[0])


def test_holes_take_the_nearest_depth():
    depth = np.array([[0, 0, 7], [5, 0, 0], [0, 0, 0]], np.uint16)
    assert fill_depth(depth).tolist() == [[5, 7, 7], [5, 5, 7], [5, 5, 7]] and fill_depth(depth).dtype == np.uint16
    assert fill_depth(depth + np.uint16(1)).tolist() == (depth + 1).tolist()


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: hha(np.zeros((4, 4))), "from 0 to 0: expected metres"),
        (lambda: hha(np.full((4, 4), -1.0)), "from -1 to -1"),
        (lambda: hha(np.ones((4, 4, 3))), r"shape \(4, 4, 3\)"),
        (lambda: hha(np.ones((4, 4)), measured=np.ones((3, 4))), r"measured of \(3, 4\)"),
        (lambda: Camera(0, 500, 1, 1), "fx=0"),
    ],
)
def test_mistakes_are_told(call, message):
    with pytest.raises(KerassegError, match=message):
        call()
