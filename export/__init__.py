"""The build host's package: checkpoint -> bundle. Needs torch; the device imports nothing of it."""
