"""A small CSM checkpoint of the project's own; `vox_serve_csm` holds the code that runs it."""
