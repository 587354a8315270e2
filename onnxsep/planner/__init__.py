"""Plans: what becomes of each layer, as a file that can be read, changed and carried out."""
