"""Pods of RunPod: one for each run."""
