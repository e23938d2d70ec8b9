"""Measurements in, PrecisionPlan out."""
