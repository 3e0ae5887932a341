"""Mixtures of experts in 4 bits: how they are stored, computed with, loaded, kept on the host and adapted."""
