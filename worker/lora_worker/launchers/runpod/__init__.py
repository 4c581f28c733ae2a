"""RunPod Serverless: its job API, its REST API v2, and what its workers print."""
