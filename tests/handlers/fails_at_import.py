"""A handler whose image lacks what it imports: RunPod starts its worker again and again."""

raise ImportError("libcudart.so.12: cannot open shared object file")
