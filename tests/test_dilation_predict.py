"""Tiles against the program of Dilation's authors, whose results are kept in golden/dilation_predict.npz."""

from pathlib import Path

import keras
import numpy as np
import pytest

from kerasseg.evaluation import Tiles, predict, probabilities
from kerasseg.models import dilation

GOLDEN = np.load(Path(__file__).parent / "golden/dilation_predict.npz")
MARGIN = 186


def stand_in(step, mean):
    """The function that stood for Caffe's network: three pixels of the tile for each cell, as logits."""
    image = keras.Input((None, None, 3))
    centred = keras.layers.Rescaling(1, -np.array(mean[::-1]))(image)
    parts = []
    for place, tap in zip((0, MARGIN, 2 * MARGIN - 1), GOLDEN["taps"], strict=True):
        behind = 2 * MARGIN - place
        x = keras.layers.Cropping2D(((place, behind), (place, behind)))(centred)
        layer = keras.layers.Conv2D(3, 1, strides=step, use_bias=False)
        parts.append(layer(x))
        layer.set_weights([tap[::-1][None, None]])
    return keras.Model(image, keras.layers.Add()(parts))


@pytest.mark.parametrize(("data", "step"), [("camvid", 8), ("cityscapes", 1)])
def test_tiles_are_those_of_the_authors_program(monkeypatch, data, step):
    monkeypatch.setattr(dilation, "native_network", lambda model: (model, step))
    model, method = stand_in(step, GOLDEN[f"{data}_mean"]), Tiles(GOLDEN[f"{data}_size"])
    labels = GOLDEN[f"{data}_labels"]
    image = GOLDEN["image"][: labels.shape[0], : labels.shape[1]]
    found = probabilities(model, image, method=method)
    if data == "camvid":
        np.testing.assert_allclose(found, GOLDEN["camvid_probabilities"], atol=1e-5)
        assert np.ptp(found, axis=(0, 1)).min() > 0.5
    best = np.sort(found, -1)
    clear = best[..., -1] - best[..., -2] > 1e-4
    assert clear.mean() > 0.99 and set(np.unique(labels)) == {0, 1, 2}
    np.testing.assert_array_equal(predict(model, image, method=method)[clear], labels[clear])
