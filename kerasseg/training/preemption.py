"""Being asked to stop: SIGTERM, which schedulers send some time before they take a machine away."""

import signal
import threading


class Preemption:
    """Notes SIGTERM instead of dying of it, so that training can stop after its step, the state saved.

    A second SIGTERM ends the process at once, as any does without this. Python sees a signal between two calls into TensorFlow.
    Signals reach the main thread only: in another one nothing is installed, and `requested` stays false. To be entered once the
    strategy is there, for MultiWorkerMirroredStrategy installs a handler of its own. In a cluster the scheduler may tell a single
    worker: that all of them stop after the same step is up to the caller, `Workers.any`.

    Example:
        >>> with Preemption() as preemption:
        ...     for step in trainer.train(feed, iterations, stops=stops):
        ...         if preemption.requested and trainer.step == step.step:
        ...             checkpoints.save(step.step, trainer.state())
        ...             raise Preempted(run, step.step)  # of kerasseg.runs; the command lines end with exit code 143
    """

    def __init__(self):
        self.requested = False
        self._installed, self._before = False, None

    def __enter__(self) -> "Preemption":
        """Installs the handler."""
        if threading.current_thread() is threading.main_thread():
            # None stands for a handler that Python cannot put back.
            self._before = signal.signal(signal.SIGTERM, self._note) or signal.SIG_DFL
            self._installed = True
        return self

    def __exit__(self, *exception) -> None:
        """Puts the handler back that was there before."""
        if self._installed:
            signal.signal(signal.SIGTERM, self._before)
            self._installed = False

    def _note(self, number, frame) -> None:
        self.requested = True
        signal.signal(signal.SIGTERM, self._before)
