"""The build host's half: checkpoint -> bundle. Needs torch; nothing here is imported on the device."""
