"""Speaks text that arrives in pieces, over a WebSocket."""
