"""Training jobs of AWS SageMaker."""
