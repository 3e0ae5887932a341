"""Exports: the adapter, the merged model, and the proof that they are what was trained."""
