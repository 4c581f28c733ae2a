"""Prices, bills, budgets and estimates."""
