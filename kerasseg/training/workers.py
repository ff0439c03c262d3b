"""What the workers of a cluster tell each other between steps."""

import numpy as np
import tensorflow as tf

from kerasseg.errors import KerassegError


class Workers:
    """The workers that train together; without a cluster, this process alone.

    Every method is to be called by all of them, in the same order, and waits for the others.

    Args:
        strategy: What they train under.
    """

    def __init__(self, strategy: tf.distribute.Strategy):
        def told(value):
            # In a replica, because only there tensors of different workers meet.
            return tf.distribute.get_replica_context().all_gather(tf.identity(value), axis=0)

        several = isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)
        self._gather = tf.function(lambda value: strategy.run(told, (value,)), autograph=False) if several else None
        self._first = lambda values: strategy.experimental_local_results(values)[0]

    def gather(self, value: int) -> list[int]:
        """Gives what they say, each different value once."""
        if self._gather is None:
            return [value]
        return np.unique(self._first(self._gather(tf.constant([value], tf.int64)))).tolist()

    def any(self, flag: bool) -> bool:
        """Tells whether it is so for one of them."""
        return any(self.gather(int(flag)))

    def meet(self) -> None:
        """Waits for the others: what the one that writes has written is then there for all."""
        self.gather(0)

    def check_same(self, place: int, path) -> None:
        """Refuses workers that stand at different places of a run.

        Args:
            place: Where this one stands, as its run directory says.
            path: The run directory.
        Raises:
            KerassegError: If they differ.
        """
        if len(self.gather(place)) > 1:
            raise KerassegError(
                f"the workers find {path} at different steps: --run-dir must be on a file system that all workers share"
            )
