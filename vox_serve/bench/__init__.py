"""vox-serve bench: how fast and how steadily a server speaks, measured at its client.

Knows HTTP and any server that answers one of two routes; knows no engine and loads no torch.
"""
