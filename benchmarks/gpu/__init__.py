"""The suite for one NVIDIA GPU; see `suite`."""
