"""Width and height, in pixels, of the images for each of the paper's networks."""

SIZES = {"resnet32": 32, "resnet64": 64, "resnet64_shallow": 64, "resnet128": 128}
