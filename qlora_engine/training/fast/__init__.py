"""Faster ways to compute what the plain modules compute; each is checked against them on the loaded model."""
