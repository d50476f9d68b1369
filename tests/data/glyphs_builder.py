"""A builder of TensorFlow Datasets as a user would write one, prepared without TensorFlow."""

import io

import tensorflow_datasets as tfds
from image_files import encoded, picture


class Glyphs(tfds.core.GeneratorBasedBuilder):
    """Twelve training and four test images of two classes."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = tfds.features.FeaturesDict(
            {
                "image": tfds.features.Image(shape=(8, 8, 3)),
                "label": tfds.features.ClassLabel(names=["a", "b"]),
            }
        )
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, dl_manager):
        return {"train": self._examples(0, 12), "test": self._examples(12, 16)}

    def _generate_examples(self):
        raise NotImplementedError

    def _examples(self, first, last):
        for i in range(first, last):
            yield i, {"image": io.BytesIO(encoded(picture(8, 8, i))), "label": i % 2}
