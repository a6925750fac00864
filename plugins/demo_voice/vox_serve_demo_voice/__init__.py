"""A small CSM checkpoint, trained by this project; `vox_serve_csm` runs it."""
