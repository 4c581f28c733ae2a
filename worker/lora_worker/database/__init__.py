"""The database: its functions, the calls of these, its rows as Python values, and its migrations."""
