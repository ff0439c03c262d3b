"""The same seed gives the same examples, byte for byte, on any number of threads and workers, and from any step on."""

import hashlib
import threading
from functools import cache

import numpy as np
import pytest

from kerasseg.data import ColorJitter, DataSet, Example, Flip, RandomCrop, RandomScale, Share, training_batches
from kerasseg.data.sampling import class_balance
from kerasseg.data.views.cache import Cached
from kerasseg.labels import LABELS

EXAMPLES, BATCH = 1000, 20
TRANSFORMS = (ColorJitter(0.2), RandomScale(0.5, 2.0, 0.25), RandomCrop((13, 15)), Flip())
LENGTH = 70
SAMPLINGS = ("shuffle", "replacement", "weights", "balanced")


class Drawn(DataSet):
    """Small pictures of noise, of sizes that differ, with one of the classes each and a rare one."""

    def __init__(self):
        super().__init__(LABELS["voc"], map(str, range(LENGTH)))
        self.readers = set()

    def read(self, index):
        self.readers.add(threading.current_thread().name)
        rng = np.random.default_rng(index)
        size = (10 + index % 5, 12 + index % 7)
        label = np.full(size, 1 + index % 6, np.int32)
        label[0, 0], label[-1, -1] = 20 if index % 35 == 0 else 0, 255
        return Example(rng.integers(0, 256, (*size, 3), np.uint8), label, self.ids[index], None)


@cache
def settings(sampling):
    if sampling == "weights":
        return {"sampling": "replacement", "weights": np.arange(LENGTH) % 4}
    return {"sampling": sampling, **({"weights": class_balance(Drawn())} if sampling == "balanced" else {})}


def digests(data, sampling, start=0, steps=EXAMPLES // BATCH, **options):
    """One digest for each example, in the order of the positions."""
    batches = training_batches(
        data, BATCH, transforms=TRANSFORMS, seed=11, start=start, steps=steps, **settings(sampling), **options
    )
    found = []
    for image, label in batches:
        assert (image.dtype, label.dtype) == ("float32", "int32")
        pairs = zip(image.numpy(), label.numpy(), strict=True)
        found += [hashlib.sha256(i.tobytes() + b"|" + x.tobytes()).hexdigest() for i, x in pairs]
    return found


@cache
def expected(sampling):
    """On one thread and one worker, without a cache."""
    data = Drawn()
    found = digests(data, sampling, threads=1)
    assert len(found) == EXAMPLES and len(_threads(data)) <= 1
    # Almost none is like another: it is drawn anew, and so is its augmentation.
    assert len(set(found)) > 0.98 * EXAMPLES
    return found


def _threads(data):
    return {name for name in data.readers if name.startswith("kerasseg")}


# Which example it is the loop decides, before any thread: two kinds of sampling stand for all.
@pytest.mark.parametrize("sampling", ["shuffle", "balanced"])
@pytest.mark.parametrize("threads", [2, 8])
def test_threads_change_nothing(threads, sampling):
    data = Drawn()
    assert digests(data, sampling, threads=threads) == expected(sampling)
    assert len(_threads(data)) > 1


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_two_workers_have_the_halves_of_each_batch(sampling):
    halves = [digests(Drawn(), sampling, share=Share(2, worker, 1), threads=1 + worker) for worker in (0, 1)]
    batches = np.array(expected(sampling)).reshape(-1, BATCH)
    for worker, half in enumerate(halves):
        assert half == batches[:, worker * BATCH // 2 : (worker + 1) * BATCH // 2].ravel().tolist()


def test_a_worker_of_several_replicas_has_their_parts_in_turn():
    both = digests(Drawn(), "shuffle", share=Share(4, 1, 2), steps=5)
    assert both == np.array(expected("shuffle")).reshape(-1, BATCH)[:5, 5:15].ravel().tolist()


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_resuming_at_any_step(sampling):
    for start in (0, 1, 3, 4, 17, 30, 49):
        steps = min(3, EXAMPLES // BATCH - start)
        assert digests(Drawn(), sampling, start, steps) == expected(sampling)[start * BATCH : (start + steps) * BATCH]


@pytest.mark.parametrize("where", ["memory", "folder"])
def test_a_cache_changes_nothing(where, tmp_path):
    data = Cached(Drawn(), "memory" if where == "memory" else tmp_path / "kept")
    for sampling in SAMPLINGS[:2]:
        assert digests(data, sampling, threads=8) == expected(sampling)
