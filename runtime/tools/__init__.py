"""Ways to look at a bundle: parity, bench, plot, inspect, doctor."""
