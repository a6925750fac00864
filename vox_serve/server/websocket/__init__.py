"""Text that arrives in pieces, spoken over a WebSocket."""
