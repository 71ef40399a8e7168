"""Kubernetes' REST API: who asks, what is refused and why, watches, port-forwards. Knows nothing of Ray."""
