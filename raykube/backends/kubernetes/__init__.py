"""Kubernetes' REST API: credentials, refusals and their reasons, watches, port-forwards. Knows nothing of Ray."""
