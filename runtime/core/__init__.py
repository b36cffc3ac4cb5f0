"""What every part of the runtime stands on: errors, files, interrupts, progress. Imports nothing else of the package."""
