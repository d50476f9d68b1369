"""A builder of TensorFlow Datasets as a user would write one, prepared without TensorFlow."""

import io

import tensorflow_datasets as tfds
from image_files import encoded, picture


class Glyphs(tfds.core.GeneratorBasedBuilder):
    """Twelve training and four test images of two classes, which are of one kind."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = tfds.features.FeaturesDict(
            {
                "image": tfds.features.Image(shape=(8, 8, 3)),
                "kind": tfds.features.ClassLabel(names=["letter"]),
                "label": tfds.features.ClassLabel(names=["a", "b"]),
            }
        )
        keys = ("image", "label")
        return tfds.core.DatasetInfo(builder=self, features=features, supervised_keys=keys)

    def _split_generators(self, dl_manager):
        return {
            "train": self._examples(0, 12),
            "test": self._examples(12, 16),
            "unlabelled": self._examples(16, 18, labelled=False),
        }

    def _generate_examples(self):
        raise NotImplementedError

    def _examples(self, first, last, labelled=True):
        for i in range(first, last):
            image, label = io.BytesIO(encoded(picture(8, 8, i))), i % 2 if labelled else -1
            yield i, {"image": image, "kind": 0, "label": label}
