"""What runs and services print and log, read wherever it is kept."""
