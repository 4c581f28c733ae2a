"""Prices of GPUs, bills and budgets of jobs, and cost estimates. All money is in USD."""
