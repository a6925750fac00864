"""The HTTP server.  Does not import torch."""
