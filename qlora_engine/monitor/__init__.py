"""Live memory: the GPU through NVML, what the optimizer paged, and the host."""
