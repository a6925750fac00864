"""The suite for one NVIDIA GPU: `suite` says what it does."""
