"""RayJobs: starting, observing, stopping and removing them."""
