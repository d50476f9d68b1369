"""FDRL next to flow matching, MeanFlow and a GAN, at equal CPU seconds on equal images."""
