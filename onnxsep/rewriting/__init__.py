"""The command rewrite, and inspect."""
