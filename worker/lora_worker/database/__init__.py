"""The database: its functions, its rows as values, its migrations."""
