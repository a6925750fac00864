"""Who may use the server: keys, origins of web pages, host names, and each key's limits."""
