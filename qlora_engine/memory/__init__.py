"""How much memory a run will need: part by part, with and without double quantization, before it starts."""
