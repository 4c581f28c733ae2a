"""A local Supabase and a local RunPod, for the demo and the tests."""
