"""Jobs, services and clusters on KubeRay: make them, look at them, say what is wrong with them."""
