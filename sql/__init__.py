"""The database side: numbered migrations, read by `lora-worker migrate`."""
