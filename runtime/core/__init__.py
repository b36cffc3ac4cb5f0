"""What every part of the runtime builds on: errors, files, interrupts, options, progress. Imports nothing else from it."""
