"""The nodes of a model: where they stand, what they are connected to, what sizes they have."""
