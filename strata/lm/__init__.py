"""Language models and sentence models: opened, checked, and read or changed inside."""
