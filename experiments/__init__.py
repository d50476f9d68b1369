"""The program around the library: settings, data, the training loop, files and plots."""
