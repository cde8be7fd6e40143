"""Metrics of sets of images, from features."""
