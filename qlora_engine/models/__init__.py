"""Models: what there is, facts without weights, download and conversion, loading in 4 bits."""
