"""vox-serve bench: measures from the client how fast and how steadily a server speaks.

Works over HTTP with any server that has one of two routes; uses no engine and loads no torch.
"""
