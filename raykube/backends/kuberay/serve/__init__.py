"""RayServices: making, changing, observing and removing them."""
