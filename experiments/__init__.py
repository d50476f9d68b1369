"""The program around the library: configs, data, the training loop, files and pictures."""
