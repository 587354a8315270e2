"""The file of a model and its bytes: reading, checking, saving."""
