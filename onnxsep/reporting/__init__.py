"""Records, and how they are shown."""
