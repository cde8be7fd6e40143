"""Evaluation: bounds, features, metrics, reports, figures."""
