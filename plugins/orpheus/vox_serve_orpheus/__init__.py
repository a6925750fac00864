"""Orpheus for vox_serve: a Llama that emits one flat stream of SNAC codes, and SNAC."""
