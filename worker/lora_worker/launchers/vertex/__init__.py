"""Custom jobs of Google's Vertex AI."""
