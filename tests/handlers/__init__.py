"""Small RunPod handlers that the sandbox's tests run in real SDK workers."""
