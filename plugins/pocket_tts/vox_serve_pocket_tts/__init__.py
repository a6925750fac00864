"""Pocket TTS for vox_serve: a backbone over latents, a flow head, a latent decoder."""
