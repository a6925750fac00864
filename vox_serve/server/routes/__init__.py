"""The HTTP routes, each with its request's fields."""
