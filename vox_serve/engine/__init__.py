"""The device side: scheduling and decoding.  Runs in the worker process; knows nothing of HTTP."""
