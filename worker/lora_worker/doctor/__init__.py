"""`lora-worker doctor`: each precondition of the worker is checked, and each fault found comes with its remedy."""
