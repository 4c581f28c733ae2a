"""What worker and trainer share: their protocol and the rules that both must apply alike. Imports no heavy library."""
