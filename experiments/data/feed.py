"""Host batches for the training loop, for data that do not fit on the device."""

from collections.abc import Generator, Iterator
from types import TracebackType
from typing import Self

import numpy as np

from experiments.data.problems import Problems


class Feed:
    """Stacks the batches of several train steps for one dispatch to the device.

    The device works on one dispatch while this gathers the next from what Grain has read ahead, so
    the host's work hides behind the device's as long as it is the faster.

    Its state is the number of batches used or skipped, `rollbacks.num_batches`: that and the
    seed are all that a resumed run needs.
    """

    def __init__(
        self,
        batches: Iterator[dict[str, np.ndarray]] | None,
        max_steps: int = 1,
        num_devices: int = 1,
        problems: Problems | None = None,
    ) -> None:
        """Wraps the batches of a process.

        Args:
          batches: pixels by side, [B, ...] each; `None` for a source that lives on the device.
          max_steps: steps of the largest dispatch.
          num_devices: replicas of this process, over which a batch is split.
          problems: told at the end.
        """
        self._batches = batches
        self._max_steps = max_steps
        self._num_devices = num_devices
        self._problems = problems

    def take(self, count: int) -> dict[str, np.ndarray] | None:
        """Returns the batches of the next steps.

        Args:
          count: number of steps.

        Returns:
          Arrays [devices, max_steps, B / devices, ...], of which the first `count` steps are set,
          as `fdrl_jax.steps.repeat_steps` takes them; `None` for a source on the device.
        """
        if self._batches is None:
            return None
        taken = [next(self._batches) for _ in range(count)]
        return {side: self._stack([batch[side] for batch in taken]) for side in taken[0]}

    def close(self) -> None:
        """Stops reading."""
        if isinstance(self._batches, Generator):
            self._batches.close()
        if self._problems is not None:
            self._problems.tell()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _stack(self, batches: list[np.ndarray]) -> np.ndarray:
        size, event = len(batches[0]) // self._num_devices, batches[0].shape[1:]
        stacked = np.zeros((self._num_devices, self._max_steps, size, *event), batches[0].dtype)
        for step, batch in enumerate(batches):
            stacked[:, step] = batch.reshape(self._num_devices, size, *event)
        return stacked
