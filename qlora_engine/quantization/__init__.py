"""What 4 bits cost: the ways to store a weight in 4 bits, and the measured quality report."""
