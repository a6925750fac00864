"""The server's side of the engines: a worker process for each model.  Loads no torch."""
