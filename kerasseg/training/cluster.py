"""The workers of a cluster: reading TF_CONFIG, and waiting until all of them are there."""

import json
import socket
import threading
import time
from contextlib import closing, contextmanager
from typing import NamedTuple

from kerasseg.errors import KerassegError

_EXAMPLE = '{"cluster": {"worker": ["host1:2222", "host2:2222"]}, "task": {"type": "worker", "index": 0}}'
# How often those that have not answered are tried again, in seconds.
_PAUSE = 0.2


class Cluster(NamedTuple):
    """The addresses of all workers, the one that writes first, and which of them this process is."""

    addresses: tuple[str, ...]
    index: int


def read_cluster(text: str | None) -> Cluster:
    """Reads the variable TF_CONFIG.

    Args:
        text: Its value; `None` if it is not set.
    Raises:
        KerassegError: If it is missing or malformed.
    """
    if not text:
        raise KerassegError(f"strategy 'multiworker' needs the variable TF_CONFIG on every worker, such as {_EXAMPLE}")
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise KerassegError(f"TF_CONFIG is not JSON ({error}): expected {_EXAMPLE}") from error
    try:
        groups, task = values["cluster"], values["task"]
        kind, number = task["type"], int(task["index"])
        # A chief, where there is one, is the worker that writes.
        known = [(group, index) for group in ("chief", "worker") for index in range(len(groups.get(group, ())))]
        addresses = tuple(address for group in ("chief", "worker") for address in groups.get(group, ()))
        ports = [int(address.rpartition(":")[2]) for address in addresses]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise KerassegError(
            f"TF_CONFIG {_short(text)} is malformed ({type(error).__name__}: {error}): expected {_EXAMPLE}"
        ) from error
    if (kind, number) not in known or not all(0 < port < 65536 for port in ports) or set(groups) - {"chief", "worker"}:
        raise KerassegError(
            f"TF_CONFIG {_short(text)}: expected groups 'chief' and 'worker' of host:port, and a task that is among them, as "
            f"{_EXAMPLE}"
        )
    return Cluster(addresses, known.index((kind, number)))


def _short(text: str) -> str:
    return text if len(text) <= 120 else text[:117] + "..."


def wait_for_workers(cluster: Cluster, timeout: float) -> None:
    """Waits until every worker has been reached and has reached this one.

    TensorFlow itself would wait for ever, and not say for whom. The processes greet each other on the ports that it uses later.

    Args:
        cluster: The workers.
        timeout: Seconds.
    Raises:
        KerassegError: If a worker does not join in time, naming each that did not; or this worker's port is taken.
    """
    others = set(range(len(cluster.addresses))) - {cluster.index}
    seen, reached = set(), set()
    with _answering(cluster, seen):
        end = time.monotonic() + timeout
        while seen != others or reached != others:
            reached |= {index for index in others - reached if _greet(cluster, index)}
            if (seen != others or reached != others) and time.monotonic() > end:
                missing = ", ".join(f"worker {i} ({cluster.addresses[i]})" for i in sorted(others - (seen & reached)))
                raise KerassegError(
                    f"{missing} did not join worker {cluster.index} in {timeout:g} seconds: start it with the same TF_CONFIG "
                    "cluster, or pass a larger --join-timeout"
                )
            if seen != others or reached != others:
                time.sleep(_PAUSE)


@contextmanager
def _answering(cluster: Cluster, seen: set):
    """Answers callers in the background; in the end the port is free for TensorFlow."""
    listener = _listen(cluster)
    thread = threading.Thread(target=_answer, args=(listener, seen), daemon=True)
    thread.start()
    try:
        yield
    finally:
        # Closing alone does not end the call that waits on the port.
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()
        listener.close()


def _listen(cluster: Cluster) -> socket.socket:
    address = cluster.addresses[cluster.index]
    port = int(address.rpartition(":")[2])
    try:
        if socket.has_dualstack_ipv6():
            return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
        return socket.create_server(("", port))
    except OSError as error:
        raise KerassegError(
            f"worker {cluster.index} cannot listen on {address} ({error.strerror}): end the process that has the port, or choose "
            "another"
        ) from error


def _answer(listener: socket.socket, seen: set) -> None:
    """Repeats the greeting of whoever calls, until the listener is closed."""
    while True:
        try:
            caller, _ = listener.accept()
        except OSError:
            return
        with closing(caller):
            try:
                caller.settimeout(1)
                greeting = caller.recv(64)
                caller.sendall(greeting)
                words = greeting.split()
                if len(words) == 2 and words[0] == b"kerasseg":
                    seen.add(int(words[1]))
            except (OSError, ValueError):
                continue


def _greet(cluster: Cluster, index: int) -> bool:
    """Calls a worker; tells whether it answered as one of us does."""
    host, _, port = cluster.addresses[index].rpartition(":")
    greeting = f"kerasseg {cluster.index}".encode()
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=1) as call:
            call.sendall(greeting)
            return call.recv(64) == greeting
    except (OSError, UnicodeError):
        return False
