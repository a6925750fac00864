"""Dia for vox_serve: an encoder, a decoder with guidance, nine delayed codebooks, DAC."""
