"""`make gpu`: what only a GPU can show. The suite of tests/gpu, then speed and memory at the shapes of real models."""
