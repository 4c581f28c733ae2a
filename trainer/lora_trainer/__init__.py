"""The part that runs on the GPU: RunPod's handler, the QLoRA recipe, and the publishing of the adapter."""
