"""What options of commands are made of."""
