"""From what Kubernetes and Ray say of a run, service or cluster to the one cause of what is wrong. Pure functions."""
