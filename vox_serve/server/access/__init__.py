"""Access control: keys and their limits, web pages' origins, and host names."""
