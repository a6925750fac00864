"""The device side: scheduling, decoding and the worker.  Knows nothing of HTTP.

Importing this package or `client`, `messages` does not import torch; `engine`, `runner`,
`sampler`, `kv_cache` and `worker` do.
"""
