"""Jobs, services and clusters on KubeRay: make and observe them, and find what is wrong."""
