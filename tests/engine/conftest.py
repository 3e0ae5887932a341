"""Fixtures for engine tests."""
