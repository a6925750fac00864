"""`vox-serve plan`: how many devices a load needs, by simulating the engine with measured times."""
