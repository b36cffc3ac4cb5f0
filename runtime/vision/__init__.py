"""Video to compressed visual tokens, for a clip or a live stream."""
