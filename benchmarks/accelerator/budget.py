"""A limit on wall-clock time, and how large everything is."""

import time
from typing import NamedTuple


class Scale(NamedTuple):
    """How large everything is."""

    networks: tuple[str, ...]  # Names in the paper's table; "small" has one block.
    precisions: tuple[str, ...]  # Of the computation, the most important one first.
    batch_size: int  # Images of a flow step and of a training step.
    num_flow_steps: int  # Of a timed flow, and of a training step.
    num_exact_images: int  # In the comparison with float64.
    matrix_size: int  # Side of the matrices whose product gives the peak.
    rounds: int  # Timed calls of each function.
    torch_compile: tuple[bool, ...]  # With and without it; it takes minutes on a CPU.
    config: str  # What is trained at the end,
    changes: dict[str, object]  # with these settings.
    num_samples: int  # In the picture.
    min_training_seconds: float  # That training gets if the other parts took too long.


FULL = Scale(
    networks=("resnet32", "resnet64", "resnet128", "resnet64_shallow"),
    precisions=("bfloat16", "tensorfloat32", "float32"),
    batch_size=64,
    num_flow_steps=100,
    num_exact_images=4,
    matrix_size=8_192,
    rounds=5,
    torch_compile=(False, True),
    config="cifar10",
    changes={"log.every_steps": 20, "checkpoint.every_steps": 200, "train.steps_per_dispatch": 20},
    num_samples=100,
    min_training_seconds=60.0,
)
SMALL = Scale(
    networks=("small",),
    precisions=("float32",),
    batch_size=4,
    num_flow_steps=3,
    num_exact_images=2,
    matrix_size=256,
    rounds=2,
    torch_compile=(False,),
    config="digits:tiny",
    changes={"train.num_steps": 4},
    num_samples=16,
    min_training_seconds=3_600.0,
)


class Budget:
    """A number of seconds from now on."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds
        self._whole = seconds

    @property
    def left(self) -> float:
        """Seconds that are left; below 0 when they are used up."""
        return self._end - time.monotonic()

    def allows(self, share_to_keep: float) -> bool:
        """Whether more is left than a share of the whole that later parts need."""
        return self.left > share_to_keep * self._whole
