"""Why and how runs end: what launchers and trainers say, what follows, and when a job is tried again."""
