"""RayJobs: started, looked at, stopped and removed."""
