"""What is made at RunPod: the REST API v2, the file that describes a deployment, plans and how they are carried out."""
