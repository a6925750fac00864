"""CSM for vox_serve: Llama backbone, depth decoder over the codebooks, Mimi codec."""
