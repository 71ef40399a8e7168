"""RayServices: made, changed in place, looked at and taken down."""
