"""For people without the application: queues a job for a file on this machine, and fetches the trained adapter."""
