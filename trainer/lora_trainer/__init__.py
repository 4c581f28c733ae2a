"""What runs on the GPU: the RunPod handler, the QLoRA recipe, its data and its publishing."""
