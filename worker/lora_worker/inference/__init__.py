"""Asking the endpoint that answers with finished adapters: what a name means, the call, and what its answers mean."""
