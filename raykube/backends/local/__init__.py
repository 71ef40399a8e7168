"""Jobs and services on this machine: an owned Ray head, a keeper that looks after it, records of what was sent."""
