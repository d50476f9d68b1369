"""What a data source is asked for: the section `data` of a config, typed."""

from typing import NamedTuple

from experiments.data.decoding import Transform


class DataOptions(NamedTuple):
    """The keys of `data` in a config, whose comments in `configs/base.py` say what each does."""

    name: str
    dir: str = ""
    split: str = "train"
    held_out_split: str = "test"
    num_held_out: int = 1_000
    source_class: str = ""
    target_class: str = ""
    center_crop: int = 0
    resize: int = 0
    image_size: int = 0
    keep_aspect: bool = True
    channels: int = 3
    random_flip: bool = False
    dequantisation: float = 0.0
    on_error: str = "stop"
    in_memory_megabytes: int = 256
    num_workers: int = 0
    num_threads: int = 4
    prefetch_batches: int = 8

    @property
    def transform(self) -> Transform:
        """The part that turns a stored image into an example."""
        return Transform(
            self.center_crop, self.resize, self.image_size, self.keep_aspect, self.channels
        )
