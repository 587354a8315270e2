"""What a Conv is, and what takes its place, as plain records."""
