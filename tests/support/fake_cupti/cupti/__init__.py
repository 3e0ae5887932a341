"""Stands in for the package cupti-python."""
