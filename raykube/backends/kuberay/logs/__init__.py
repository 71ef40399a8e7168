"""The output and logs of runs and services, read from wherever they are kept."""
