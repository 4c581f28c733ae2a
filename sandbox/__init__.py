"""A Supabase and a RunPod on your own machine, for the demo and the tests."""
