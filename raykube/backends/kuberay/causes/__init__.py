"""Finds the one cause of what is wrong with a run, service or cluster. Pure functions of what was observed."""
