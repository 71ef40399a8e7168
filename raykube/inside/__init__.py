"""The inside plane: runs in a Ray driver and its workers. Imports nothing of the outside plane."""
