"""Metrics of images: features, Frechet and kernel distances, scores, precision and recall."""
