"""One device, several replicas, several processes: the same training. Batch normalization, dropout, clipping, accumulation and
momentum are on, and the pixels to ignore unevenly spread."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from contextlib import closing
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from kerasseg import KerassegError
from kerasseg.training.cluster import Cluster, read_cluster, wait_for_workers

SCRIPT = Path(__file__).with_name("replicas.py")


def start(kind, tf_config=None):
    paths = os.pathsep.join([str(SCRIPT.parent.parent), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": paths, "TF_CPP_MIN_LOG_LEVEL": "2"}
    if tf_config:
        environment["TF_CONFIG"] = json.dumps(tf_config)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, str(SCRIPT), kind], env=environment, **pipes)


def result_of(process):
    out, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors[-3000:]
    return json.loads(out.splitlines()[-1])


@cache
def one_device():
    return result_of(start("one"))


def free_ports(count):
    sockets = [socket.create_server(("localhost", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def assert_same_training(result, replicas):
    assert result["replicas"] == replicas
    for normalization in ("valid", "sum", "heads"):
        expected, received = one_device()[normalization], result[normalization]
        assert len(expected["losses"]) == 20 and expected["losses"][-1] < 0.95 * expected["losses"][0]
        assert received["losses"][0] == pytest.approx(expected["losses"][0], rel=1e-6)
        np.testing.assert_allclose(received["losses"], expected["losses"], rtol=1e-4)
        for weight, other in zip(received["weights"], expected["weights"], strict=True):
            np.testing.assert_allclose(weight, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("replicas", [2, 4])
def test_replicas_train_as_one_device(replicas):
    assert_same_training(result_of(start(str(replicas))), replicas)


def test_two_processes_train_as_one_device():
    addresses = [f"localhost:{port}" for port in free_ports(2)]
    configs = [{"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}} for index in range(2)]
    workers = [start("workers", config) for config in configs]
    for worker in workers:
        assert_same_training(result_of(worker), 2)


# The cluster


def test_tf_config_is_read():
    text = '{"cluster": {"worker": ["a:1", "b:2"], "chief": ["c:3"]}, "task": {"type": "worker", "index": 1}}'
    assert read_cluster(text) == Cluster(("c:3", "a:1", "b:2"), 2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "needs the variable TF_CONFIG on every worker, such as"),
        ("{cluster", "is not JSON"),
        ('{"cluster": {"worker": ["a:1"]}}', "malformed .KeyError: 'task'"),
        ('["a:1"]', "malformed"),
        ('{"cluster": {"worker": ["a"]}, "task": {"type": "worker", "index": 0}}', "malformed"),
        ('{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": 1}}', "a task that is among them"),
        ('{"cluster": {"worker": ["a:99999"]}, "task": {"type": "worker", "index": 0}}', "expected groups"),
        ('{"cluster": {"worker": ["a:1"], "ps": ["b:1"]}, "task": {"type": "worker", "index": 0}}', "expected groups"),
    ],
)
def test_a_malformed_tf_config_is_one_line(text, message):
    with pytest.raises(KerassegError, match=message) as caught:
        read_cluster(text)
    assert "\n" not in str(caught.value) and '"task": {"type": "worker", "index": 0}}' in str(caught.value)


def test_workers_wait_for_each_other_and_free_their_ports():
    addresses = tuple(f"localhost:{port}" for port in free_ports(3))
    threads = []
    for index in (2, 0, 1):
        threads.append(threading.Thread(target=wait_for_workers, args=(Cluster(addresses, index), 30)))
        threads[-1].start()
        time.sleep(0.3)
    for thread in threads:
        thread.join(timeout=30)
        assert not thread.is_alive()
    for address in addresses:
        socket.create_server(("", int(address.split(":")[1]))).close()


def test_a_worker_that_never_joins_is_named():
    """Also where something else listens on its port."""
    mine, absent, stranger = free_ports(3)
    with closing(socket.create_server(("localhost", stranger))):
        cluster = Cluster(tuple(f"localhost:{port}" for port in (mine, absent, stranger)), 0)
        with pytest.raises(KerassegError) as caught:
            wait_for_workers(cluster, 1.0)
    assert str(caught.value).startswith(
        f"worker 1 (localhost:{absent}), worker 2 (localhost:{stranger}) did not join worker 0 in 1 seconds: start it"
    )


def test_a_port_that_is_taken_says_so():
    (port,) = free_ports(1)
    with closing(socket.create_server(("", port))), pytest.raises(KerassegError, match=f"cannot listen on localhost:{port}"):
        wait_for_workers(Cluster((f"localhost:{port}",), 0), 1.0)
