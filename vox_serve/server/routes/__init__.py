"""The HTTP routes, each with the fields of its request."""
