"""Which model types train here, found by trying each as a tiny random model."""
